"""Refuse keys of `generation_kwargs` that have no meaning where completions are continued, and name what does."""

from collections.abc import Collection

# Keys that would overrule what the phases of a rollout set for themselves.
_OWN = {
    "max_new_tokens": "Set max_completion_length and localization_max_tokens in {name} instead.",
    "max_length": "Set max_completion_length and localization_max_tokens in {name} instead.",
    "max_tokens": "Set max_completion_length and localization_max_tokens in {name} instead.",
    "min_new_tokens": "Leave it out of {name}.",
    "min_length": "Leave it out of {name}.",
    "min_tokens": "Leave it out of {name}.",
    "temperature": "Set temperature and localization_temperature in {name} instead.",
    "n": "Set num_generations in {name} instead.",
    "num_return_sequences": "Set num_generations in {name} instead.",
    "structured_outputs": "Leave it out of {name}.",
}

# Keys that count from where generation begins or ends, which for a continuation is not where its completion does.
_POSITIONAL = (
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
    "frequency_penalty",
    "guidance_scale",
    "presence_penalty",
)


def check_generation_kwargs(keys: Collection[str], name: str) -> None:
    """Raise `ValueError` for a key that cannot work; `name` is the class whose fields the advice names."""
    for key in keys:
        if key in _OWN:
            advice = _OWN[key].format(name=name)
            raise ValueError(f"generation_kwargs has {key!r}, which the phases of a rollout set themselves. {advice}")
        if key == "seed":
            raise ValueError(
                "generation_kwargs has 'seed', with which vLLM gives equal prompts equal completions: those of a group "
                f"are asked for one by one, so no group would have a gradient. Set seed in {name} instead."
            )
        if key in _POSITIONAL:
            raise ValueError(
                f"generation_kwargs has {key!r}, which takes the start or the end of what is generated for that of the "
                "completion, and a continuation starts after its prefix. Leave it out of {name}."
            )
