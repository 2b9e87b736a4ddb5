"""Every refusal of the reset trainer names the class and the fields to set, and its advice, when followed, trains."""

import re
from dataclasses import fields

import pytest
from trl import GRPOConfig, TrlParser

from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.resets.config import RESET_FIELDS
from credit_trl.testbed import answer_reward, make_dataset
from tests.helpers.training import QUIET_ON_CPU

NO_BASE = "num_reset_prefixes=1 and suffixes_per_prefix=None"
LEFT_OUT = object()
# What is refused, what the message says to set, and the same as options (`LEFT_OUT`: to be left out).
CASES = {
    "three": (dict(num_generations=3, num_reset_prefixes=2), NO_BASE, dict(num_reset_prefixes=1)),
    "two": (dict(num_generations=2, num_reset_prefixes=2), NO_BASE, dict(num_reset_prefixes=1)),
    "a base group of one, of three": (
        dict(num_generations=3, suffixes_per_prefix=2),
        "suffixes_per_prefix=None",
        dict(suffixes_per_prefix=None),
    ),
    "many prefixes": (
        dict(num_reset_prefixes=3),
        "num_reset_prefixes=1 and suffixes_per_prefix=None",
        dict(num_reset_prefixes=1, suffixes_per_prefix=None),
    ),
    "a base group of one": (
        dict(suffixes_per_prefix=7),
        "suffixes_per_prefix=None",
        dict(suffixes_per_prefix=None),
    ),
    "too many": (dict(suffixes_per_prefix=9), "suffixes_per_prefix=None", dict(suffixes_per_prefix=None)),
    "no prefix": (dict(num_reset_prefixes=0), "num_reset_prefixes must be at least 1", dict(num_reset_prefixes=1)),
    "one suffix": (dict(suffixes_per_prefix=1), "suffixes_per_prefix must be at least 2", dict(suffixes_per_prefix=2)),
    "no number": (dict(suffixes_per_prefix="4"), "suffixes_per_prefix must be an integer", dict(suffixes_per_prefix=4)),
    "regex": (
        dict(vllm_structured_outputs_regex="[0-9]+"),
        "Leave it out",
        dict(vllm_structured_outputs_regex=LEFT_OUT),
    ),
    "no length": (
        dict(max_completion_length=None),
        "Set max_completion_length=256",
        dict(max_completion_length=256),
    ),
    "localizer": (
        dict(localizer="oracle"),
        "localizer must be one of self, random, prm, chat",
        dict(localizer="random"),
    ),
    "localizer, a function": (
        dict(localizer=len),
        "SRPOTrainer(localizer=...)",
        dict(localizer=LEFT_OUT, trainer=dict(localizer=lambda failed: [1] * len(failed))),
    ),
    "step_delimiter": (dict(step_delimiter=""), "must be a string that is not empty", dict(step_delimiter="x")),
    "step_delimiter, a function": (
        dict(step_delimiter=len),
        "SRPOTrainer(step_delimiter=...)",
        dict(step_delimiter=LEFT_OUT, trainer=dict(step_delimiter=lambda text: [len(text) // 2])),
    ),
    "localization_template": (
        dict(localization_template="Where?"),
        "{problem} and {steps}",
        dict(localization_template="{problem} {steps}"),
    ),
    "localization_temperature": (
        dict(localization_temperature=-0.1),
        "localization_temperature must be at least 0",
        dict(localization_temperature=0.1),
    ),
    "localization_max_tokens": (
        dict(localization_max_tokens=0),
        "localization_max_tokens must be an integer of at least 1",
        dict(localization_max_tokens=1),
    ),
    "reset_offset": (dict(reset_offset=-1), "reset_offset must be an integer of at least 0", dict(reset_offset=0)),
    "seed_source": (dict(seed_source="replay"), "seed_source must be one of base, fresh", dict(seed_source="fresh")),
    "seed_selection": (
        dict(seed_selection="last"),
        "seed_selection must be one of random, furthest",
        dict(seed_selection="furthest"),
    ),
    "max_seed_attempts": (
        dict(max_seed_attempts=0),
        "max_seed_attempts must be an integer of at least 1",
        dict(max_seed_attempts=1),
    ),
    "failure_threshold": (
        dict(failure_threshold="1"),
        "failure_threshold must be a number",
        dict(failure_threshold=1.0),
    ),
    "correctness_reward": (
        dict(correctness_reward=1.5),
        "name of a reward function, its index, or None",
        dict(correctness_reward=0),
    ),
    "correctness_reward, unknown": (
        dict(correctness_reward="accuracy"),
        "correctness_reward must be one of ['answer_reward'] or an index",
        dict(correctness_reward="answer_reward"),
    ),
    "furthest without an error": (
        dict(seed_selection="furthest", localizer="random"),
        "Set seed_selection='random' or localizer='self'",
        dict(seed_selection="random"),
    ),
}
KEYS = {
    "max_new_tokens": dict(max_completion_length=8, localization_max_tokens=8),
    "max_length": dict(max_completion_length=8, localization_max_tokens=8),
    "max_tokens": dict(max_completion_length=8, localization_max_tokens=8),
    "temperature": dict(temperature=0.5, localization_temperature=0.5),
    "n": dict(num_generations=8),
    "num_return_sequences": dict(num_generations=8),
    "seed": dict(seed=7),
}
KEYS |= {key: {} for key in ("min_new_tokens", "min_length", "min_tokens", "structured_outputs")}
KEYS |= {key: {} for key in ("begin_suppress_tokens", "forced_eos_token_id", "presence_penalty", "guidance_scale")}
for key, instead in KEYS.items():
    words = f"Set {' and '.join(instead)} in" if instead else "Leave it out"
    CASES[f"generation_kwargs, {key}"] = (
        dict(generation_kwargs={key: 3}),
        words,
        dict(generation_kwargs=LEFT_OUT, **instead),
    )


def train(model, folder, config, options, trainer=None):
    settings = QUIET_ON_CPU | dict(max_completion_length=8, max_steps=1)
    settings["per_device_train_batch_size"] = options.get("num_generations", 8)
    settings |= {name: value for name, value in options.items() if value is not LEFT_OUT and name != "trainer"}
    args = config(str(folder), **settings)
    trainer = SRPOTrainer(model, answer_reward, args=args, train_dataset=make_dataset(4), **trainer or {})
    trainer.train()
    return trainer


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_advice_that_is_followed_trains(tiny_model, tmp_path, case):
    options, words, followed = CASES[case]
    of_trl = set(options) <= set(GRPOConfig.__dataclass_fields__)
    for config in (SRPOConfig, GRPOConfig) if of_trl else (SRPOConfig,):
        with pytest.raises(ValueError, match=re.escape(words)) as refusal:
            train(tiny_model, tmp_path, config, options)
        message = str(refusal.value)
        assert "SRPOConfig" in message or "SRPOTrainer" in message or case == "correctness_reward, unknown"
        assert any(name in message for name in options)
    trainer = train(tiny_model, tmp_path, SRPOConfig, options | followed, followed.get("trainer"))
    assert trainer.state.global_step == 1


def test_a_share_of_half_groups_is_refused_with_what_makes_them_whole(tiny_model, tmp_path, monkeypatch):
    options = dict(per_device_train_batch_size=2, num_generations=8, gradient_accumulation_steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(SRPOConfig, "world_size", 4)
        with pytest.raises(ValueError, match=r"^per_device_train_batch_size=2 times") as refusal:
            SRPOConfig(str(tmp_path), **QUIET_ON_CPU, **options)
        assert "Set gradient_accumulation_steps=8 in SRPOConfig" in str(refusal.value)
        SRPOConfig(str(tmp_path), **QUIET_ON_CPU, **options | dict(gradient_accumulation_steps=8))
    assert train(tiny_model, tmp_path, SRPOConfig, options | dict(gradient_accumulation_steps=8)).state.global_step == 1


# --- the documentation of the fields ---


def test_the_docstring_lists_the_fields_with_their_defaults():
    section = SRPOConfig.__doc__.split("    Args:\n")[1].split("    Raises:\n")[0]
    listed = re.findall(r"^        (\w+) \((.+)\):$", section, flags=re.M)
    assert [name for name, _ in listed] == ["loss_type", *RESET_FIELDS]
    defaults = {field.name: field.default for field in fields(SRPOConfig)}
    for name, kind in listed:
        default = defaults[name]
        if default is None:
            assert kind.endswith("*optional*"), name
        elif name != "step_delimiter":  # two newlines, in words
            shown = f'`"{default}"`' if isinstance(default, str) else str(default)
            assert kind.endswith(f"defaults to {shown}"), name


def test_a_command_line_shows_the_values_of_a_setting():
    choices = {action.dest: action.choices for action in TrlParser(SRPOConfig)._actions}
    assert set(choices["localizer"]) == {"self", "random", "prm", "chat"}
    assert set(choices["seed_source"]) == {"base", "fresh"}
    assert set(choices["seed_selection"]) == {"random", "furthest"}
