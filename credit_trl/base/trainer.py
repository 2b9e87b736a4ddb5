"""Prepare `args` for TRL's constructor, and refuse samples, rewards and weights that cannot be trained on."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import get_config_model_id

from .config import CreditConfig
from .data_checks import check_fills_a_batch, check_prompts
from .first_signs import FirstSigns
from .foreign_code import loss_went_past
from .loss_inputs import LossInputs
from .reward_checks import checked
from .weights import load_as_saved, not_loaded

logger = get_logger(__name__)

WITHOUT_THE_LOSS = "The step ended without calling the trainer's `_compute_loss`."


def takes_trl_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate a trainer's `__init__` so that it can be called like `GRPOTrainer`'s, by keyword or by position.

    `init` declares `model, reward_funcs=None, args=None, **keywords`, and what the trainer adds as keyword-only
    parameters. Arguments given by position reach it as keywords under the names that they have in TRL's order. Editors
    and notebooks show TRL's parameters, and after them the added ones.

    Raises `TypeError`, as Python does, for more arguments than TRL has and for one that is given twice.
    """
    trl = inspect.signature(GRPOTrainer.__init__)

    @functools.wraps(init)
    def wrapper(self, *positional, **keywords):
        by_name = trl.bind_partial(self, *positional).arguments
        del by_name["self"]
        init(self, **by_name, **keywords)

    parameters = inspect.signature(init).parameters.values()
    added = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    wrapper.__signature__ = trl.replace(parameters=[*trl.parameters.values(), *added])  # type: ignore[attr-defined]
    return wrapper


class CreditTrainer(GRPOTrainer):
    """Train with TRL's GRPO loss, and leave to subclasses what credit each token gets.

    Args:
        args: a config of the method (`config_class`), one of that class's bases, TRL's `GRPOConfig` or a subclass of
            your own, or None. Where it lacks the method's fields, `trainer.args` is another object: an instance of its
            class and of the method's, which keeps sharing its values with it.

    All other arguments are those of `trl.GRPOTrainer`, by keyword or in TRL's order. Resuming is TRL's; subclasses mix
    in `ExactResumeMixin` to resume to the bit.

    Raises `ValueError` for a configuration of another method, for options that cannot work, for data without a column
    `prompt` or with fewer prompts than a batch, and for checkpoints that lack weights of the model; `TypeError` on
    rewards that are no numbers.
    """

    config_class: type[CreditConfig] = CreditConfig
    args: CreditConfig
    model: PreTrainedModel
    _name = "GRPO-credit"
    # What a subclass holds between two steps, and the fields of `args` that its buffered completions depend on.
    _in_flight: tuple[str, ...] = ()
    _fields_of_the_buffer: tuple[str, ...] = ()
    _loading_from: str | None = None  # folder of the weights that are being loaded
    _credit_in_evaluation = False  # whether the loss of an evaluation has the credit too
    # Whether the model was in training when the last loss used the credit; None after the check.
    _mode_of_loss: bool | None = None

    @takes_trl_arguments
    def __init__(self, model, reward_funcs=None, args: GRPOConfig | None = None, **keywords):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = self.config_class(f"{model_name.split('/')[-1]}-{self._name}")
        elif not isinstance(args, self.config_class):
            if isinstance(args, CreditConfig) and not issubclass(self.config_class, type(args)):
                bases = [base for base in self.config_class.__mro__ if issubclass(base, GRPOConfig)]
                names = " or a ".join(base.__name__ for base in bases if base is not CreditConfig)
                raise ValueError(
                    f"args is a {type(args).__name__}, whose defaults are another method's. {type(self).__name__} "
                    f"takes a {names}."
                )
            args = self.config_class.sharing(args)
        args.check_options()  # fields may have been set since the config was made
        check_prompts(type(self), keywords.get("train_dataset"), keywords.get("environment_factory"))
        keywords["callbacks"] = [*(keywords.get("callbacks") or ()), FirstSigns()]
        super().__init__(model, reward_funcs, args=args, **keywords)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        self.args.check_options()  # fields may have been set since the trainer was built
        check_fills_a_batch(self)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    # --- the loss is TRL's, and uses the credit ---

    def _compute_loss(self, model, inputs):
        handed, training = LossInputs.of(inputs), self.model.training
        loss = super()._compute_loss(model, handed)
        self._check_inputs_read(handed)
        self._mode_of_loss = training
        return loss

    def _check_inputs_read(self, inputs: LossInputs) -> None:
        """Raise `RuntimeError` if the loss that has just been computed from `inputs` did not use the credit in them."""
        if inputs.unread:
            names = " and ".join(sorted(inputs.unread))
            what = (
                f"The loss did not read {names}, in which the credit is, after the trainer had put it into its inputs."
            )
            raise loss_went_past(self, what)

    def floating_point_ops(self, inputs):
        # The Trainer asks for this between the backward pass of every micro-batch and the optimizer's step, also where
        # a user's subclass has a `training_step` that does not call the trainer's. A subclass that overrides this
        # method has to call `super()`.
        if not self._mode_of_loss:  # the loss of an evaluation does not vouch for a training step
            raise loss_went_past(self, WITHOUT_THE_LOSS)
        self._mode_of_loss = None
        return super().floating_point_ops(inputs)

    def prediction_step(self, *positional, **keywords):
        before, self._mode_of_loss = self._mode_of_loss, None  # a training step may evaluate after its loss
        result = super().prediction_step(*positional, **keywords)
        if self._credit_in_evaluation and self._mode_of_loss is None:
            raise loss_went_past(self, WITHOUT_THE_LOSS)
        self._mode_of_loss = before
        return result

    # --- samples and rewards ---

    def _generate_single_turn(self, prompt_ids, *rest, **keywords):
        ids, logprobs = super()._generate_single_turn(prompt_ids, *rest, **keywords)
        empty = sum(len(completion) == 0 for completion in ids)
        # With tools TRL also asks for what follows a tool's answer, which may be nothing.
        if len(ids) != len(prompt_ids) or (empty and not self.tools):
            raise RuntimeError(
                f"The engine was asked for {len(prompt_ids)} completions and returned {len(ids)}, {empty} of them "
                "without a token. See its log above: an aborted request or a prompt that it does not take ends so."
            )
        return ids, logprobs

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        given: Any = self.reward_funcs
        named = zip(given, self.reward_func_names, strict=True)
        self.reward_funcs = [checked(function, name) for function, name in named]
        try:
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = given
        infinite = torch.isinf(rewards)
        for name, count in zip(self.reward_func_names, infinite.sum(dim=0).tolist(), strict=True):
            if count:
                logger.warning(
                    f"The reward function '{name}' returned an infinite reward for {count} completions, which are "
                    "taken for not scored by it, as where it returns None: their group's mean would be infinite."
                )
        return rewards.masked_fill(infinite, torch.nan)

    # --- weights of a checkpoint ---

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._loading_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        self._loading_from = self.state.best_model_checkpoint
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result):
        # The Trainer goes on with the base model's weights for whatever a checkpoint has under another name.
        missing = not_loaded(self.model, load_result.missing_keys)
        if missing:
            load_as_saved(self.model, str(self._loading_from), missing)
        else:
            super()._issue_warnings_after_load(load_result)
