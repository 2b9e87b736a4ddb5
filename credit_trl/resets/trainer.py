"""Reset groups in TRL's GRPO trainer, through one seam and without copying its loss, sampler or reward calls.

`GRPOTrainer._generate` takes what its `rollout_func` returns, here the phases of `rollout.py`. The `env_mask`
keeps the prefixes out of the loss, its denominator and every token metric of TRL. `_calculate_rewards` hands TRL the
rewards of the phases, and the advantages that TRL makes of them are replaced by those of the groups (`advantages.py`).
"""

import copy
import textwrap
from collections.abc import Callable, Sequence

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel
from trl import GRPOConfig

from ..base.loss_inputs import LossInputs
from ..base.resume import ExactResumeMixin
from ..base.trainer import CreditTrainer, takes_trl_arguments
from ..generation.trainer_engine import TrainerEngine
from . import checks
from .advantages import group_advantages
from .config import SRPOConfig
from .interface import Scores
from .localization import FailedCompletion, check_localizer
from .localizers import make_localizer
from .records import CompletionRecord
from .rollout import Rollout

logger = get_logger(__name__)


class SRPOTrainer(ExactResumeMixin, CreditTrainer):
    """Train with reset groups: SRPO, and RRPO (arXiv 2605.25507). Settings and defaults are those of `SRPOConfig`.

    Args:
        localizer: a callable that takes a list of `FailedCompletion` and returns the 1-based step of the first error of
            each, instead of `args.localizer`.
        step_delimiter: a callable that takes a completion's text and returns the character offsets after which a step
            ends, instead of `args.step_delimiter`.

    All other arguments are those of `trl.GRPOTrainer`; a plain `GRPOConfig` gets the defaults for the fields it lacks.
    Reward functions get a `completion_role` column: "base", "reset" (continues a prefix), "fresh" (any other, also in
    evaluation) or "seed" (drawn to be cut, not trained). `rollout_records` says what became of the last batch.

    Raises:
        ValueError: options that cannot work, by name.
        RuntimeError: other code than TRL's has sampled or computed the loss, so that resets would be lost.
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

    @takes_trl_arguments
    def __init__(
        self,
        model,
        reward_funcs=None,
        args: GRPOConfig | None = None,
        *,
        localizer: Callable[[list[FailedCompletion]], Sequence[int | None]] | None = None,
        step_delimiter: Callable[[str], Sequence[int]] | None = None,
        **keywords,
    ):
        checks.refuse_arguments(keywords)
        super().__init__(model, reward_funcs, args, **keywords)
        named = self.args.localizer if localizer is None else localizer
        checks.refuse_unread(self.args, named, step_delimiter)
        self._localizer = check_localizer(make_localizer(self.args, self.accelerator, localizer))
        self._step_delimiter = step_delimiter or self.args.step_delimiter
        self._correctness = checks.correctness_index(self.reward_func_names, self.args.correctness_reward)
        self._engine = TrainerEngine(self)
        self._rollout: Rollout | None = None
        self.rollout_records: list[CompletionRecord] = []  # of this process's last generation batch
        checks.refuse_column(checks.ROLE, checks.column_names(self), "the data set")
        functions = zip(self.reward_func_names, self.reward_funcs, strict=True)
        for notice in checks.notices(dict(functions), self.args, named):
            logger.warning(notice)

    # --- what TRL calls ---

    def _generate_and_score_completions(self, inputs):
        checks.refuse_column(checks.ROLE, inputs[0], "the data set")
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        accumulation = self.args.gradient_accumulation_steps
        # Counts generation batches, several of which may be made for one step, and goes on after a resume.
        step = self.state.global_step * accumulation + self._step % accumulation
        self._rollout = rollout = Rollout(
            self._engine, self._score, self.args,
            self.num_generations, self.max_completion_length,  # type: ignore[arg-type]  # both are checked to be set
            inputs, self._localizer, self._step_delimiter, correctness=self._correctness, step=step,
            rank=self.accelerator.process_index, processes=self.accelerator.num_processes,
        )  # fmt: skip
        patch = {name: value for name, value in vars(self).items() if name == "_calculate_rewards"}  # somebody's
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._rollout = None
            vars(self).pop("_calculate_rewards", None)
            vars(self).update(patch)
        checks.check_rolled_out(self, rollout.records)
        checks.check_mask(rollout.records, output.get("tool_mask"))
        advantages = group_advantages(
            rollout.rewards,
            self.reward_weights,
            torch.tensor([slot.group for slot in rollout.plan.slots]),
            scale_rewards=self.scale_rewards,
            multi_objective_aggregation=self.multi_objective_aggregation,
        )
        values, own = advantages.tolist(), slice(rollout.rank * len(inputs), (rollout.rank + 1) * len(inputs))
        output["advantages"] = advantages[own]
        pairs = zip(rollout.records, values[own], strict=True)
        self.rollout_records = [record._replace(advantage=advantage) for record, advantage in pairs]
        self._logs["advantages"].extend(values)  # type: ignore[attr-defined]  # holds a batch: TRL's advantages go
        # TRL's count of the loss's tokens on all processes, of which `mask_truncated_completions` leaves some out.
        rollout.metrics["reset/trained_tokens"] = float(output["num_items_in_batch"])
        for name, value in rollout.metrics.items():
            self._metrics["train"][name].append(value)
        return output

    def _generate(self, prompts):
        # In evaluation there is no rollout: TRL generates as ever.
        self.rollout_func = None if self._rollout is None else self._roll
        *output, images, tool_images = super()._generate(prompts)
        if self._rollout is not None:
            checks.check_rolled_out(self, self._rollout.records)
            images = self._engine.images(prompts)  # TRL knows of none after a `rollout_func`
        return *output, images, tool_images

    def _roll(self, prompts, trainer) -> dict[str, list | None]:
        rollout = self._rollout
        assert rollout is not None
        rollout.run(prompts)
        self._pending_extra_logs.update(rollout.columns)  # TRL gathers them into the completions table
        self._pending_metrics.update(rollout.logged)  # and averages these
        # Every completion was scored in its phase. The method that scores, which a subclass may have made its own,
        # must not do so again when TRL asks for the rewards.
        vars(self)["_calculate_rewards"] = lambda *arguments: rollout.rewards
        logprobs = [sample.logprobs for sample in rollout.samples]
        return {
            "prompt_ids": rollout.prompt_ids,
            "completion_ids": [sample.ids for sample in rollout.samples],
            "logprobs": None if logprobs[0] is None else logprobs,
            "env_mask": [record.loss_mask for record in rollout.records],
        }

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._rollout is None:
            # The table of completions keeps its last rows, so that these columns have to go on in evaluation.
            self._pending_extra_logs.update(completion_role=["fresh"] * len(inputs), reset_step=[None] * len(inputs))
            inputs = [{**row, "completion_role": "fresh"} for row in inputs]
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _compute_loss(self, model, inputs):
        handed = LossInputs.of(inputs)
        if self.model.training:
            if "tool_mask" not in inputs:
                raise RuntimeError(checks.LOST_MASK)
            handed.expect("advantages", "tool_mask")
        return super()._compute_loss(model, handed)

    # --- what the rollout asks for ---

    def _score(self, inputs: list[dict], prompt_ids: list[list[int]], ids: list[list[int]]) -> Scores:
        """Score completions as TRL does, and take what the reward functions logged."""
        # What a reward function does to its arguments in place is nobody else's business.
        inputs, ids = [copy.deepcopy(row) for row in inputs], [list(tokens) for tokens in ids]
        prompts = [row["prompt"] for row in inputs]
        rewards = self._calculate_rewards(inputs, prompts, self._engine.decode(prompts, prompt_ids, ids), ids)
        columns, metrics = dict(self._pending_extra_logs), dict(self._pending_metrics)
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        for name in (checks.ROLE, checks.STEP):
            checks.refuse_column(name, columns, "log_extra of a reward function")
        return Scores(rewards, columns, metrics)
