"""The planner as a user meets it, the activations that it traces, and its error on a small run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from transformers import Qwen3Config

from benchmarks.cost import plan_accuracy as accuracy
from credit_trl.testbed import BASE_MODEL
from scripts.memory_plan import Limits, make_plan, read_launch, read_settings
from scripts.memory_plan.__main__ import main
from scripts.memory_plan.fake_model import LiveBytes, build_model, checkpoint_layers, model_sizes, trace
from scripts.memory_plan.memory import GIB, STRATEGIES, ModelSizes, Sharding, buffers

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
ACCELERATE, RECIPES = str(ROOT / "accelerate_configs"), str(ROOT / "recipes")


def qwen3(layers: int, **sizes) -> Qwen3Config:
    return Qwen3Config(
        **dict(
            vocab_size=500, hidden_size=64, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, num_hidden_layers=layers, tie_word_embeddings=False, max_position_embeddings=40960,
        )
        | sizes
    )  # fmt: skip


QWEN3_8B = qwen3(
    36, vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_attention_heads=32, num_key_value_heads=8,
    head_dim=128,
)  # fmt: skip
GPU = Limits(memory=79 * GIB, reserve=4 * GIB, prompt=512)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_configuration(path):
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), "train.py"])
    known = set(vars(args))
    args, config, _ = _validate_launch_command(args)
    # accelerate drops what it does not know of a nested section without a word.
    for key in [*config.deepspeed_config, *config.fsdp_config]:
        assert key in known, key
    assert args.num_processes == (1 if path.stem in ("cpu", "gpu") else 8)
    assert (args.use_deepspeed, args.use_fsdp, args.multi_gpu) == (
        path.stem.startswith("zero"),
        path.stem == "fsdp2",
        path.stem == "multi_gpu",
    )


def test_one_gpu_is_one_on_a_machine_with_more():
    args = launch_command_parser().parse_args(["--config_file", f"{ACCELERATE}/gpu.yaml", "train.py"])
    args, _, _ = _validate_launch_command(args)
    assert prepare_simple_launcher_cmd_env(args)[1]["CUDA_VISIBLE_DEVICES"] == "0"


def test_launches_are_read_from_their_configurations():
    launches = {path.stem: read_launch(str(path), None, None) for path in CONFIGS}
    assert {name: launch.strategy for name, launch in launches.items()} == {
        "cpu": "one",
        "fsdp2": "fsdp2",
        "gpu": "one",
        "multi_gpu": "ddp",
        "zero2": "zero2",
        "zero3": "zero3",
        "zero3_offload": "zero3",
    }
    assert [name for name, launch in launches.items() if launch.cpu] == ["cpu"]
    offloaded = launches["zero3_offload"]
    assert offloaded.offload_optimizer and offloaded.offload_weights
    assert replace(offloaded, offload_optimizer=False, offload_weights=False) == launches["zero3"]
    assert (launches["zero3"].processes, launches["zero3"].mixed_precision) == (8, "bf16")
    assert read_launch(f"{ACCELERATE}/zero3.yaml", 16, 2).processes == 16


def activations(layers: int, checkpointed: bool, rows: int = 4, sequence: int = 50, attention: str = "sdpa"):
    model = build_model(qwen3(layers), torch.bfloat16, attention, lora=None, float32_adapters=False)
    if checkpointed:
        checkpoint_layers(model, None)
    return trace(model, rows, sequence, autocast=None, padded=True)


def test_checkpointing_keeps_the_input_of_every_layer():
    two, five = activations(2, True), activations(5, True)
    assert five.saved - two.saved == 3 * 4 * 50 * 64 * 2
    assert five.peak - two.peak == 3 * 4 * 50 * 64 * 2  # one layer is computed anew at a time
    assert activations(2, False).saved > 5 * two.saved


def test_activations_are_linear_in_rows_and_layers():
    one, two, four = (activations(layers, False) for layers in (1, 2, 4))
    assert four.saved - two.saved == 2 * (two.saved - one.saved)
    wide = activations(2, False, rows=8)
    assert wide.saved == pytest.approx(2 * two.saved, rel=0.02)


def test_a_layer_saves_what_its_operations_need():
    """Of B * T positions, in 2 bytes: the inputs of both norms (in float32 too), what they return, queries, keys and
    values before and after their norms and rotation, the attention's result and log-sum, and the MLP's four."""
    saved = activations(2, False).saved - activations(1, False).saved
    tokens, hidden, inner, heads, kv_heads, size = 4 * 50, 64, 192, 4, 2, 16
    least = tokens * 2 * (4 * hidden + (2 * heads + 3 * kv_heads) * size + 4 * inner)
    assert least < saved < 2.5 * least


def test_eager_attention_saves_its_weights():
    sdpa, eager = (activations(1, False, rows=2, sequence=400, attention=kind) for kind in ("sdpa", "eager"))
    assert eager.saved - sdpa.saved >= 2 * 4 * 400 * 400 * 2  # softmax's result in bfloat16


def test_a_traced_model_needs_no_memory():
    """A fake Qwen3-32B is 65 GB of nothing."""
    model = build_model(
        qwen3(2, vocab_size=151936, hidden_size=5120, intermediate_size=25600), torch.float32, "sdpa", None, False
    )
    sizes = model_sizes(model, 4, 4)
    assert sizes.total > 2e9
    assert all(parameter.is_meta for parameter in model.parameters())


def test_live_bytes_counts_storages_once_and_forgets_them():
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first.view(10, 100)[2:]
        assert live.now == 4000
        second = view + 1
        assert live.now == 4000 + 3200
        del first, view
        assert live.now == 3200
        del second
    assert (live.now, live.peak) == (0, 7200)


def settings(recipe: str, *words: str):
    return read_settings(f"{RECIPES}/{recipe}.yaml", list(words))


def test_qwen3_8b_fits_on_8_gpus_with_zero3_and_not_with_ddp():
    plan = make_plan(QWEN3_8B, settings("qwen3_8b"), read_launch(f"{ACCELERATE}/zero3.yaml", None, None), GPU)
    assert plan.problems == []
    assert plan.model.total == 8_190_735_360
    backward = plan.phases["backward"]
    assert backward["weights"] == 2 * 8_190_735_360 / 8
    assert backward["optimizer states"] == 12 * 8_190_735_360 / 8
    # 36 inputs of layers of 2 rows of 2560 tokens, and little else.
    inputs = 36 * 2 * 2560 * 4096 * 2
    assert inputs < backward["activations"] < 1.2 * inputs
    # vLLM sleeps while the weights are trained.
    assert "vLLM" not in backward and plan.phases["generation"]["vLLM"] == pytest.approx(0.4 * 79 * GIB)


SMALL = qwen3(2)
ZERO3 = read_launch(f"{ACCELERATE}/zero3.yaml", None, None)


def small_plan(*words: str, recipe: str = "qwen3_8b", launch=ZERO3, limits=GPU):
    return make_plan(SMALL, settings(recipe, *words), launch, limits)


def test_options_change_what_they_should():
    plan = small_plan()
    awake = small_plan("--vllm_enable_sleep_mode", "false")
    assert awake.phases["backward"]["vLLM"] == plan.phases["generation"]["vLLM"]
    server = small_plan("--vllm_mode", "server")
    assert server.engine is None and "vLLM" not in server.phases["generation"]
    assert "KV cache" not in server.phases["generation"]
    alone = small_plan("--use_vllm", "false")
    # 128 sequences of 2560 tokens, 2 layers of 2 heads of 16 in bfloat16, one of the two layers twice.
    assert alone.phases["generation"]["KV cache"] == 128 * 2560 * (2 * 2 * 2 * 16 * 2) * 1.5
    assert alone.phases["generation"]["gathered weights and buckets"] == 2 * plan.model.total
    kl = small_plan("--beta", "0.04")
    assert kl.phases["optimizer step"]["reference model"] == 2 * plan.model.total / 8
    assert small_plan("--beta", "0.04", recipe="qwen3_8b_lora").phases["backward"]["reference model"] == 0


def test_what_communication_holds_by_hand():
    """Of a model of 7e9 elements, 2e8 of them a layer and 6e8 the LM head, with weights loaded in float32."""
    sizes = dict(frozen_bytes=2, trainable_bytes=4, block=int(2e8), head=int(6e8), vocabulary=150_000)
    model = ModelSizes(0, int(7e9), head_is_trained=True, layers=32, kv_elements=1000, **sizes)
    held = {strategy: buffers(model, Sharding(strategy, 8, compute_bytes=2)) for strategy in STRATEGIES}
    assert held == {
        "one": 0,
        "ddp": 7e9 * 4,  # a bucket for every gradient, as it is loaded
        "zero2": 5e8 * 2,
        "zero3": (5e8 + 1.05e9 + 6e8) * 2,
        "fsdp2": 2 * (2e8 + 2e8) * 2 + 2 * 6e8 * 2,  # weights and gradients of two layers; embedding and head
    }


def test_lora_trains_its_adapters_alone():
    plan = small_plan("--lora_r", "8", recipe="qwen3_8b_lora", launch=read_launch(f"{ACCELERATE}/multi_gpu.yaml", 8, 1))
    inputs_and_outputs = 64 + 64, 64 + 32, 64 + 32, 64 + 64, 64 + 192, 64 + 192, 192 + 64  # q, k, v, o and the MLP
    adapters = 2 * 8 * sum(inputs_and_outputs)
    assert plan.model.trainable == adapters
    assert plan.phases["backward"]["weights"] == 2 * plan.model.frozen + 4 * adapters
    assert plan.phases["backward"]["optimizer states"] == 8 * adapters
    # To merge adapters for vLLM, ZeRO-3 gathers the whole model at once.
    gathered = small_plan(recipe="qwen3_8b_lora").phases["generation"]["gathered weights and buckets"]
    assert gathered == 2 * small_plan(recipe="qwen3_8b_lora").model.total


def test_a_share_too_small_for_vllm_is_named():
    tight = Limits(memory=3 * GIB, reserve=0, prompt=512)
    plan = small_plan("--vllm_gpu_memory_utilization", "0.5", limits=tight)
    assert any("vllm_max_model_length, 8192" in problem for problem in plan.problems)
    short = small_plan("--vllm_max_model_length", "1024")
    assert short.problems == ["vllm_max_model_length 1024 is shorter than prompt and completion, 2560"]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(qwen3(2).to_dict()))
    return str(path)


def test_the_command_says_fits(tiny, capsys):
    launch = ["--config_file", f"{ACCELERATE}/zero3.yaml", "--config", f"{RECIPES}/qwen3_8b.yaml", "--model", tiny]
    assert main([*launch, "--method", "srpo"]) == 0
    shown = capsys.readouterr().out
    assert "all trained; zero3 on 8 processes" in shown
    assert "fits: " in shown and "->" not in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("total")]
    assert len(rows) == 1 and len(rows[0]) == 4


def test_the_command_says_what_does_not_fit_and_what_helps(tiny, capsys):
    arguments = [
        "--config_file", f"{ACCELERATE}/cpu.yaml", "--config", f"{RECIPES}/smollm2_cpu.yaml", "--model", tiny,
        "--max_completion_length", "2048", "--use_peft", "false", "--reserve_gib", "0",
    ]  # fmt: skip
    assert main([*arguments, "--memory_gib", "8"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--memory_gib", "1.5"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "- backward needs" in shown and "most of it for activations" in shown
    advice = [line for line in shown.splitlines() if line.startswith("-> fits with ")]
    assert any("--gradient_checkpointing true" in line for line in advice)
    # What it advises is so.
    assert main([*arguments, "--memory_gib", "1.5", "--gradient_checkpointing", "true"]) == 0


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "advised"), [("s_trace", True), ("srpo", False)])
def test_a_short_context_is_no_advice_where_the_model_localizes(method, advised, tiny, capsys):
    """vLLM's share holds 2560 tokens of prompt and completion, not 8192, and not what SRPO asks about them either."""
    launch = ["--config_file", f"{ACCELERATE}/zero3.yaml", "--config", f"{RECIPES}/qwen3_8b.yaml", "--model", tiny]
    memory = ["--memory_gib", "4.003", "--reserve_gib", "0", "--vllm_gpu_memory_utilization", "0.5"]
    assert main([*launch, *memory, "--method", method]) == 1
    shown = capsys.readouterr().out
    assert "vLLM's share" in shown and "-> fits with --vllm_mode server" in shown
    assert ("-> fits with --vllm_max_model_length 2560" in shown) == advised


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config_file", "nowhere.yaml"], "nowhere.yaml"),
        (["--config_file", "{list}"], "is no accelerate configuration"),
        (["--config_file", "{zero1}"], "zero_stage 2 and 3"),
        (["--config_file", "{fsdp1}"], "fsdp_version 2"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "nowhere/nothing"], "found no configuration of 'nowhere/nothing'"),
        (["--gradient_chekpointing", "true"], "no option 'gradient_chekpointing'"),
        (["stray"], "'stray' belongs to no option"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be a whole number above 0, got 0"),
        (["--optim", "adafactor"], "optim must be one of"),
        (["--load_in_4bit"], "load_in_4bit is not planned for"),
        (["--dtype", "int3"], "dtype must be auto or one of"),
    ],
)
def test_mistakes_get_one_line(words, message, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "list.yaml").write_text("- 1\n")
    zero3 = (ROOT / "accelerate_configs" / "zero3.yaml").read_text()
    (tmp_path / "zero1.yaml").write_text(zero3.replace("zero_stage: 3", "zero_stage: 1"))
    fsdp2 = (ROOT / "accelerate_configs" / "fsdp2.yaml").read_text()
    (tmp_path / "fsdp1.yaml").write_text(fsdp2.replace("fsdp_version: 2", "fsdp_version: 1"))
    defaults = ["--config_file", f"{ACCELERATE}/zero3.yaml", "--config", f"{RECIPES}/qwen3_8b.yaml", "--model", tiny]
    paths = {name: str(tmp_path / f"{name}.yaml") for name in ("list", "zero1", "fsdp1")}
    assert main([*defaults, *(word.format(**paths) for word in words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("plan: error: ") and printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.thorough
@pytest.mark.parametrize("checkpointed", ["false", "true"])
def test_the_plan_is_within_a_fifth_of_what_training_holds(checkpointed):
    arguments = [
        "--method", "s_trace", "--per_device_train_batch_size", "64", "--gradient_checkpointing", checkpointed,
    ]  # fmt: skip
    measured = accuracy.run_case(arguments, tensors=True)
    planned = accuracy.plan_case(arguments, measured.pop("prompt"))
    for phase, size in measured.items():
        assert 1 / 1.2 < planned[phase] / size < 1.2, (phase, planned[phase], size)


def test_base_model_has_a_plan_by_its_folder(capsys):
    arguments = ["--config_file", f"{ACCELERATE}/cpu.yaml", "--config", f"{RECIPES}/testbed.yaml", "--memory_gib", "4"]
    assert main([*arguments, "--model", str(BASE_MODEL), "--prompt_length", "16"]) == 0
    assert "0.00 B parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "recipe", "words", "noted"),
    [
        ("gpu", "qwen3_8b", [], True),
        ("multi_gpu", "qwen3_8b", [], True),
        ("gpu", "qwen3_8b", ["--dtype", "float32"], False),
        ("zero2", "qwen3_8b", [], False),
        ("fsdp2", "qwen3_8b", [], False),
        ("gpu", "qwen3_8b_lora", [], False),
    ],
)
def test_16_bit_weights_that_would_not_learn_are_noted(config, recipe, words, noted, tiny, capsys):
    launch = ["--config_file", f"{ACCELERATE}/{config}.yaml", "--config", f"{RECIPES}/{recipe}.yaml", "--model", tiny]
    main([*launch, *words])
    assert ("rounded away" in capsys.readouterr().out) == noted


def test_adam_rounds_small_updates_of_16_bit_weights_away():
    """Why they are noted: Adam moves a weight by about the learning rate, and bfloat16 has 8 bits."""
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.nn.Parameter((0.02 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))).to(dtype))
        before = weight.detach().clone()
        optimizer = torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.0)
        for _ in range(20):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[dtype] = (weight != before).float().mean().item()
    assert moved[torch.bfloat16] < 0.05 and moved[torch.float32] > 0.99
