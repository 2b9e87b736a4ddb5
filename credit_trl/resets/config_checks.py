"""Check the fields of `SRPOConfig`, each group of fields in a function of its own.

A check is given the configuration, an `SRPOConfig`, and the name of its class, for what the message advises. It raises
`ValueError`.
"""

import math
import re
from typing import Any

from ..base.config import check_choice, check_integer, check_number
from .generation_kwargs import check_generation_kwargs
from .groups import split_group
from .localization import check_template

# Localizers with a model of their own, and what `localizer_model` means to them.
MODELS = {
    "prm": "a token-classification model, by folder or name on the hub",
    "chat": "the name of a model on a server",
}


def check_groups(config: Any, name: str) -> None:
    assert config.num_generations is not None and config.steps_per_generation is not None  # GRPOConfig sets them
    check_integer("num_reset_prefixes", config.num_reset_prefixes)
    if config.suffixes_per_prefix is not None:
        check_integer("suffixes_per_prefix", config.suffixes_per_prefix)
    try:
        split_group(config.num_generations, config.num_reset_prefixes, config.suffixes_per_prefix)
    except ValueError as error:
        raise ValueError(f"{error} These are fields of {name}, which has all of GRPOConfig's.") from None
    size, steps = config.per_device_train_batch_size, config.steps_per_generation
    if size * steps % config.num_generations:
        fewest = config.num_generations // math.gcd(size, config.num_generations)
        enough = -(-config.gradient_accumulation_steps // fewest) * fewest
        raise ValueError(
            f"per_device_train_batch_size={size} times steps_per_generation={steps} is a process's share of a "
            f"generation batch, and must hold whole groups of num_generations={config.num_generations}: a prompt's "
            f"prefixes are cut where its completions are. Set gradient_accumulation_steps={enough} in {name} and "
            "leave out steps_per_generation and generation_batch_size, which follow it."
        )


def check_localizer(config: Any, name: str) -> None:
    if callable(config.localizer):
        raise ValueError("localizer cannot be a function here, since it is saved: SRPOTrainer(localizer=...)")
    check_choice("localizer", config.localizer, ("self", "random", *MODELS))
    model, options = config.localizer_model, config.localizer_kwargs
    if model is not None and (not isinstance(model, str) or not model):
        raise ValueError(f"localizer_model must be a string that is not empty, got {model!r}")
    if options is not None and not isinstance(options, dict):
        raise ValueError(
            f"localizer_kwargs must be a dictionary, on a command line as JSON, got a {type(options).__name__}"
        )
    if config.localizer in MODELS:
        if model is None:
            raise ValueError(
                f"localizer_model is missing: localizer={config.localizer!r} needs {MODELS[config.localizer]}. Set it "
                f"in {name}"
            )
        for key, twin in (("template", "localization_template"), ("step_delimiter", "step_delimiter")):
            if key in (options or {}) and getattr(config, twin) != getattr(type(config), twin):
                raise ValueError(
                    f"localizer_kwargs has {key!r} beside {twin}, and only one of them can hold. Leave out one of the "
                    f"two in {name}"
                )
    elif model is not None or options:
        # What `localizer_kwargs` holds, which may be a key, is not repeated.
        field = "localizer_model" if model is not None else "localizer_kwargs"
        raise ValueError(
            f"{field} is for localizer='prm' and localizer='chat', and localizer is {config.localizer!r}: set one of "
            f"them or leave {field} out of {name}"
        )


def check_localization(config: Any, name: str) -> None:
    delimiters = [config.step_delimiter] if isinstance(config.step_delimiter, str) else config.step_delimiter
    if (
        not isinstance(delimiters, list | tuple)
        or not delimiters
        or not all(isinstance(delimiter, str) and delimiter for delimiter in delimiters)
    ):
        raise ValueError(
            f"step_delimiter must be a string that is not empty, or a list of them, got {config.step_delimiter!r}. "
            "A function goes to SRPOTrainer(step_delimiter=...)"
        )
    # A shell hands on "\n" as two characters, and so does YAML without double quotes. A model writes them only where a
    # LaTeX command begins.
    if any(re.search(r"\\n(?![A-Za-z])", delimiter) for delimiter in delimiters):
        raise ValueError(
            f"step_delimiter={config.step_delimiter!r} has a backslash and an n where a line break is meant, and would "
            f"occur in no completion. In a shell write --step_delimiter $'\\n', in a YAML file \"\\n\" in double quotes"
        )
    if config.localization_template is not None:
        if not isinstance(config.localization_template, str):
            raise ValueError(f"localization_template must be a string, got {config.localization_template!r}")
        try:
            check_template(config.localization_template)
        except ValueError as error:
            raise ValueError(f"localization_{error}") from None
    if config.localization_max_tokens is not None:
        check_integer("localization_max_tokens", config.localization_max_tokens, 1)
    if not 0 <= check_number("localization_temperature", config.localization_temperature) < math.inf:
        raise ValueError(
            f"localization_temperature must be at least 0 and finite, got {config.localization_temperature}"
        )
    check_integer("localization_votes", config.localization_votes, 1)
    if config.localization_votes > 1 and config.localization_temperature == 0:
        raise ValueError(
            f"localization_votes={config.localization_votes} would all be the same answer at "
            f"localization_temperature=0. Set localization_votes=1 or localization_temperature=0.3 in {name}"
        )
    check_choice("localization_fallback", config.localization_fallback, ("random", "first"))
    check_integer("reset_offset", config.reset_offset, 0)


def check_seeds(config: Any, name: str) -> None:
    check_choice("seed_source", config.seed_source, ("base", "fresh"))
    check_choice("seed_selection", config.seed_selection, ("random", "furthest"))
    check_integer("max_seed_attempts", config.max_seed_attempts, 1)
    check_number("failure_threshold", config.failure_threshold)
    if not isinstance(config.train_prefix, bool):
        raise ValueError(f"train_prefix must be True or False, got {config.train_prefix!r}")
    chosen = config.correctness_reward
    if not isinstance(chosen, str | int | None) or isinstance(chosen, bool):
        raise ValueError(
            "correctness_reward must be the name of a reward function, its index, or None for the first, got "
            f"{chosen!r}"
        )


def check_generation(config: Any, name: str) -> None:
    if config.max_completion_length is None:
        raise ValueError(
            "max_completion_length must be a number: a continuation gets what its prefix leaves of it. Set "
            f"max_completion_length=256, which is TRL's default, or more in {name}."
        )
    if config.vllm_structured_outputs_regex is not None:
        raise ValueError(
            "vllm_structured_outputs_regex would be matched against the continuation of a prefix and the "
            f"localization on their own, not against whole completions. Leave it out of {name}."
        )
    check_generation_kwargs(config.generation_kwargs or {}, name)


CHECKS = (check_groups, check_localizer, check_localization, check_seeds, check_generation)
