"""Every trainer on a real vLLM engine, TRL's colocate mode on a CPU: `make test-vllm`.

What is compared is log-probabilities of sampled tokens, the engine's against the trainer's: parameters can be equal
while an engine answers from stale ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from credit_trl.testbed import BASE_MODEL
from scripts.vllm_on_cpu import environment
from tests.helpers.launching import HELPERS, ROOT
from tests.helpers.training import save_random_model

pytestmark = pytest.mark.vllm

BLOCK = 32  # tokens, the smallest that vLLM's CPU kernels like; cached prefixes are whole blocks
EXACT = 1e-4  # between two float32 implementations of the same model; at most 7e-6 was seen
STALE = 0.1  # the mean difference of an engine whose weights are not those that are trained; 0.9 to 1.2 was seen
TINY = dict(
    per_device_train_batch_size=16,
    num_generations=8,
    max_completion_length=24,
    max_steps=6,
    num_iterations=2,
    learning_rate=5e-3,
)
SRPO = dict(step_delimiter="pairs", localization_max_tokens=5)
METHODS = {
    "grpo": ("grpo", {}),
    "s_trace": ("s_trace", {}),
    "grpo_lambda": ("grpo_lambda", {}),
    "srpo_self": ("srpo", SRPO | dict(localizer="self")),
    "srpo_random": ("srpo", SRPO | dict(localizer="random")),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A random model that vLLM's CPU attention takes (heads of 32) and that a localization prompt fits into."""
    path = str(tmp_path_factory.mktemp("models") / "tiny")
    return save_random_model(path, hidden_size=64, num_hidden_layers=2, head_dim=32, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def train(tiny, tmp_path_factory):
    """Train in a process of its own and return its record; the same run is not made twice."""
    records: dict[str, dict] = {}

    def train(
        method,
        *,
        model=tiny,
        reward="digit",
        data=None,
        sync=True,
        bias=0.0,
        bias_period=1,
        modes=(),
        engine=None,
        **options,
    ):
        spec = dict(
            method=method,
            model=model,
            reward=reward,
            data=data or {},
            sync=sync,
            bias=bias,
            bias_period=bias_period,
            modes=modes,
            engine={"block_size": BLOCK} | (engine or {}),
            options=TINY | options,
        )
        key = json.dumps(spec)
        if key not in records:
            folder = tmp_path_factory.mktemp("run")
            (folder / "spec.json").write_text(key)
            command = [sys.executable, str(HELPERS / "vllm_run.py"), "spec.json", "record.pt"]
            variables = os.environ | environment() | {"PYTHONPATH": str(ROOT)}
            with (folder / "log").open("w") as log:
                result = subprocess.run(
                    command,
                    cwd=folder,
                    env=variables,
                    stdout=log,
                    stderr=log,
                )
            assert result.returncode == 0, (folder / "log").read_text()[-5000:]
            records[key] = torch.load(folder / "record.pt")
        return records[key]

    return train


def logged(record, name) -> list[float]:
    return [entry[name] for entry in record["log"] if name in entry]


def loss_mask(batch) -> torch.Tensor:
    return (batch["completion_mask"] * batch.get("tool_mask", 1)).bool()


def prefix_lengths(batch) -> torch.Tensor:
    return (batch["completion_mask"].bool() & ~loss_mask(batch)).sum(1)


# --- the engine samples from the weights that are trained ---


@pytest.mark.parametrize("name", METHODS)
def test_sampled_log_probabilities_are_the_trainers_after_every_update(train, name):
    method, options = METHODS[name]
    record = train(method, **options)
    assert len(record["batches"]) == 3 and record["moved"] > 0.01
    for figure in ("mean", "max"):
        differences = logged(record, f"sampling/sampling_logp_difference/{figure}")
        assert len(differences) == 3 and max(differences) < EXACT
    for batch in record["batches"]:
        # On prefixes too, which TRL's metric leaves out: their log-probabilities were carried over from the seed.
        difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()
        assert difference[batch["completion_mask"].bool()].max() < EXACT
    assert any(prefix_lengths(batch).any() for batch in record["batches"]) == (method == "srpo")


@pytest.mark.parametrize("name", ["grpo", "srpo_random"])
def test_without_weight_sync_they_are_not(train, name):
    """The control: the figures above would show a stale engine."""
    method, options = METHODS[name]
    first, *later = logged(train(method, **options, sync=False), "sampling/sampling_logp_difference/mean")
    assert first < EXACT and len(later) == 2 and min(later) > STALE


# --- what the phases of reset groups ask the engine for ---


def test_phases_set_length_and_temperature_of_the_engine_and_restore_them(train):
    record = train("srpo", **SRPO, temperature=0.9, top_p=0.95)
    assert record["settings_after"] == (24, 0.9)
    assert record["syncs"] == len(record["batches"]) == 3  # not once for every phase
    for number, batch in enumerate(record["batches"]):
        base, localization, suffixes = [call for call in record["calls"] if call["batch"] == number]
        prefixes = prefix_lengths(batch).view(-1, 8)[:, 4:].flatten()
        assert prefixes.max() > 0
        asked = [(call["max_tokens"], call["temperature"]) for call in (base, localization, suffixes)]
        assert asked == [(24, 0.9), (5, 0.3), (24 - prefixes.min(), 0.9)]
        assert {(call["n"], call["top_p"], call["logprobs"]) for call in (base, localization, suffixes)} == {
            (1, 0.95, 0)
        }
        assert max(map(len, localization["completions"])) == 5
        assert batch["completion_mask"].sum(1).view(-1, 8)[:, 4:].max() == 24
    # A prompt with the longer prefix may generate more than it has left, which is cut off.
    assert any(len({*prefix_lengths(batch).view(-1, 8)[:, 4].tolist()}) == 2 for batch in record["batches"])


# --- the prefix cache ---

CHAINS = dict(model=str(BASE_MODEL), reward="answer", data=dict(min_steps=16, max_steps=16))
PROMPT = 2 * 16 + 2  # tokens of a chain of 16 operations: its start, operators, operands and the colon


@pytest.mark.parametrize("caching", [True, False])
def test_continuations_reuse_the_cached_prefixes(train, caching):
    """All full blocks of prompt and prefix were computed in the base phase; vLLM computes the last token anew."""
    record = train(
        "srpo",
        **CHAINS,
        engine=dict(enable_prefix_caching=caching),
        max_completion_length=120,
        vllm_max_model_length=PROMPT + 120,
        max_steps=3,
        num_iterations=1,
        learning_rate=1e-4,
        localizer="random",
    )
    assert len(record["batches"]) == 3
    for number, batch in enumerate(record["batches"]):
        suffixes = [call for call in record["calls"] if call["batch"] == number][-1]
        lengths = batch["completion_mask"].sum(1)
        assert lengths.max() <= 120
        rest = [row for row in range(len(lengths)) if row % 8 >= 4]
        ids = [
            row[mask.bool()].tolist()
            for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        ]
        prompts = [
            row[mask.bool()].tolist() for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        prefixes = prefix_lengths(batch).tolist()
        assert suffixes["prompts"] == [prompts[row] + ids[row][: prefixes[row]] for row in rest]
        assert [prompts[row] for row in rest] == [prompt[:PROMPT] for prompt in suffixes["prompts"]]
        expected = [(len(prompt) - 1) // BLOCK * BLOCK * caching for prompt in suffixes["prompts"]]
        assert suffixes["cached"] == expected
        assert suffixes["hits"] == sum(expected)
        assert suffixes["queries"] == sum(map(len, suffixes["prompts"])) * caching
        # More than the prompts alone, whose first block four completions share without any prefix.
        assert (sum(expected) > len(rest) * (PROMPT // BLOCK * BLOCK)) == caching
        # What was read from the cache is what the trainer computes.
        difference = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()
        assert difference[batch["completion_mask"].bool()].max() < EXACT


# --- stop strings ---


@pytest.mark.parametrize("localizer", ["second", "last"])
def test_stop_strings_end_continuations_but_are_not_found_across_the_border(train, localizer):
    """vLLM looks for stop strings in what it generates, not in what it is given: docs/reference/options.md says so."""
    stop = "\n\n#"  # a step's end and the answer's mark
    record = train(
        "srpo",
        **CHAINS,
        localizer=localizer,
        generation_kwargs={"stop": [stop]},
        max_completion_length=120,
        max_steps=1,
    )
    base, suffixes = record["calls"]
    assert base["stop"] == suffixes["stop"] == [stop]
    texts = record["batches"][0]["completions"]
    resets = [text for row, text in enumerate(texts) if row % 8 >= 4]
    for text in (one for row, one in enumerate(texts) if row % 8 < 4):
        assert text.endswith(stop) and text.count(stop) == 1
    decode = AutoTokenizer.from_pretrained(BASE_MODEL).decode
    if localizer == "second":
        assert all(text.endswith(stop) and text.count(stop) == 1 for text in resets)
    else:  # cut after the step's end: the mark comes first, and the text goes on
        assert all(decode(one[:1]) == "#" for one in suffixes["completions"])
        assert all(stop in text and not text.endswith(stop) for text in resets)


# --- vLLM's importance sampling correction ---

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def test_the_correction_of_reset_groups_counts_no_prefix(train):
    """By hand: an engine that is off by known factors, which start anew after the prefix."""
    bias, period, cap = 0.01, 3, 1.3  # so that some rows' products are beyond the cap, and some are not
    record = train(
        "srpo",
        **SRPO,
        bias=bias,
        bias_period=period,
        modes=MODES,
        vllm_importance_sampling_clip_max=cap,
        num_iterations=1,
        max_steps=4,
    )
    for mode, batch, loss in zip(MODES, record["batches"], record["losses"], strict=True):
        mask, prefix = loss_mask(batch), prefix_lengths(batch).unsqueeze(1)
        assert prefix.any()
        since = torch.arange(mask.shape[1]) - prefix
        log_ratio = bias * (1 + since % period) * mask
        if mode.startswith("sequence"):
            log_ratio = log_ratio.sum(1, keepdim=True)
        ratio = log_ratio.exp()
        beyond = ratio > cap
        assert (0 < beyond.sum() < len(beyond)) == mode.startswith("sequence")
        ratio = ratio.clamp(max=cap) if mode.endswith("truncate") else ratio.masked_fill(beyond, 0.0)
        torch.testing.assert_close(batch["importance_sampling_ratio"], ratio, atol=EXACT, rtol=EXACT)
        # On policy, with loss_type="grpo": the mean over completions of the mean over their suffixes.
        per_row = (-batch["advantages"].unsqueeze(1) * ratio * mask).sum(1) / mask.sum(1).clamp(min=1)
        assert loss == pytest.approx(per_row.mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", ["s_trace", "grpo_lambda", "srpo_random"])
def test_with_an_exact_engine_the_correction_changes_nothing(train, name):
    method, options = METHODS[name]
    on = train(method, **options, modes=MODES[:3])
    off = train(method, **options, vllm_importance_sampling_correction=False)
    assert [call["completions"] for call in on["calls"]] == [call["completions"] for call in off["calls"]]
    assert on["losses"] == pytest.approx(off["losses"], abs=1e-4)
    assert logged(on, "grad_norm") == pytest.approx(logged(off, "grad_norm"), rel=1e-3)
    assert max(map(abs, off["losses"])) > 1e-2
    for batch in on["batches"]:
        assert batch["importance_sampling_ratio"].sub(1).abs().max() < 1e-3
        assert "importance_sampling_ratio" not in off["batches"][0]


@pytest.mark.parametrize("name", ["s_trace", "grpo_lambda"])
def test_the_correction_multiplies_the_loss_of_a_traced_ratio(train, name):
    """Not the trace: with the engine off by one factor, the first loss and its gradient are off by that factor."""
    method, options = METHODS[name]
    factor = torch.tensor(0.3).exp().item()
    # By default TRL drops sequences whose product of factors is beyond 3: with this bias, every one.
    on = train(method, **options, bias=0.3, modes=["token_truncate"])
    off = train(method, **options, vllm_importance_sampling_correction=False)
    assert abs(off["losses"][0]) > 1e-3
    assert on["losses"][0] == pytest.approx(factor * off["losses"][0], rel=1e-3)
    assert logged(on, "grad_norm")[0] == pytest.approx(factor * logged(off, "grad_norm")[0], rel=1e-3)


def test_evaluation_with_vllm_has_the_rates_of_transformers(tmp_path):
    """Of 800 samples each; the standard error of the difference is some 0.02."""
    rates = {}
    for engine in ("vllm", "transformers"):
        folder = tmp_path / engine
        options = ["--engine", engine, "--output", str(folder), "--limit", "200", "--k", "4", "--dtype", "float32"]
        subprocess.run(
            [sys.executable, "evaluate.py", *options, "--max_completion_length", "40"],
            env=os.environ | environment(),
            cwd=Path(__file__).parents[2],
            check=True,
        )
        results = json.loads((folder / "results.json").read_text())
        rates[engine] = [results["testbed"]["metrics"][name][0] for name in ("pass@1", "pass@4")]
    assert rates["vllm"] == pytest.approx(rates["transformers"], abs=0.07)
    assert 0.3 < rates["vllm"][0] < 0.5 < rates["vllm"][1]
