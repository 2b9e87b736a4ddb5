"""What every trainer here does with its `args` before TRL's own constructor runs, and with two faults in a rollout."""

import functools

import torch
from accelerate.logging import get_logger
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import get_config_model_id

from .config import CreditConfig
from .resume import ResumableTrainer

logger = get_logger(__name__)


class CreditTrainer(ResumableTrainer):
    """`args` may be a config of the method (`config_class`), one of that class's bases, TRL's `GRPOConfig`, or None."""

    config_class: type[CreditConfig] = CreditConfig
    _name = "GRPO-credit"

    @functools.wraps(GRPOTrainer.__init__)  # type: ignore[misc]  # editors and notebooks show TRL's parameters
    def __init__(self, model, reward_funcs=None, args: GRPOConfig | None = None, *positional, **keywords):
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
            args = self.config_class.from_grpo_config(args)
        args.check_options()  # fields may have been set since the config was made
        super().__init__(model, reward_funcs, args, *positional, **keywords)

    def _generate_single_turn(self, prompt_ids, *rest, **keywords):
        ids, logprobs = super()._generate_single_turn(prompt_ids, *rest, **keywords)
        empty = sum(len(one) == 0 for one in ids)
        # With tools TRL also asks for what follows a tool's answer, which may be nothing.
        if len(ids) != len(prompt_ids) or (empty and not self.tools):
            raise RuntimeError(
                f"The engine was asked for {len(prompt_ids)} completions and returned {len(ids)}, {empty} of them "
                "without a token. See its log above: an aborted request or a prompt that it does not take ends so."
            )
        return ids, logprobs

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        infinite = torch.isinf(rewards)
        for name, count in zip(self.reward_func_names, infinite.sum(dim=0).tolist(), strict=True):
            if count:
                logger.warning(
                    f"The reward function '{name}' returned an infinite reward for {count} completions, which are "
                    "taken for not scored by it, as where it returns None: their group's mean would be infinite."
                )
        return rewards.masked_fill(infinite, torch.nan)
