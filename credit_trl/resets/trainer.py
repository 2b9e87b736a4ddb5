"""Reset groups in TRL's GRPO trainer, through one seam and without copying its loss, sampler or reward calls.

`GRPOTrainer._generate` takes what its `rollout_func` returns, here the phases of `rollout.py`. The `env_mask`
keeps the prefixes out of the loss, its denominator and every token metric of TRL. `_calculate_rewards` hands TRL the
rewards of the phases, and the advantages that TRL makes of them are replaced by those of the groups (`advantages.py`).
"""

import copy
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import parse_response
from trl.data_utils import is_conversational

from ..base.resume import ExactResumeMixin
from ..base.trainer import CreditTrainer
from .advantages import group_advantages
from .config import SRPOConfig
from .localization import FailedCompletion, check_localizer
from .rollout import Rollout, Sample

_POSITIONAL = list(inspect.signature(GRPOTrainer.__init__).parameters)[4:]  # after self, model, reward_funcs, args
_REFUSED = "{} cannot work with reset groups, which are a rollout of text of their own."


class SRPOTrainer(ExactResumeMixin, CreditTrainer):
    """SRPO and RRPO (arXiv 2605.25507). Defaults: `SRPOConfig`; a plain `GRPOConfig` gets them for the fields it lacks.

    Args:
        localizer: a callable that takes a list of `FailedCompletion` and returns the 1-based step of the first error of
            each, instead of `args.localizer`.
        step_delimiter: a callable that takes a completion's text and returns the character offsets after which a step
            ends, instead of `args.step_delimiter`.

    All other arguments are those of `trl.GRPOTrainer`. Reward functions get a `completion_role` column: "base", "reset"
    (continues a prefix), "fresh" (any other, also in evaluation) or "seed" (drawn to be cut, not trained).
    """

    config_class: type[SRPOConfig] = SRPOConfig
    args: SRPOConfig
    model: PreTrainedModel
    _tag_names = ["trl", "srpo"]
    _name = "SRPO"
    _paper = {
        "title": "Credit Assignment with Resets in Language Model Reasoning",
        "id": "2605.25507",
        "citation": textwrap.dedent("""\
            @article{samanta2026credit,
                title        = {{Credit Assignment with Resets in Language Model Reasoning}},
                author       = {Ankur Samanta and Akshayaa Magesh and Ayush Jain and Youliang Yu and Daniel Jiang and
                                Kavosh Asadi and Kaveh Hassani and Paul Sajda and Jalaj Bhandari and Yonathan Efroni},
                year         = 2026,
                eprint       = {arXiv:2605.25507},
            }"""),
    }

    @functools.wraps(GRPOTrainer.__init__)  # type: ignore[misc]  # editors and notebooks show TRL's parameters
    def __init__(
        self,
        model,
        reward_funcs=None,
        args: GRPOConfig | None = None,
        *positional,
        localizer: Callable[[list[FailedCompletion]], Sequence[int]] | None = None,
        step_delimiter: Callable[[str], Sequence[int]] | None = None,
        **keywords,
    ):
        given = dict(zip(_POSITIONAL, positional, strict=False)) | keywords
        for name in ("rollout_func", "tools", "environment_factory"):
            if given.get(name):
                raise ValueError(_REFUSED.format(name))
        super().__init__(model, reward_funcs, args, *positional, **keywords)
        if self._is_vlm:
            raise ValueError(_REFUSED.format("processing_class (multimodal)"))
        self._localizer = check_localizer(self.args.localizer if localizer is None else localizer)  # type: ignore[arg-type]
        if self._localizer == "random" and self.args.seed_selection == "furthest":
            raise ValueError(
                "seed_selection='furthest' needs to know the first error of every failed completion, and localizer="
                "'random' names none. Use localizer='self', a function, or seed_selection='random'."
            )
        self._step_delimiter = step_delimiter or self.args.step_delimiter
        self._correctness = _correctness_index(self.reward_func_names, self.args.correctness_reward)
        eos_and_pad = (*self.eos_token_ids, self._tokenizer.pad_token_id)
        self._end_ids = frozenset(eos_and_pad)
        self._roll: Rollout | None = None

    # --- what TRL calls ---

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._roll = roll = Rollout(self, inputs)
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._roll = None
        advantages = group_advantages(
            roll.rewards,
            self.reward_weights,
            torch.tensor([slot.group for slot in roll.plan.slots]),
            scale_rewards=self.scale_rewards,
            multi_objective_aggregation=self.multi_objective_aggregation,
        )
        output["advantages"] = advantages[roll.rank * len(inputs) : (roll.rank + 1) * len(inputs)]
        logged: Any = self._logs["advantages"]
        for _ in range(len(advantages)):
            logged.pop()
        logged.extend(advantages.tolist())
        # TRL's count of the loss's tokens on all processes, of which `mask_truncated_completions` leaves some out.
        roll.metrics["reset/trained_tokens"] = float(output["num_items_in_batch"])
        for name, value in roll.metrics.items():
            self._metrics["train"][name].append(value)
        return output

    def _generate(self, prompts):
        # In evaluation there is no rollout: TRL generates as ever.
        self.rollout_func = None if self._roll is None else self._rollout
        return super()._generate(prompts)

    def _rollout(self, prompts, trainer) -> dict[str, list | None]:
        roll = self._roll
        assert roll is not None
        roll.run(prompts)
        self._pending_extra_logs.update(roll.columns)  # TRL gathers them into the completions table
        logprobs = [sample.logprobs for sample in roll.samples]
        return {
            "prompt_ids": roll.prompt_ids,
            "completion_ids": [sample.ids for sample in roll.samples],
            "logprobs": None if logprobs[0] is None else logprobs,
            "env_mask": roll.env_mask,
        }

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._roll is not None:
            return self._roll.rewards  # every completion was scored in its phase
        # The table of completions keeps its last rows, so that these columns have to go on in evaluation.
        self._pending_extra_logs.update(completion_role=["fresh"] * len(inputs), reset_step=[None] * len(inputs))
        inputs = [{**row, "completion_role": "fresh"} for row in inputs]
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    # --- what the rollout asks for ---

    def _token_ids(self, prompts: list) -> list[list[int]]:
        return [list(ids) for ids in self._tokenize_prompts(prompts)[0]]

    def _sample(self, prompt_ids: list[list[int]], max_tokens: int, temperature: float | None = None) -> list[Sample]:
        """One completion for each of `prompt_ids`, from whichever engine TRL generates with."""
        with self._sampling(max_tokens, self.temperature if temperature is None else temperature):
            ids, logprobs = self._generate_single_turn(prompt_ids, None, {}, 1)
        if logprobs is None:
            return [Sample(list(one)) for one in ids]
        return [Sample(list(one), list(values)) for one, values in zip(ids, logprobs, strict=True)]

    @contextmanager
    def _sampling(self, max_tokens: int, temperature: float) -> Iterator[None]:
        """Every engine reads these settings anew at each call."""
        engine: Any = self
        changes: dict[str, Any]
        if self.use_vllm:
            engine, changes = self.vllm_generation, {"max_completion_length": max_tokens, "temperature": temperature}
        else:
            settings = {"max_new_tokens": max_tokens, "temperature": temperature}
            config = copy.deepcopy(self.generation_config)
            config.update(**settings)
            changes = {"generation_config": config, "generation_kwargs": self.generation_kwargs | settings}
        before = {name: getattr(engine, name) for name in changes}
        try:
            vars(engine).update(changes)
            yield
        finally:
            vars(engine).update(before)

    def _score(
        self, inputs: list[dict], prompt_ids: list[list[int]], ids: list[list[int]]
    ) -> tuple[torch.Tensor, dict]:
        """TRL's rewards of all processes' rows, and what the reward functions logged for the completions table."""
        prompts = [row["prompt"] for row in inputs]
        rewards = super()._calculate_rewards(inputs, prompts, self._decode(prompts, prompt_ids, ids), ids)
        columns = dict(self._pending_extra_logs)
        self._pending_extra_logs.clear()
        return rewards, columns

    def _decode(self, prompts: list, prompt_ids: list[list[int]], ids: list[list[int]]) -> list:
        """Completions as TRL hands them to reward functions: it decodes only after the rollout."""
        if not is_conversational({"prompt": prompts[0]}):
            return self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        if any(getattr(self._tokenizer, name, None) is not None for name in ("response_template", "response_schema")):
            pairs = zip(ids, prompt_ids, strict=True)
            return [[parse_response(self._tokenizer, one, prefix=prefix)] for one, prefix in pairs]
        contents = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [[{"role": "assistant", "content": content}] for content in contents]

    def _decode_exactly(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _failed(self, rewards: torch.Tensor) -> torch.Tensor:
        """Which rows' completions are wrong. One that was not scored is neither a seed nor counted as wrong."""
        return rewards[:, self._correctness] < self.args.failure_threshold

    def _unscored(self, rewards: torch.Tensor) -> torch.Tensor:
        return torch.isnan(rewards[:, self._correctness])


def _correctness_index(names: list[str], chosen: str | int | None) -> int:
    """The reward function that `correctness_reward` means. Lambdas and partial functions may share a name."""
    if isinstance(chosen, str) and chosen not in names and re.fullmatch("-?[0-9]+", chosen):
        chosen = int(chosen)  # from a command line, where every value is text
    if chosen is None:
        chosen = 0
    if isinstance(chosen, int) and -len(names) <= chosen < len(names):
        return chosen
    if chosen not in names:
        raise ValueError(f"correctness_reward must be one of {names} or an index of them, got {chosen!r}")
    if names.count(chosen) > 1:
        raise ValueError(f"correctness_reward={chosen!r} is the name of several of {names}: give the index of one")
    return names.index(chosen)
