"""Every field of TRL's `GRPOConfig` under reset groups: as in TRL or refused by name, as the options' page says.

Without failures a run equals `GRPOTrainer`'s to the bit. With failures the loss of a continuation is that of a
completion whose prompt ends in the prefix, and what is sampled after a prefix is what would have followed it anyway.
"""

import re
import zlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.traces.config import TRACE_FIELDS
from tests.helpers.comparing import largest_difference, same_log, same_weights
from tests.helpers.options import OPTIONS as TRACE_OPTIONS
from tests.helpers.options import TRAINER_OPTIONS, experts
from tests.helpers.scripted import BY_HAND, PREFIX, A, B, Kept, Scripted, oracle

DOCS = (Path(__file__).parents[2] / "docs" / "reference" / "options.md").read_text()

REFUSED = ("vllm_structured_outputs_regex",)
IDLE = [name for name in TRACE_OPTIONS if name.startswith("vllm_") and name not in REFUSED]
IDLE.remove("vllm_importance_sampling_cap")  # another name of `vllm_importance_sampling_clip_max`
IDLE += ["trust_remote_code", "disable_dropout", "ds3_gather_for_generation", "chat_template_kwargs"]
IDLE += ["max_tool_calling_iterations", "transformers_continuous_batching_config", "num_generations_eval"]
# Fields that do not hide each other share a run.
TOGETHER = {
    "idle": IDLE,  # on this machine and with this model
    "rows and rates": ["remove_unused_columns", "shuffle_dataset", "learning_rate"],
    "precision": ["model_init_kwargs", "cast_lm_head_to_fp32"],
    "epsilon": ["epsilon", "epsilon_high"],
    "sapo": ["sapo_temperature_neg", "sapo_temperature_pos"],
    "vespo": ["vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"],
    "reference model": ["sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"],
    "entropy upwards": ["use_adaptive_entropy", "entropy_coef_max"],
    "entropy around a target": ["entropy_coef_delta", "entropy_target"],
    "log": ["log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"],
}
SHARING = {name for names in TOGETHER.values() for name in names}
TOGETHER |= {
    name: [name]
    for name, options in TRACE_OPTIONS.items()
    if options and name not in (*SHARING, *REFUSED, "loss_type", "router_aux_loss_coef")
}
OPTIONS = {
    case: {key: value for name in names for key, value in TRACE_OPTIONS[name].items() if key not in TRACE_FIELDS}
    for case, names in TOGETHER.items()
}
OPTIONS["importance_sampling_level"] = dict(importance_sampling_level="sequence")
for loss_type in ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "luspo"):  # and "sapo" and "vespo" above
    OPTIONS[f"loss_type={loss_type}"] = dict(loss_type=loss_type)
OPTIONS |= TRAINER_OPTIONS
NO_FAILURE = dict(failure_threshold=-1.0, suffixes_per_prefix=2, localizer="random")


class PairByPair:
    """Samples two rows of a prompt at a time, from a seed of its own and of how often it came: in whatever batch."""

    def _generate_single_turn(self, prompt_ids, *rest):
        counts, sampled = vars(self).setdefault("counts", Counter()), []
        with torch.random.fork_rng(devices=[]):
            for first, second in zip(prompt_ids[::2], prompt_ids[1::2], strict=True):
                assert first == second
                torch.manual_seed(zlib.crc32(repr((first, counts[tuple(first)])).encode()))
                counts[tuple(first)] += 1
                sampled += super()._generate_single_turn([first, second], *rest)[0]
        return sampled, None


def check_acts_as_in_trl(run, options, *mixins):
    mixins = (*mixins, PairByPair)
    short = dict(max_completion_length=9, max_steps=3, num_iterations=2)  # two generation batches
    options = dict(loss_type=GRPOConfig.loss_type) | short | options
    _, expected, expected_log = run(type("TheirTrainer", (*mixins, GRPOTrainer), {}), GRPOConfig, **options)
    _, actual, actual_log = run(type("OurTrainer", (*mixins, SRPOTrainer), {}), SRPOConfig, **NO_FAILURE, **options)
    same_weights(actual, expected)
    same_log(actual_log, expected_log, added="reset/")
    return expected


@pytest.mark.thorough
@pytest.mark.parametrize("case", OPTIONS)
def test_without_failures_a_field_acts_as_in_trl(run, case):
    check_acts_as_in_trl(run, OPTIONS[case])


def test_without_failures_the_auxiliary_loss_of_experts_acts_as_in_trl(run, tiny_model, tmp_path):
    check_acts_as_in_trl(run, TRACE_OPTIONS["router_aux_loss_coef"], experts(tiny_model, tmp_path))


def test_the_comparison_is_of_something(run):
    """The same run with failures has resets and goes elsewhere."""
    ours = type("OurTrainer", (PairByPair, SRPOTrainer), {})
    _, plain, _ = run(ours, SRPOConfig, **NO_FAILURE)
    _, reset, log = run(ours, SRPOConfig, **NO_FAILURE | dict(failure_threshold=1.0))
    assert largest_difference(reset, plain) > 1e-4
    assert max(entry.get("reset/seeded_fraction", 0) for entry in log) > 0


def test_every_field_of_trl_is_known():
    """A field that TRL adds fails here: think of what it does to a prefix, then give it a value or refuse it."""
    tried = {*SHARING, *OPTIONS, "loss_type", "router_aux_loss_coef"}
    engines = {name for name, options in TRACE_OPTIONS.items() if options is None}
    assert set(GRPOConfig.__annotations__) == {*TRACE_OPTIONS} <= tried | engines | {*REFUSED}
    table = DOCS.split("## `SRPOTrainer`: TRL's options")[1].split("\n## ")[0]
    refused = re.findall(r"^\| `(\w+)` \| refused[:;] ", table, flags=re.M)
    assert {name for name in refused if name in GRPOConfig.__annotations__} == {*REFUSED}


# --- with resets ---

LOSSES = {loss_type: dict(loss_type=loss_type) for loss_type in ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo")}
LOSSES |= {
    "luspo": dict(loss_type="luspo", importance_sampling_level="sequence"),
    "vespo": dict(loss_type="vespo"),
    "importance_sampling_level": dict(importance_sampling_level="sequence"),
    "beta": dict(beta=0.1, use_bias_correction_kl=False),
    "use_bias_correction_kl": dict(beta=0.1, use_bias_correction_kl=True, importance_sampling_level="sequence"),
    "top_entropy_quantile": dict(top_entropy_quantile=0.4),
    "entropy_coef": dict(entropy_coef=0.05),
    "off_policy_mask_threshold": dict(off_policy_mask_threshold=1e-4),
    "delta": dict(delta=1.01),
    "mask_truncated_completions": dict(mask_truncated_completions=True),
    "pad_to_multiple_of": dict(pad_to_multiple_of=16),
}


def prefix_in_the_prompt(inputs):
    """The same batch with every prefix moved from the completion to the prompt."""
    completion_mask, tool_mask = inputs["completion_mask"].bool(), inputs["tool_mask"].bool()
    lengths = (completion_mask & ~tool_mask).sum(1).tolist()
    parts = {"prompt_ids": [], "prompt_mask": []}
    for row, length in enumerate(lengths):
        prefix = inputs["completion_ids"][row, :length]
        parts["prompt_ids"].append(torch.cat([inputs["prompt_ids"][row], prefix]))
        parts["prompt_mask"].append(torch.cat([inputs["prompt_mask"][row], torch.ones_like(prefix)]))
    longest = max(map(len, parts["prompt_ids"]))
    moved = dict(inputs, tool_mask=torch.ones_like(inputs["completion_mask"]))
    for name, rows in parts.items():  # 0 is the padding token's id too
        moved[name] = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    for name in ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps"):
        if name in inputs:
            rows = [torch.nn.functional.pad(row[k:], (0, k)) for row, k in zip(inputs[name], lengths, strict=True)]
            moved[name] = torch.stack(rows)
    return moved, sum(lengths)


@pytest.mark.thorough
@pytest.mark.parametrize("case", LOSSES)
def test_the_loss_of_a_continuation_is_that_of_a_completion_whose_prompt_ends_in_the_prefix(make, case):
    compared = []

    class BothWays:
        def _compute_loss(self, model, inputs):
            moved, prefix_tokens = prefix_in_the_prompt(inputs)
            assert prefix_tokens == (18 if case == "mask_truncated_completions" else 24)
            found = []
            for batch in (moved, inputs):
                self._metrics["train"].clear()
                loss = super()._compute_loss(model, batch)
                gradient = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
                metrics = {name: values[-1] for name, values in self._metrics["train"].items()}
                found.append((loss.detach(), gradient, metrics))
            compared.append(found)
            return loss

        def get_high_entropy_mask(self, entropies, mask, threshold):
            # Some completions are alike, and rounding would decide which of them reach a quantile that is theirs.
            return super().get_high_entropy_mask(entropies.round(decimals=4), mask, threshold)

    trainer = make(
        BothWays,
        Scripted,
        data=Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]}),
        localizer=oracle,
        **dict(max_completion_length=40, num_iterations=3, max_steps=3, learning_rate=1e-3) | LOSSES[case],
    )
    right, _, *wrong = BY_HAND[A + PREFIX]
    trainer.script = BY_HAND | {A + PREFIX: [right, "+" * 40, *wrong]}  # the second has no end
    trainer.train()
    assert len(compared) == 3  # the ratios have left 1 in the second
    for (loss, gradient, metrics), (our_loss, our_gradient, our_metrics) in compared:
        torch.testing.assert_close(our_loss, loss, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-3, atol=1e-5)
        assert our_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6, nan_ok=True)
    # What is compared is no rounding error: vespo's weights leave little after the first step.
    assert max(one.abs().max() for _, (_, gradient, _) in compared for one in gradient) > 1e-3


# A temperature at which only the most likely token is left, and a reset a third and two thirds into the completions.
COLD = dict(
    temperature=1e-5,
    step_delimiter=lambda text: range(1, len(text)),
    localizer=lambda failed: [len(one.steps) * (k + 1) // 3 for k, one in enumerate(failed)],
)
SAMPLING = {
    "temperature": {},
    "top_p": dict(top_p=0.8),
    "top_k": dict(top_k=5),
    "min_p": dict(min_p=0.1),
    "repetition_penalty": dict(repetition_penalty=1.5),
    "generation_kwargs": dict(generation_kwargs={"suppress_tokens": [5], "no_repeat_ngram_size": 3}),
    "cache_implementation": dict(cache_implementation="static"),
    "pad_to_multiple_of": dict(pad_to_multiple_of=16),
    "cast_lm_head_to_fp32": dict(cast_lm_head_to_fp32=True),
}
CONTINUOUS = dict(
    use_transformers_continuous_batching=True,
    transformers_continuous_batching_config={"num_blocks": 64, "max_batch_tokens": 512, "page_size": 16},
)


def failing(completions, **kwargs):
    return [0.0] * len(completions)


def rollout_cold(make, *mixins, **options):
    """The completions of 2 prompts as texts, 8 each, of which the last 4 continue a prefix; and the trainer."""
    model = make().model
    with torch.no_grad():
        model.lm_head.weight[:2] = 0  # a logit of 0 for the end and for padding, which some other token is always above
    trainer = make(Kept, *mixins, reward=failing, model=model, **COLD | options)
    trainer.train()
    (output,) = trainer.outputs
    texts = [
        trainer._engine.exact_text(ids[mask.bool()])
        for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
    ]
    prefixes = (output["completion_mask"] * (1 - output["tool_mask"])).sum(1).view(2, 8)
    assert (prefixes[:, :4] == 0).all() and (prefixes[:, 4:] > 0).all()
    return texts, trainer


@pytest.mark.thorough
@pytest.mark.parametrize("case", SAMPLING)
def test_a_prefix_is_continued_as_the_completion_would_have_been(make, case):
    texts, _ = rollout_cold(make, **SAMPLING[case])
    for prompt in (0, 1):
        assert len(set(texts[prompt * 8 : prompt * 8 + 8])) == 1
    if case in ("repetition_penalty", "generation_kwargs"):
        assert texts != rollout_cold(make)[0]


# --- continuous batching ---


@pytest.mark.thorough
def test_continuous_batching_samples_what_generate_does(make):
    texts, _ = rollout_cold(make, **CONTINUOUS)
    assert texts == rollout_cold(make)[0]
    assert len(set(texts)) == 2  # one of each prompt: its prefixes were continued as the completion would have been


@pytest.mark.thorough
def test_continuous_batching_keeps_to_the_budget_of_every_phase(make):
    calls = []

    class Watched:
        def _generate_single_turn(self, prompt_ids, *rest):
            output = super()._generate_single_turn(prompt_ids, *rest)
            settings = self.generation_config
            calls.append((settings.max_new_tokens, settings.temperature, [len(ids) for ids in output[0]]))
            return output

    options = dict(localizer="self", localization_max_tokens=7, localization_temperature=0.5, max_completion_length=22)
    options |= dict(localization_template="{problem}{completion}")
    _, trainer = rollout_cold(make, Watched, **CONTINUOUS | options)
    (output,) = trainer.outputs
    prefixes = (output["completion_mask"] * (1 - output["tool_mask"])).sum(1).view(2, 8)[:, 4:]
    phases = [(22, COLD["temperature"], 8), (7, 0.5, 2), (22 - prefixes.min(), COLD["temperature"], 8)]
    assert [(budget, temperature, len(lengths)) for budget, temperature, lengths in calls] == phases
    for budget, _, lengths in calls:
        assert max(lengths) == budget  # reached by this model, which seldom ends, and not exceeded
    assert prefixes.max() > prefixes.min()
    assert output["completion_mask"].sum(1).max() == 22
