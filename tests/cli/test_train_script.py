"""train.py as a user meets it: two steps of every method on the testbed, the recipes, and the usual mistakes."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from credit_trl import SRPOTrainer, STraceConfig, TraceTrainer
from credit_trl.cli import METHODS, UsageError
from credit_trl.cli.arguments import option_names, own_options
from credit_trl.cli.recipe import read_settings
from credit_trl.data.loading import TEST_SEED_OFFSET
from credit_trl.resets.config import RESET_FIELDS
from credit_trl.testbed import BASE_MODEL, make_dataset

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "train.py"
RESETS = [name for name, method in METHODS.items() if issubclass(method.trainer, SRPOTrainer)]
TRACES = [name for name, method in METHODS.items() if issubclass(method.trainer, TraceTrainer)]
QUICK = (
    "--max_steps", "2", "--per_device_train_batch_size", "32", "--steps_per_generation", "1",
    "--dataset_size", "64", "--eval_size", "16", "--eval_samples", "2",
)  # fmt: skip


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(TRAIN), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module", params=METHODS)
def finished_run(request, tmp_path_factory):
    """A method's name, the folder with what its run left, and what it printed. One of them is a process of its own."""
    folder, printed = tmp_path_factory.mktemp(request.param), io.StringIO()
    arguments = ("--method", request.param, *QUICK)
    if request.param == "s_trace":
        result = run(*arguments, folder=folder)
        assert result.returncode == 0, result.stderr
        printed.write(result.stdout)
    else:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["train.py", *arguments, "--use_cpu", "true"])
            patch.setattr(sys, "path", [*sys.path])
            train.main()
    return request.param, folder / "runs" / f"{request.param}-testbed", printed.getvalue()


@pytest.mark.thorough
def test_run_reports_pass_rates(finished_run):
    _, _, printed = finished_run
    rates = re.findall(r"pass rate (before|after) training: ([\d.]+) \(16 held-out problems x 2 completions,", printed)
    assert [when for when, _ in rates] == ["before", "after"]
    for _, rate in rates:
        # 32 completions: the rate is a count of them.
        assert 0 <= float(rate) <= 1
        assert abs(float(rate) * 32 - round(float(rate) * 32)) < 0.02


def test_the_pass_rate_is_sampled_as_in_training(tmp_path, monkeypatch, capsys):
    """Every option of the generation, `generation_kwargs` among them."""
    asked = {}
    options = dict(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.3, max_completion_length=9)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run_args, model_args, args = parse(
        "--method", "grpo", *words, "--generation_kwargs", '{"suppress_tokens": [9]}', "--eval_size", "3",
        "--output_dir", str(tmp_path),
    )  # fmt: skip
    tokenizer = train.load_tokenizer(model_args, args)
    problems = train.load_problems(run_args, tokenizer.chat_template is not None)
    trainer = train.make_trainer(run_args, model_args, args, tokenizer, *problems)
    generate = trainer.model.generate

    def noted(**given):
        asked.update(given["generation_config"].to_dict(), rows=len(given["input_ids"]))
        return generate(**given)

    monkeypatch.setattr(trainer.model, "generate", noted)
    train.measure(trainer, run_args, "before")
    expected = options | {"suppress_tokens": [9], "rows": 3 * 4}
    expected["max_new_tokens"] = expected.pop("max_completion_length")
    assert {name: asked[name] for name in expected} == expected
    assert re.search(r"^pass rate before training: [\d.]+ \(3 held-out problems x 4 ", capsys.readouterr().out)


@pytest.mark.thorough
def test_run_draws_its_learning_curve(finished_run):
    _, output, _ = finished_run
    picture = imread(output / "learning_curve.png")
    assert picture.shape[0] > 400
    assert picture.shape[1] > 700
    red, blue = picture[..., 0], picture[..., 2]
    assert (blue - red > 0.3).sum() > 20  # the curve itself, in blue
    assert np.all(picture[0, :, :3] == 1)  # nothing is cut off at the top


@pytest.mark.thorough
def test_run_saves_a_model_that_learned_something(finished_run):
    _, output, _ = finished_run
    base, trained = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (BASE_MODEL, output))
    changes = [(new - old).abs().max() for old, new in zip(base.parameters(), trained.parameters(), strict=True)]
    # Adam moves a weight by at most about the learning rate a step: 2 steps of 5e-5.
    assert 1e-6 < max(changes) < 3e-4
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.decode(tokenizer("5+12*3:")["input_ids"]) == "5+12*3:"


@pytest.mark.thorough
def test_run_logs_what_its_method_does(finished_run):
    method, output, _ = finished_run
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    assert 0 <= steps[0]["reward"] <= 1
    fractions = [entry.get("trace/eligible_fraction") for entry in steps]
    ratio_spread = [entry.get("trace/ratio_std") for entry in steps]
    resets = [entry.get("reset/seeded_fraction", -1) for entry in steps]
    assert max(resets) > 0 if method in RESETS else resets == [-1, -1]
    if method not in TRACES:
        assert fractions == [None, None]
        return
    assert ratio_spread[0] == 0  # the first use of a batch is on policy ...
    assert ratio_spread[1] > 0  # ... and the second is not
    if method in ("s_trace", "srpo_s_trace"):
        assert all(0.1 < fraction < 0.3 for fraction in fractions)
    else:
        assert fractions == [1.0, 1.0]


@pytest.mark.thorough
def test_run_was_configured_for_its_method(finished_run):
    method, output, _ = finished_run
    args = torch.load(output / "training_args.bin", weights_only=False)
    assert args.num_generations == 8
    assert type(args) is METHODS[method].config
    assert args.importance_sampling_level == ("sequence" if method == "gspo" else "token")
    assert getattr(args, "localizer", None) == {"rrpo": "random"}.get(method, "self" if method in RESETS else None)
    expected = METHODS[method].options | METHODS[method].defaults | METHODS[method].testbed
    assert {name: getattr(args, name) for name in expected} == expected


def test_held_out_problems_are_not_trained_on():
    settings = read_settings(str(ROOT / "recipes" / "testbed.yaml"))
    trained = make_dataset(settings["dataset_size"], **settings["dataset_kwargs"])["prompt"][:]
    held_out = make_dataset(settings["eval_size"], **settings["dataset_kwargs"], seed=TEST_SEED_OFFSET)["prompt"][:]
    assert not set(trained) & set(held_out)


SHARED = ("testbed", "smollm2_cpu", "smollm2_gpu", "qwen3_1.7b", "qwen3_8b", "qwen3_8b_lora")


def parse(*arguments: str):
    return train.parse([*arguments, "--bf16", "false", "--use_cpu", "true"], train.TESTBED)


@pytest.mark.parametrize("method", METHODS)
def test_methods_hold_the_papers_values(method):
    run_args, model_args, args = parse("--config", str(ROOT / "recipes" / "qwen3_1.7b.yaml"), "--method", method)
    assert run_args.method == method
    assert model_args.model_name_or_path == "Qwen/Qwen3-1.7B"
    assert args.output_dir == f"runs/{method}-Qwen3-1.7B"
    assert (args.learning_rate, args.loss_type) == (1e-6, "grpo")
    s_trace = {"trace_entropy_fraction": 0.2, "trust_region": "token", "trace_normalize": True}
    srpo = {"localizer": "self", "localization_temperature": 0.3, "num_reset_prefixes": 1, "step_delimiter": "\n\n"}
    expected = {
        "grpo": {"beta": 0.0, "epsilon": 0.2},
        "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        "grpo_lambda": {"trace_lambda": 0.99, "trace_gamma": 1.0, "negative_advantage_floor": -0.1},
        "p_trace": s_trace | {"trace_entropy_fraction": 1.0},
        "rrpo": {"localizer": "random", "num_reset_prefixes": 1, "num_generations": 8},
        "srpo": srpo,
        "s_trace": s_trace,
        "srpo_s_trace": s_trace | srpo,
    }[method]
    assert {name: getattr(args, name) for name in expected} == expected
    # A batch of completions makes this many optimizer steps.
    assert args.steps_per_generation // args.gradient_accumulation_steps == 4


@pytest.mark.parametrize("method", ["rrpo", "srpo"])
def test_the_reference_recipe_holds_the_authors_values(method):
    words = ("--localization_fallback", "random") if method == "rrpo" else ()  # as the recipe says
    recipe = str(ROOT / "recipes" / "srpo_reference.yaml")
    run_args, model_args, args = parse("--config", recipe, "--method", method, *words)
    assert (run_args.method, model_args.lora_r, model_args.lora_alpha) == (method, 64, 64)
    localization = {"srpo": ("self", "first"), "rrpo": ("random", "random")}[method]
    assert (args.localizer, args.localization_fallback) == localization
    expected = {
        "step_delimiter": "</thought>", "seed_source": "fresh", "max_seed_attempts": 12,
        "localization_temperature": 0.3, "localization_max_tokens": 4096, "temperature": 0.7, "top_p": 0.95,
        "learning_rate": 5e-5, "beta": 0.0, "weight_decay": 0.01, "max_grad_norm": 1.0, "loss_type": "grpo",
        "num_generations": 8, "num_train_epochs": 2,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    # On the 8 processes that it is for: 32 prompts a batch, 64 completions an optimizer step.
    assert 8 * args.per_device_train_batch_size * args.steps_per_generation == 32 * args.num_generations
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", SHARED)
def test_recipes_go_with_every_method(recipe, method):
    run_args, model_args, args = parse("--config", str(ROOT / "recipes" / f"{recipe}.yaml"), "--method", method)
    assert run_args.method == method
    assert args.output_dir.startswith(f"runs/{method}-")
    assert run_args.reward_funcs == [
        {"testbed": "testbed", "smollm2_cpu": "task", "smollm2_gpu": "task"}.get(recipe, "accuracy")
    ]
    assert model_args.use_peft == (recipe in ("smollm2_cpu", "smollm2_gpu", "qwen3_8b_lora"))
    # SRPO refuses less: a process's share of a generation batch holds whole groups.
    assert args.per_device_train_batch_size * args.steps_per_generation % args.num_generations == 0


@pytest.mark.parametrize("method", RESETS)
@pytest.mark.parametrize("recipe", ["smollm2_cpu", "smollm2_gpu"])
def test_reset_groups_on_a_real_model_take_lines_for_steps(recipe, method):
    path = str(ROOT / "recipes" / f"{recipe}.yaml")
    run_args, model_args, args = parse("--config", path, "--method", method)
    assert (run_args.reward_funcs, model_args.use_peft) == (["task"], True)
    assert (args.step_delimiter, args.localization_max_tokens, args.num_iterations) == ("\n", 32, 1)
    assert "one short step a line" in run_args.instruction


def test_options_of_some_methods_are_passed_over_by_the_others(tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text("dataset_name: testbed\nmethod_options: {reset_offset: 1, trace_lambda: 0.5, trace_gamma: 0.4}\n")
    words = ("--config", str(recipe), "--method")
    assert parse(*words, "srpo")[2].reset_offset == 1
    assert not hasattr(parse(*words, "s_trace")[2], "reset_offset")
    args = parse(*words, "srpo_s_trace", "--trace_gamma", "0.3")[2]
    assert (args.reset_offset, args.trace_lambda, args.trace_gamma) == (1, 0.5, 0.3)


@pytest.mark.parametrize(
    ("method", "option", "value"), [("rrpo", "localizer", "self"), ("p_trace", "trace_entropy_fraction", 0.5)]
)
def test_a_method_is_not_turned_into_another_one(tmp_path, method, option, value):
    """A run called RRPO would train SRPO, whose recipe says `localizer: self`."""
    recipe = tmp_path / "my.yaml"
    recipe.write_text(f"dataset_name: testbed\n{option}: {value}\n")
    for words in (("--config", str(recipe)), (f"--{option}", str(value))):
        with pytest.raises(UsageError, match=rf"--method {method} is {option}=.*, and {option} is set to {value!r}"):
            parse("--method", method, *words)


def test_every_recipe_is_parsed_by_a_test():
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == {*SHARED, "srpo_reference"}


@pytest.mark.parametrize("recipe", ["qwen3_8b", "qwen3_8b_lora"])
def test_qwen3_8b_recipes_generate_in_vllm_here_or_on_a_server(recipe):
    path = str(ROOT / "recipes" / f"{recipe}.yaml")
    _, model_args, here = parse("--config", path, "--method", "srpo")
    assert model_args.model_name_or_path == "Qwen/Qwen3-8B"
    assert (here.use_vllm, here.vllm_mode) == (True, "colocate")
    # The question where a completion went wrong has the completion in it, and an answer of its own.
    assert here.max_completion_length + here.localization_tokens < here.vllm_max_model_length
    _, _, there = parse("--config", path, "--method", "srpo", "--vllm_mode", "server")
    assert there.vllm_mode == "server"


def test_nothing_chosen_is_s_trace_on_the_testbed():
    run_args, model_args, args = parse()
    assert (run_args.method, run_args.dataset_name) == ("s_trace", "testbed")
    assert model_args.model_name_or_path == str(BASE_MODEL)
    assert type(args) is STraceConfig
    assert args.output_dir == "runs/s_trace-testbed"


def test_the_command_line_overrides_the_file_which_overrides_the_method(tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text("method: p_trace\ndataset_name: testbed\nlearning_rate: 3e-6\ntrace_lambda: 0.6\n")
    run_args, _, args = parse("--config", str(recipe), "--learning_rate", "4e-6")
    assert (run_args.method, args.learning_rate, args.trace_lambda) == ("p_trace", 4e-6, 0.6)
    run_args, _, args = parse(f"--config={recipe}", "--method=s_trace")
    assert (run_args.method, args.learning_rate, args.trace_lambda) == ("s_trace", 3e-6, 0.6)
    _, _, args = parse("--method", "gspo", "--dataset_name", "testbed")
    assert (args.importance_sampling_level, args.loss_type) == ("sequence", "grpo")
    assert args.epsilon == 0.2  # the testbed's
    _, _, args = parse("--method", "gspo", "--dataset_name", "testbed", "--model_name_or_path", "some/model")
    assert args.epsilon == 3e-4
    recipe.write_text("method: gspo\ndataset_name: testbed\nepsilon: 0.1\n")
    _, _, args = parse("--config", str(recipe))
    assert (args.epsilon, args.epsilon_high) == (0.1, 0.2)
    _, _, args = parse("--method", "gspo", "--dataset_name", "testbed", "--loss_type", "dapo")
    assert (args.importance_sampling_level, args.loss_type) == ("sequence", "dapo")


def test_options_of_a_task_come_as_json_or_as_a_mapping(tmp_path):
    run_args, _, _ = parse("--dataset_name", "testbed", "--dataset_kwargs", '{"max_steps": 5}')
    assert run_args.dataset_kwargs == {"max_steps": 5}
    run_args, _, _ = parse()
    assert run_args.dataset_kwargs == {"min_steps": 4, "max_steps": 6}


def test_help_shows_the_methods_own_options_and_their_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--method", "p_trace", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert shown.startswith("usage: python train.py [--method METHOD] [--config FILE.yaml]")
    assert "S-trace on the testbed" in shown
    assert re.search(r"--trace_entropy_fraction .*? \(default: 1\.0\)", shown)  # P-trace's, not S-trace's 0.2
    with pytest.raises(SystemExit):
        parse("--method", "grpo", "--help")
    assert "--trace_entropy_fraction" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["grpo", "srpo"])
def test_help_names_every_option_once_and_ours_first(method, capsys):
    with pytest.raises(SystemExit):
        parse("--method", method, "--help")
    shown = capsys.readouterr().out
    named = re.findall(r"^  --(\w+) ", shown, flags=re.M)
    assert len(named) == len(set(named))
    assert set(named) == set(option_names(method))
    own = own_options(method)
    assert named[0] == "method"
    first_of_the_model = named.index("model_name_or_path")
    assert named[first_of_the_model - len(own) : first_of_the_model] == own
    assert own == ([] if method == "grpo" else list(RESET_FIELDS))
    assert max(map(len, shown.splitlines())) <= 120


def test_one_reward_in_yaml_needs_no_brackets(tmp_path):
    recipe = tmp_path / "my.yaml"
    recipe.write_text("dataset_name: testbed\nreward_funcs: testbed\n")
    assert parse("--config", str(recipe))[0].reward_funcs == ["testbed"]


def test_a_reward_may_lie_where_the_run_starts(tmp_path, monkeypatch):
    """`python elsewhere/train.py` puts the script's folder on Python's path, and not the one that it is called in."""
    (tmp_path / "rewards_of_mine.py").write_text("def mine(completions, **kwargs):\n    return [1.0] * 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    run_args, model_args, args = parse("--reward_funcs", "rewards_of_mine.mine", "--report_to", "none")
    tokenizer = train.load_tokenizer(model_args, args)
    problems = train.load_problems(run_args, tokenizer.chat_template is not None)
    trainer = train.make_trainer(run_args, model_args, args, tokenizer, *problems)
    assert trainer.reward_func_names == ["mine"]


CPU = ["--bf16", "false", "--use_cpu", "true"]
ON_TINY = ["--model_name_or_path", "{model}", *CPU]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "there is no file nowhere.yaml in "),
        (["--config", "{list}"], "must hold a mapping of option: value, and holds a list"),
        (["--config", "{broken}"], "is no valid YAML"),
        (["--config", "{sarsa}"], f"must be one of {', '.join(METHODS)}, got 'sarsa'"),
        (["--config", "{some}", *CPU], "no option 'trace_lamda' with --method s_trace; did you mean trace_lambda?"),
        (["--config", "{typo}", *CPU], "no option 'trace_lamda' with --method s_trace; did you mean trace_lambda?"),
        (["--trace_lamda", "1", *CPU], "no option 'trace_lamda' with --method s_trace; did you mean trace_lambda?"),
        (
            ["--method", "grpo", "--trace_lambda", "1", *CPU],
            "no option 'trace_lambda' with --method grpo; it belongs to grpo_lambda, p_trace, s_trace, srpo_s_trace",
        ),
        (["--config", "{kernel}", *CPU], "trace_kernel must be one of"),
        (["--num_generations", "7", *CPU], "must be divisible by num_generations (7)"),
        (["--model_name_or_path", "./nowhere", "--dataset_name", "testbed", *CPU], "no model folder ./nowhere"),
        (["--model_name_or_path", "./nowhere", *CPU], "dataset_name is missing"),
        (["--dataset_name", "reasoning-gym/chain_sum", *CPU], "model_name_or_path is missing"),
        (["--dataset_kwargs", "{{", *CPU], "dataset_kwargs is no JSON object"),
        (["--dataset_name", "nowhere.jsonl", "--model_name_or_path", "{model}", *CPU], "no file nowhere.jsonl"),
        (
            ["--dataset_name", "{rows}", "--model_name_or_path", "{model}", *CPU],
            "has no column 'prompt'. It has question",
        ),
        (
            ["--dataset_name", "{rows}", "--prompt_column", "question", "--model_name_or_path", "{model}", *CPU],
            "accuracy_reward needs a column `solution` or `answer`, and the data set has prompt",
        ),
        (["--reward_funcs", "acuracy", *CPU], "unknown reward function 'acuracy': use one of accuracy"),
        (
            ["--reward_funcs", "nowhere.reward", *CPU],
            "cannot load the reward function 'nowhere.reward': No module named",
        ),
        (["recipes/qwen3_8b.yaml"], "did you mean --config recipes/qwen3_8b.yaml?"),
        (["--config", "{binary}"], "binary.yaml is no UTF-8 text: save it as UTF-8"),
        (["--config", "{methods}"], f"must be one of {', '.join(METHODS)}, got ['srpo']"),
        (["--dataset_kwargs", "[1]", *CPU], "dataset_kwargs must be a mapping of option: value, got [1]"),
        (["--dataset_kwargs", '{{"max_stepz": 5}}', *CPU], "unexpected keyword argument 'max_stepz'"),
        (["--dataset_size", "0", *CPU], "dataset_size must be at least 1, got 0"),
        (["--eval_size", "0", *CPU], "eval_size must be at least 1, got 0"),
        (["--eval_samples", "-1", *CPU], "eval_samples must be at least 1, got -1"),
        (["--dataset_train_split", "trian", *CPU], "testbed has the splits train and test, got 'trian'"),
        (["--dataset_name", "{empty}", "--model_name_or_path", "{model}", *CPU], "empty.jsonl is empty"),
        (["--dataset_name", "{cut}", "--model_name_or_path", "{model}", *CPU], "cut.jsonl: JSON parse error"),
        (
            ["--dataset_name", "{numbers}", "--model_name_or_path", "{model}", *CPU],
            "a problem is text or a list of messages, and 'prompt' holds 3",
        ),
        (
            ["--dataset_name", "{rows}", "--answer_column", "anwser", "--prompt_column", "question", *ON_TINY],
            "has no column 'anwser'. It has prompt: choose with prompt_column and answer_column",
        ),
        (
            ["--dataset_name", "{rows}", "--dataset_kwargs", '{{"rows": 5}}', "--model_name_or_path", "{model}", *CPU],
            "unexpected keyword argument 'rows'",
        ),
        (
            ["--dataset_name", "nobody/nothing", "--model_name_or_path", "{model}", *CPU],
            "cannot load the data set nobody/nothing, which is no path in ",
        ),
        (
            ["--model_name_or_path", "nobody/nothing", "--dataset_name", "testbed", *CPU],
            "cannot load the tokenizer of nobody/nothing, which is no path in ",
        ),
        (
            ["--model_name_or_path", "{bare}", "--dataset_name", "testbed", *CPU],
            "save it there with tokenizer.save_pretrained",
        ),
        (["--model_name_or_path", "{folder}", "--dataset_name", "testbed", *CPU], "cannot load the tokenizer of "),
        (["--resume_from_checkpoint", "nowhere", *CPU], "there is no checkpoint nowhere: give the folder of one"),
        (["--report_to", "wandbb", *CPU], "wandbb is not supported, only"),
        (["--report_to", "swanlab", *CPU], "report_to: SwanLabCallback requires swanlab to be installed"),
        (
            ["--attn_implementation", "flash_attention_2", *CPU],
            "package for FlashAttention2 doesn't seem to be installed",
        ),
        (["--output_dir", "{empty}", *CPU], "empty.jsonl is a file: choose another folder"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_mistakes_get_one_clear_line(arguments, message, tmp_path, monkeypatch):
    files = {
        "list": ("list.yaml", "- grpo\n"),
        "broken": ("broken.yaml", "method: [grpo\nlearning_rate: 1"),
        "sarsa": ("sarsa.yaml", "method: sarsa\n"),
        "typo": ("typo.yaml", "dataset_name: testbed\ntrace_lamda: 0.9\n"),
        "kernel": ("kernel.yaml", "dataset_name: testbed\ntrace_kernel: newest\n"),
        "some": ("some.yaml", "dataset_name: testbed\nmethod_options: {trace_lamda: 0.9}\n"),
        "rows": ("rows.jsonl", '{"question": "1 + 1?"}\n'),
        "binary": ("binary.yaml", "\xff"),
        "methods": ("methods.yaml", "method: [srpo]\n"),
        "empty": ("empty.jsonl", ""),
        "cut": ("cut.jsonl", '{"prompt": "1 + 1?", \n'),
        "numbers": ("numbers.jsonl", '{"prompt": 3, "solution": "2"}\n'),
    }
    for name, text in files.values():
        (tmp_path / name).write_text(text, encoding="latin-1")
    paths = {key: tmp_path / name for key, (name, _) in files.items()}
    paths |= {"folder": tmp_path / "folder", "bare": tmp_path / "bare"}
    paths["folder"].mkdir()
    paths["bare"].mkdir()
    shutil.copy(BASE_MODEL / "config.json", paths["bare"])  # a model's folder without its tokenizer
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *(text.format(model=BASE_MODEL, **paths) for text in arguments)])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert isinstance(stopped.value.code, str)  # printed to stderr, and the exit status is 1
    assert stopped.value.code.startswith("train.py: error: ")
    assert "\n" not in stopped.value.code
    assert message in stopped.value.code


@pytest.mark.parametrize("error", [KeyError("lengths"), ValueError("size mismatch"), RuntimeError("no kernel")])
def test_any_other_error_keeps_its_traceback(error, tmp_path, monkeypatch):
    """Also one of the kinds that mistakes raise, once the run has begun."""

    def fails(*args, **kwargs):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *QUICK, "--eval_pass_rate", "false", "--use_cpu", "true"])
    monkeypatch.setattr(METHODS["s_trace"].trainer, "__init__" if isinstance(error, KeyError) else "train", fails)
    with pytest.raises(type(error)) as raised:
        train.main()
    assert raised.value is error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "sarsa"], "argument --method: invalid choice: 'sarsa'"),
        (["--trace_kernel", "newest"], "argument --trace_kernel/--trace-kernel: invalid choice: 'newest'"),
    ],
)
def test_a_value_that_is_no_choice_is_refused_by_the_parser(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mistake_ends_the_process_without_a_traceback(tmp_path):
    result = run("--config", "nowhere.yaml", folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("train.py: error: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


CHECK = ("--model_name_or_path", str(BASE_MODEL))  # bf16, the default, would need a GPU
SOUND = '{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "2 + 3?", "answer": "so 5\\n#### 5"}\n'


def checked(folder, rows, monkeypatch, *more):
    (folder / "rows.jsonl").write_text(rows)
    data = ("--dataset_name", str(folder / "rows.jsonl"), "--prompt_column", "question", "--answer_column", "answer")
    monkeypatch.setattr(sys, "argv", ["train.py", *CHECK, *data, *more])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    return stopped.value.code


def test_check_rewards_prints_the_table_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "make_trainer", None)
    assert checked(tmp_path, SOUND, monkeypatch, "--check_rewards") == 0
    printed = capsys.readouterr().out
    assert "accuracy_reward" in printed and "All is well in 2 rows" in printed


def test_check_rewards_fails_where_the_rewards_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "always.py").write_text("def right(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert checked(tmp_path, SOUND, monkeypatch, "--check_rewards", "--reward_funcs", "always.right") == 1
    assert "All is well" not in capsys.readouterr().out


def test_a_run_warns_of_its_rewards_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    def stop(*arguments):
        raise SystemExit("before the trainer")

    (tmp_path / "always.py").write_text("def right(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(train, "make_trainer", stop)
    on_cpu = ("--bf16", "false", "--use_cpu", "true")
    assert checked(tmp_path, SOUND, monkeypatch, *on_cpu, "--reward_funcs", "always.right") == "before the trainer"
    warning = capsys.readouterr().err
    assert "Check the rewards: " in warning and "--check_rewards" in warning
    assert checked(tmp_path, SOUND, monkeypatch, *on_cpu) == "before the trainer"
    assert "Check the rewards" not in capsys.readouterr().err
