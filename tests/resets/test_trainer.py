"""The reset trainer: against GRPO where nothing fails, a batch worked by hand, and what every phase asks for."""

import inspect
import json
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import pandas
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from credit_trl import GRPOLambdaConfig, SRPOConfig, SRPOTrainer, STraceConfig, STraceTrainer
from credit_trl.resets.config import RESET_FIELDS
from credit_trl.testbed import BASE_MODEL, Problem, answer_reward, first_error, make_dataset
from credit_trl.traces.kernels import eligibility_trace
from tests.helpers.comparing import TIMES, largest_difference, same_weights
from tests.helpers.scripted import BY_HAND, PREFIX, RIGHT_A, WRONG_A, A, B, Kept, Scripted, oracle
from tests.helpers.training import digit_reward


def is_time(name):
    return any(word in name for word in TIMES)


# --- nothing failed ---


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_without_failures_srpo_is_grpo_to_the_bit(run, loss_type):
    class Fixed(Scripted):
        def text(self, prompt, k):
            generator = torch.Generator().manual_seed(100 * sum(map(ord, prompt)) + k)
            length = int(torch.randint(1, 10, (), generator=generator))
            return "".join(map(str, torch.randint(0, 10, (length,), generator=generator).tolist()))

    theirs = type("Theirs", (Fixed, GRPOTrainer), {})
    ours = type("Ours", (Fixed, SRPOTrainer), {})
    options = dict(loss_type=loss_type, max_completion_length=12, beta=0.1, use_bias_correction_kl=False)
    split = dict(suffixes_per_prefix=2, localizer="random")
    _, expected, expected_log = run(theirs, **options)
    _, actual, actual_log = run(ours, SRPOConfig, **options, **split, failure_threshold=-1.0)
    same_weights(actual, expected)
    for our, their in zip(actual_log, expected_log, strict=True):
        for name, value in their.items():
            assert our[name] == value or any(word in name for word in ("time", "per_second")), name
    assert any(entry.get("grad_norm", 0) > 0 for entry in actual_log)
    # The same run with failures goes elsewhere.
    _, reset, reset_log = run(ours, SRPOConfig, **options, **split)
    assert largest_difference(reset, expected) > 1e-4
    assert max(entry.get("reset/seeded_fraction", 0) for entry in reset_log) > 0


# --- a batch by hand ---

# Role, reset step, prefix tokens, all tokens (with EOS), advantage = (reward - mean) / (std + 1e-4), Bessel's std.
# Base group of A: rewards 1 0 1 1, mean 3/4, std 1/2. Reset group: 1 0 0 0, mean 1/4, std 1/2. B fell back to one group
# of eight: 1 seven times and 0, mean 7/8, std sqrt(1/8).
ROOT = 0.125**0.5 + 1e-4
TABLE = [
    *[("base", None, 0, 21, x / 0.5001) for x in (0.25, -0.75, 0.25, 0.25)],
    *[("reset", 2, 6, 21, x / 0.5001) for x in (0.75, -0.25, -0.25, -0.25)],
    *[("base", None, 0, 9, 0.125 / ROOT)] * 4,
    *[("fresh", None, 0, 9, x / ROOT) for x in (0.125, 0.125, 0.125, -0.875)],
]


def test_a_batch_worked_by_hand(make):
    seen = []

    def reward(prompts, completions, completion_ids, completion_role, answer, log_extra, **kwargs):
        seen.extend(zip(completion_role, prompts, completions, completion_ids, strict=True))
        log_extra("text", completions)
        return answer_reward(completions, answer)

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    trainer = make(Kept, Scripted, reward=reward, data=data, localizer=oracle, max_completion_length=40)
    trainer.script = BY_HAND
    trainer.train()
    (output,) = trainer.outputs
    roles, steps, prefixes, lengths, advantages = zip(*TABLE, strict=True)

    torch.testing.assert_close(output["advantages"], torch.tensor(advantages))
    assert list(trainer._logs["advantages"]) == output["advantages"].tolist()
    assert output["completion_mask"].sum(1).tolist() == list(lengths)
    mask = output["completion_mask"] * output["tool_mask"]
    for row, prefix, length in zip(mask.tolist(), prefixes, lengths, strict=True):
        assert row == [0] * prefix + [1] * (length - prefix) + [0] * (len(row) - length)
    assert output["num_items_in_batch"] == sum(lengths) - sum(prefixes)
    extra = trainer._logs["extra"]
    assert list(extra["completion_role"]) == list(roles)
    assert list(extra["reset_step"]) == list(steps)
    completions = [*BY_HAND[A], *(PREFIX + suffix for suffix in BY_HAND[A + PREFIX]), *BY_HAND[B]]
    assert list(trainer._logs["completion"]) == completions
    assert list(extra["text"]) == completions  # what reward functions log stays with its row

    # Every completion is generated once (base slots, then the rest) and scored once, whole and as TRL decodes it.
    assert [len(prompts) for prompts, *_ in trainer.asked] == [8, 8]
    assert sorted(one[2] for one in seen) == sorted(completions) and len(seen) == 16
    assert Counter(one[0] for one in seen) == Counter(roles)
    ids = [row[m.bool()].tolist() for row, m in zip(output["completion_ids"], output["completion_mask"], strict=True)]
    assert sorted(one[3] for one in seen) == sorted(ids)

    log = trainer.state.log_history[0]
    expected = dict(seeded_fraction=1 / 2, step=2, kept_fraction=1 / 4, parse_rate=1, fallback_count=0)
    expected |= dict(base_pass_rate=7 / 8, suffix_pass_rate=1 / 4, corrected_fraction=1, seed_draws=0)
    expected |= dict(generated_tokens=sum(lengths) - 24, trained_tokens=sum(lengths) - 24, localization_tokens=0)
    assert {name: log[f"reset/{name}"] for name in expected} == pytest.approx(expected)


def test_prefix_tokens_have_no_gradient_and_suffix_tokens_have(make):
    class WithGradient:
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if output[0].requires_grad:
                output[0].retain_grad()
                self.logps = output[0]
            return output

        def _compute_loss(self, model, inputs):
            self.loss_inputs = inputs
            return super()._compute_loss(model, inputs)

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    trainer = make(WithGradient, Scripted, data=data, localizer=oracle, max_completion_length=40)
    trainer.script = BY_HAND
    trainer.train()
    inputs, gradient = trainer.loss_inputs, trainer.logps.grad
    prefix = inputs["completion_mask"].bool() & ~inputs["tool_mask"].bool()
    assert prefix.sum() == 24
    assert (gradient[prefix] == 0).all()
    assert (gradient[(inputs["completion_mask"] * inputs["tool_mask"]).bool()] != 0).all()


def test_a_trained_prefix_has_the_gradient_of_what_follows_it(make):
    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    options = dict(data=data, localizer=oracle, max_completion_length=40, train_prefix=True)
    trainer = make(Kept, Scripted, **options)
    trainer.script = BY_HAND
    trainer.train()
    (output,) = trainer.outputs
    assert (output["tool_mask"] * output["completion_mask"] == output["completion_mask"]).all()
    assert trainer.state.log_history[0]["reset/trained_tokens"] == output["completion_mask"].sum()


def test_the_likeliest_localization_is_taken_at_temperature_0(make, tiny_model):
    class Watched:
        asked: list = []

        def _generate_single_turn(self, prompt_ids, *rest):
            ids = super()._generate_single_turn(prompt_ids, *rest)[0]
            self.asked.append((self.generation_config.do_sample, prompt_ids, ids))
            return ids, None

    options = dict(localization_temperature=0, localization_template="{problem}{completion}", max_completion_length=30)
    trainer = make(Watched, localization_max_tokens=5, **options)
    trainer.train()
    assert [do_sample for do_sample, *_ in trainer.asked] == [True, False, True]
    _, questions, answers = trainer.asked[1]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for question, answer in zip(questions, answers, strict=True):
        assert model(torch.tensor([question])).logits[0, -1].argmax() == answer[0]


# --- what each phase asks for ---


@pytest.mark.parametrize("localizer", ["self", "random"])
def test_phases_ask_for_no_more_than_is_left_and_restore_the_settings(make, localizer):
    settings = []

    class Watched:
        def _generate_single_turn(self, prompt_ids, *args):
            settings.append((self.generation_config.max_new_tokens, self.generation_config.temperature, prompt_ids))
            return super()._generate_single_turn(prompt_ids, *args)

    trainer = make(Kept, Watched, model=str(BASE_MODEL), localizer=localizer, temperature=0.9, reset_offset=0)
    config, options = trainer.generation_config, trainer.generation_kwargs
    trainer.train()
    assert trainer.generation_config is config and trainer.generation_kwargs is options
    assert config.max_new_tokens == 24 and config.temperature == 0.9
    (base, *localization, suffixes), (output,) = settings, trainer.outputs
    assert base[:2] == (24, 0.9)
    assert [one[:2] for one in localization] == ([(4, 0.3)] if localizer == "self" else [])
    prefix_lengths = (output["completion_mask"] * (1 - output["tool_mask"])).sum(1).view(2, 8)[:, 4:]
    assert suffixes[:2] == (24 - prefix_lengths.min(), 0.9)
    assert prefix_lengths.max() > prefix_lengths.min()  # so that somebody is cut to a budget of their own
    assert output["completion_mask"].sum(1).max() <= 24
    log = trainer.state.log_history[0]
    assert ("reset/parse_rate" in log) == (localizer == "self")
    if localizer == "self":  # the base model answers with digits, which cannot be read
        assert log["reset/parse_rate"] == 0 and log["reset/fallback_count"] == 2
        assert log["reset/localization_tokens"] > 0


def test_the_suffix_phase_asks_for_the_longest_budget_and_cuts_each_to_its_own(make):
    """Prefixes of 6 and 12 tokens, of 22: 16 and 10 are left."""
    longer = PREFIX + "0*3=0\n\n"
    script = {
        A: [RIGHT_A, WRONG_A, RIGHT_A, RIGHT_A, RIGHT_A, longer + "0-8=10\n\n#10", RIGHT_A, RIGHT_A],
        A + PREFIX: ["+" * 30] * 4,
        A + longer: ["+" * 30] * 4,
    }
    data = Dataset.from_dict({"prompt": [A, A], "answer": [9, 9]})
    trainer = make(Kept, Scripted, data=data, localizer=oracle, max_completion_length=22)
    trainer.script = script
    trainer.train()
    assert [length for _, length, _ in trainer.asked] == [22, 16]
    (output,) = trainer.outputs
    assert output["completion_mask"].sum(1).view(2, 8)[:, 4:].unique().tolist() == [22]
    prefixes = (output["completion_mask"] * (1 - output["tool_mask"])).sum(1).view(2, 8)[:, 4:]
    assert prefixes.tolist() == [[6] * 4, [12] * 4]
    assert trainer.state.log_history[0]["reset/generated_tokens"] == 8 * 21 + 8 * 16  # what is cut off was generated


def test_settings_are_restored_when_generation_fails(make):
    class Broken:
        def _generate_single_turn(self, *args):
            raise RuntimeError("out of memory")

    trainer = make(Broken)
    config = trainer.generation_config
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert trainer.generation_config is config and trainer._rollout is None


def test_vllm_is_given_its_settings_and_the_log_probabilities_of_a_prefix_are_carried_over(make):
    """The engine's place is taken by its attributes: that is where TRL's vLLM client reads its settings from."""

    class Engine:
        max_completion_length, temperature, generation_kwargs = 40, 0.7, {}

    asked = []

    class OnEngine(Scripted):
        def _generate_single_turn(self, prompt_ids, *args):
            asked.append((self.vllm_generation.max_completion_length, self.vllm_generation.temperature))
            ids, _ = super()._generate_single_turn(prompt_ids, *args)
            return ids, [[-len(asked) - k / 100 for k in range(len(one))] for one in ids]

        def _roll(self, prompts, trainer):
            self.use_vllm = True
            try:
                self.rolled = super()._roll(prompts, trainer)
            finally:
                self.use_vllm = False
            return self.rolled

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    trainer = make(OnEngine, data=data, localizer=oracle, max_completion_length=40, temperature=0.7)
    trainer.script, trainer.vllm_generation = BY_HAND, Engine()
    trainer.train()
    assert asked == [(40, 0.7), (40, 0.7)]  # B has no prefix, and so the longest budget is whole
    assert (trainer.vllm_generation.max_completion_length, trainer.vllm_generation.temperature) == (40, 0.7)
    seed, suffix = trainer.rolled["logprobs"][1], trainer.rolled["logprobs"][4]
    assert suffix[:6] == seed[:6] and suffix[6] == -2.0 and len(suffix) == 21


@pytest.mark.parametrize(
    "split", [dict(num_reset_prefixes=2, suffixes_per_prefix=4), dict(suffixes_per_prefix=8), dict(seed_source="fresh")]
)
def test_fresh_seeds_are_drawn_until_found_and_not_trained(make, split):
    """A fails at its third draw, and again at its fifth; B never does."""
    roles = []

    def reward(completions, completion_role, prompts, answer, **kwargs):
        roles.extend(zip(completion_role, prompts, strict=True))
        return answer_reward(completions, answer)

    class Drawn(Scripted):
        def text(self, prompt, k):
            if prompt == B:
                return "1+2=3\n\n#3"
            k -= 4 * (split == dict(seed_source="fresh"))
            return (WRONG_A if k in (2, 4) else RIGHT_A).removeprefix(prompt.removeprefix(A))

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    options = dict(localizer=oracle, max_completion_length=40, max_seed_attempts=6) | split
    trainer = make(Kept, Drawn, reward=reward, data=data, **options)
    trainer.train()
    counts = Counter(roles)
    draws = {"num_reset_prefixes": 5}.get(next(iter(split)), 3)
    assert counts["seed", A] == draws and counts["seed", B] == 6
    assert trainer.state.log_history[0]["reset/seed_draws"] == draws + 6
    assert sum(count for (role, _), count in counts.items() if role != "seed") == 16
    table = trainer._logs["extra"]
    assert len(table["completion_role"]) == 16 and "seed" not in table["completion_role"]
    base_size = 4 if split == dict(seed_source="fresh") else 0
    assert list(table["reset_step"]) == [None] * base_size + [2] * (8 - base_size) + [None] * 8


@pytest.mark.parametrize("localizer", [oracle, "self"])
def test_the_furthest_failure_is_cut_and_every_failure_localized_once(make, tiny_model, localizer):
    """A fails four times; one of the failures goes wrong at step 3, the others at step 2. B does not fail."""
    tokenizer = boxed_tokenizer(tiny_model)
    far = "5+12=0\n\n0*3=0\n\n0-8=10\n\n#10"
    asked = []

    class Localized(Scripted):
        def text(self, prompt, k):
            if "Problem" not in prompt:
                return "1+2=3\n\n#3" if prompt == B else self.script[prompt][k]
            asked.append(prompt)
            return "\\boxed{3}" if "0-8=10" in prompt else "\\boxed{2}"

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    found = {}
    for selection in ("furthest", "random"):
        asked.clear()
        options = dict(localizer=localizer, seed_selection=selection, data=data, max_completion_length=40)
        trainer = make(Localized, processing_class=tokenizer, **options)
        trainer.script = {A: [WRONG_A, WRONG_A, far, WRONG_A]}
        trainer.script |= {A + end: [RIGHT_A.removeprefix(end)] * 4 for end in (PREFIX, PREFIX + "0*3=0\n\n")}
        trainer.train()
        found[selection] = list(trainer._logs["extra"]["reset_step"])[4:8]
        assert len(asked) == (0 if localizer is oracle else 4 if selection == "furthest" else 1)
    assert found == {"furthest": [3] * 4, "random": [2] * 4}


@pytest.mark.parametrize("selection", ["furthest", "random"])
def test_every_localization_counts_in_the_parse_rate(make, selection):
    """Of A's four failures one is localized, and it is the furthest; a seed that is drawn has no step named."""
    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})

    def first_alone(failed):
        return [2 if number == 0 and selection == "furthest" else None for number in range(len(failed))]

    options = dict(data=data, localizer=first_alone, seed_selection=selection, max_completion_length=40)
    trainer = make(Scripted, **options)
    rest = {A + PREFIX: [RIGHT_A.removeprefix(PREFIX)] * 4, A + PREFIX + "0*3=1\n\n": ["#10"] * 4}
    trainer.script = {A: [WRONG_A] * 8, B: BY_HAND[B]} | rest
    trainer.train()
    log = trainer.state.log_history[0]
    expected = {"furthest": (1 / 4, 3), "random": (0, 1)}[selection]
    assert (log["reset/parse_rate"], log["reset/fallback_count"]) == expected


def test_trained_tokens_are_those_of_the_loss(make):
    """A's completions lack their end, and so they are left out of the loss and of the count."""
    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    options = dict(data=data, localizer=oracle, max_completion_length=20, mask_truncated_completions=True)
    trainer = make(Scripted, **options)
    trainer.script = BY_HAND
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reset/seeded_fraction"] == 1 / 2 and log["completions/clipped_ratio"] == 1 / 2
    assert log["reset/trained_tokens"] == 8 * 9


def test_a_seed_is_a_prompts_own(make):
    """The prefix of every reset slot begins a completion of the same prompt, cut where the table says."""
    options = dict(per_device_train_batch_size=32, max_completion_length=48)
    trainer = make(Kept, model=str(BASE_MODEL), localizer=oracle, **options)
    trainer.train()
    (output,) = trainer.outputs
    decode = trainer._tokenizer.decode
    rows = list(zip(output["prompt_ids"], output["completion_ids"], output["tool_mask"], strict=True))
    steps = list(trainer._logs["extra"]["reset_step"])
    assert sum(step is not None for step in steps) >= 8
    for row, (prompt, ids, mask) in enumerate(rows):
        if steps[row] is None:
            assert mask.all()
            continue
        prefix = decode(ids[~mask.bool()])
        problem = Problem.parse(decode(prompt, skip_special_tokens=True))
        base = [decode(rows[row // 8 * 8 + k][1], skip_special_tokens=True) for k in range(4)]
        assert any(text.startswith(prefix) and first_error(problem, text) == steps[row] for text in base)
        assert prefix.count("\n\n") == steps[row] - 1


def boxed_tokenizer(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["\\boxed{", "}", "Problem"])
    return tokenizer


@pytest.mark.parametrize("conversational", [False, True])
def test_self_localization_is_asked_in_the_form_of_the_prompt_and_read(make, tiny_model, conversational):
    class Answers(Scripted):
        def text(self, prompt, k):
            if "Problem" in prompt:
                return "\\boxed{2}"
            return super().text(prompt, k)

    def reward(completions, answer, **kwargs):
        texts = [one[0]["content"] if conversational else one for one in completions]
        return answer_reward(texts, answer)

    tokenizer = boxed_tokenizer(tiny_model)
    prompts = [A, B]
    if conversational:
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    data = Dataset.from_dict({"prompt": prompts, "answer": [9, 3]})
    trainer = make(Answers, reward=reward, data=data, max_completion_length=40, processing_class=tokenizer)
    trainer.script = BY_HAND
    trainer.train()
    assert [(len(prompts), *rest) for prompts, *rest in trainer.asked] == [(8, 40, 1.0), (1, 4, 0.3), (8, 40, 1.0)]
    log = trainer.state.log_history[0]
    assert log["reset/parse_rate"] == 1 and log["reset/step"] == 2 and log["reset/fallback_count"] == 0
    assert list(trainer._logs["extra"]["reset_step"])[4:8] == [2] * 4


def test_evaluation_is_plain_generation(make):
    """The metrics are those of `GRPOTrainer` to the bit, and nobody is asked where a completion goes wrong."""

    def reward(completions, completion_role=None, answer=None, **kwargs):
        roles.extend(completion_role or [])
        return answer_reward(completions, answer)

    def nobody(failed):
        raise AssertionError("a localizer was asked in evaluation")

    roles: list[str] = []
    options = dict(reward=reward, model=str(BASE_MODEL), max_completion_length=40)
    options |= dict(per_device_eval_batch_size=8, num_generations_eval=2)
    ours = make(Kept, localizer=nobody, **options)
    metrics = ours.evaluate(make_dataset(8))
    theirs = make(trainer=GRPOTrainer, config=GRPOConfig, **options).evaluate(make_dataset(8))
    assert 0 < metrics["eval_reward"] < 1  # some failed
    assert {name: metrics[name] for name in theirs if not is_time(name)} == {
        name: value for name, value in theirs.items() if not is_time(name)
    }
    assert set(roles) == {"fresh"} and len(roles) == 16 and ours.rollout_func is None
    assert all("tool_mask" not in output for output in ours.outputs)
    assert not any("reset/" in name for name in metrics)


def test_the_table_of_completions_shows_roles_and_reset_steps(make, tmp_path):
    """As written to disk after a step, and again after an evaluation, of which no row is of a role."""

    def reward(prompts, completions, **kwargs):
        return [
            float(completion.endswith("#9" if prompt == A else "#3"))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    options = dict(data=data, localizer=oracle, max_completion_length=40, log_completions=True)
    trainer = make(Scripted, reward=reward, **options)
    trainer.script = BY_HAND
    trainer.train()
    path = tmp_path / "run" / "completions" / "completions_00001.parquet"
    table = pandas.read_parquet(path)
    roles, steps, _, _, advantages = zip(*TABLE, strict=True)
    assert list(table["completion_role"]) == list(roles)
    assert [None if pandas.isna(step) else step for step in table["reset_step"]] == list(steps)
    assert list(table["advantage"]) == pytest.approx(advantages)
    assert list(table["completion"][4:8]) == [PREFIX + suffix for suffix in BY_HAND[A + PREFIX]]

    trainer.counts.clear()
    trainer.script = {A: BY_HAND[A] * 2, B: BY_HAND[B]}
    trainer.evaluate(data)  # as many rows as the table holds
    table = pandas.read_parquet(path)
    assert list(table["completion"][4:8]) != [PREFIX + suffix for suffix in BY_HAND[A + PREFIX]]
    assert set(table["completion_role"]) == {"fresh"} and table["reset_step"].isna().all()


# --- with the rest of TRL ---


def test_lora_trains_its_adapter(make):
    class WithAdapter:
        def __init__(self, *args, **keywords):
            adapter = LoraConfig(r=4, target_modules="all-linear")
            super().__init__(*args, peft_config=adapter, **keywords)

    trainer = make(WithAdapter, model=str(BASE_MODEL), localizer="random", max_completion_length=40)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reset/seeded_fraction"] > 0 and log["grad_norm"] > 0


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(make, tmp_path):
    options = dict(localizer="random", max_completion_length=40, max_steps=2, save_strategy="steps", save_steps=1)
    whole = make(Kept, model=str(BASE_MODEL), **options)
    whole.train()
    resumed = make(Kept, model=str(BASE_MODEL), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert whole.outputs[1]["completion_ids"].tolist() == resumed.outputs[0]["completion_ids"].tolist()
    assert whole.outputs[1]["tool_mask"].min() == 0  # resets were there to be repeated
    same_weights(resumed.model.state_dict(), whole.model.state_dict())


# --- with traces ---


@dataclass
class BothConfig(SRPOConfig, STraceConfig):
    pass


class Both(SRPOTrainer, STraceTrainer):
    config_class = BothConfig


def test_a_trace_does_not_cross_the_prefix(make):
    """The traced ratio of a suffix is that of the suffix alone: as if the prefix belonged to the prompt."""

    class Traced:
        def _assign_credit(self, logps, entropies, inputs):
            own = logps.detach() - torch.linspace(0.1, 0.5, logps.shape[1])  # ratios away from 1, prefix included
            inputs["old_per_token_logps"] = own
            super()._assign_credit(logps, entropies, inputs)
            self.seen = (logps.detach() - own, (logps - inputs["old_per_token_logps"]).detach(), dict(inputs))

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    trainer = make(
        Traced,
        Scripted,
        trainer=Both,
        config=BothConfig,
        data=data,
        localizer=oracle,
        max_completion_length=40,
        trace_entropy_fraction=1.0,
        trust_region="trace",
        trace_lambda=0.9,
    )
    trainer.script = BY_HAND
    trainer.train()
    log_ratio, z, inputs = trainer.seen
    checked = 0
    for row, (prefix_mask, mask) in enumerate(zip(inputs["tool_mask"], inputs["completion_mask"], strict=True)):
        length = int((1 - prefix_mask).sum())
        if length == 0:
            continue
        alone = eligibility_trace(log_ratio[row : row + 1, length:], mask[None, length:], decay=0.9, normalize=True)
        torch.testing.assert_close(z[row, length:][mask[length:].bool()], alone[0][mask[length:].bool()])
        checked += 1
    assert checked == 4
    assert trainer.state.log_history[0]["trace/effective_length"] > 1


# --- construction ---


def test_a_plain_config_gets_the_defaults(tiny_model, tmp_path):
    plain = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = SRPOTrainer(tiny_model, digit_reward, args=plain, train_dataset=make_dataset(4))
    assert type(trainer.args) is SRPOConfig and trainer.args.suffixes_per_prefix is None
    assert trainer.args.loss_type == plain.loss_type  # what was given stays
    both = Both(tiny_model, digit_reward, args=plain, train_dataset=make_dataset(4))
    assert (both.args.localizer, both.args.trace_lambda) == ("self", 0.99)
    with pytest.raises(ValueError, match="another method's"):
        SRPOTrainer(
            tiny_model, digit_reward, args=GRPOLambdaConfig(str(tmp_path), use_cpu=True), train_dataset=make_dataset(4)
        )


REFUSED = {
    "num_reset_prefixes": dict(num_reset_prefixes=0),
    "num_reset_prefixes=3": dict(num_reset_prefixes=3, suffixes_per_prefix=4),
    "num_reset_prefixes=3 (of 8)": dict(num_reset_prefixes=3),
    "suffixes_per_prefix": dict(suffixes_per_prefix=1),
    "step_delimiter": dict(step_delimiter=""),
    "step_delimiter (list)": dict(step_delimiter=["a", ""]),
    "step_delimiter (as a shell hands it on)": dict(step_delimiter=r"\n\n"),
    "step_delimiter (list, in single quotes)": dict(step_delimiter=["</thought>", r"###\n"]),
    "localizer": dict(localizer="oracle"),
    "localizer (function)": dict(localizer=oracle),
    "localization_template": dict(localization_template="Where is the error?"),
    "localization_temperature": dict(localization_temperature=-1.0),
    "localization_max_tokens": dict(localization_max_tokens=0),
    "localization_votes": dict(localization_votes=3, localization_temperature=0),
    "localization_fallback": dict(localization_fallback="last"),
    "localizer_model": dict(localizer="prm"),
    "localizer_model (unread)": dict(localizer_model="prm"),
    "localizer_kwargs": dict(localizer_kwargs={"threshold": 0.5}),
    "train_prefix": dict(train_prefix="no"),
    "reset_offset": dict(reset_offset=-1),
    "seed_source": dict(seed_source="replay"),
    "seed_selection": dict(seed_selection="latest"),
    "max_seed_attempts": dict(max_seed_attempts=0),
    "per_device_train_batch_size": dict(per_device_train_batch_size=4, steps_per_generation=2, num_generations=16),
    "auto_find_batch_size": dict(auto_find_batch_size=True),
    "vllm_structured_outputs_regex": dict(vllm_structured_outputs_regex="[0-9]+"),
    "max_completion_length": dict(max_completion_length=None),
    "generation_kwargs": dict(generation_kwargs={"max_new_tokens": 3}),
    "generation_kwargs (start)": dict(generation_kwargs={"begin_suppress_tokens": [3]}),
    "generation_kwargs (end)": dict(generation_kwargs={"forced_eos_token_id": 1}),
    "generation_kwargs (seed)": dict(generation_kwargs={"seed": 1}),
    "generation_kwargs (vLLM)": dict(generation_kwargs={"presence_penalty": 1.0}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_by_name(tmp_path, monkeypatch, case):
    if case == "per_device_train_batch_size":  # a share of half a group: two processes
        monkeypatch.setattr(SRPOConfig, "world_size", 2)
    with pytest.raises(ValueError, match=rf"^{case.split(' ')[0]}\b"):
        SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **REFUSED[case])


@pytest.mark.parametrize("options", [{"api_key": "sk-secret"}, "api_key: sk-secret"])
def test_what_a_localizer_is_given_is_not_repeated(tmp_path, options):
    with pytest.raises(ValueError, match=r"^localizer_kwargs") as caught:
        SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, localizer_kwargs=options)
    assert "secret" not in str(caught.value)


class Environment:
    def reset(self, **kwargs):
        return None

    def look(self) -> str:
        """Look around."""
        return ""


def look() -> str:
    """Look around."""
    return ""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rollout_func", dict(rollout_func=lambda prompts, trainer: {})),
        ("tools", dict(tools=[look])),
        ("environment_factory", dict(environment_factory=Environment)),
        ("environment_factory", dict(environment_factory={"one": Environment})),
        ("correctness_reward", dict(correctness_reward="accuracy")),
        ("correctness_reward", dict(correctness_reward=1)),
        ("seed_selection", dict(seed_selection="furthest", localizer="random")),
        ("localization_fallback", dict(localization_fallback="first", localizer="random")),
        ("localization_votes", dict(localization_votes=3, localizer="random")),
        ("localization_votes", dict(localization_votes=3, given=oracle)),
        ("localizer_model", dict(localizer="prm", localizer_model="my-prm", given=oracle)),
    ],
)
def test_the_trainer_refuses_by_name(tiny_model, tmp_path, name, options):
    options = dict(options)
    config = {key: options.pop(key) for key in list(options) if key in RESET_FIELDS}
    if "given" in options:
        options["localizer"] = options.pop("given")
    args = SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **config)
    with pytest.raises(ValueError, match=f"^{name}"):
        SRPOTrainer(tiny_model, digit_reward, args=args, train_dataset=make_dataset(4), **options)


def test_the_trainer_refuses_what_comes_by_position(tiny_model, tmp_path):
    args = SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    between = list(inspect.signature(GRPOTrainer.__init__).parameters).index("tools") - 5
    with pytest.raises(ValueError, match=r"^tools\b"):
        SRPOTrainer(tiny_model, digit_reward, args, make_dataset(4), *[None] * between, [look])


def test_the_reward_that_speaks_for_correctness(make):
    """The first function never fails anybody; the second, chosen by name, does."""

    def praise(completions, **kwargs):
        return [1.0] * len(completions)

    data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3]})
    found = {}
    for chosen in (None, "answer_reward", 1):
        options = dict(reward=[praise, answer_reward], data=data, localizer=oracle, max_completion_length=40)
        trainer = make(Scripted, correctness_reward=chosen, **options)
        trainer.script = BY_HAND if chosen else {A: [RIGHT_A, WRONG_A] * 4, B: BY_HAND[B]}
        trainer.train()
        found[chosen] = trainer.state.log_history[0]["reset/seeded_fraction"]
    assert found == {None: 0.0, "answer_reward": 0.5, 1: 0.5}


def test_an_index_tells_rewards_of_one_name_apart(make):
    """Lambdas share a name; a command line gives an index as text."""
    rewards = [lambda completions, **kwargs: [1.0] * len(completions), lambda completions, **kwargs: [0.0]]
    for chosen, expected in ((0, 0), (1, 1), (-1, -1), ("1", 1), ("-2", -2)):
        trainer = make(reward=rewards, correctness_reward=chosen)
        assert trainer._correctness == expected
    (name,) = {*trainer.reward_func_names}
    with pytest.raises(ValueError, match=rf"^correctness_reward='{name}' is the name of several .* give the index"):
        make(reward=rewards, correctness_reward=name)
    for chosen in ("2", 2, "-3"):
        with pytest.raises(ValueError, match=rf"^correctness_reward must be one of .*, got {int(chosen)}$"):
            make(reward=rewards, correctness_reward=chosen)


def test_a_name_of_digits_is_a_name(make):
    def praise(completions, **kwargs):
        return [1.0] * len(completions)

    praise.__name__ = "0"
    assert make(reward=[answer_reward, praise], correctness_reward="0")._correctness == 1


DOCS = (Path(__file__).parents[2] / "docs" / "reference" / "options.md").read_text()


def test_the_documentation_holds_the_fields_and_their_defaults():
    table = DOCS.split("## The fields of `SRPOConfig`")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, flags=re.M))
    defaults = {field.name: field.default for field in fields(SRPOConfig) if field.name in RESET_FIELDS}
    assert rows == {
        name: str(value) if not isinstance(value, str) else json.dumps(value) for name, value in defaults.items()
    }
