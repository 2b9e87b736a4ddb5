"""Multiply the KL by the token's own ratio in TRL's loss, and raise an error for a loss that goes past the credit."""

import torch
from trl import GRPOTrainer

from ..base.foreign_code import loss_went_past
from ..base.loss_inputs import LossInputs


class OwnRatioBeta(float):
    """Stand for TRL's `beta` in one loss, and multiply every token's KL by the token's own importance ratio.

    TRL multiplies the KL by the ratio of the loss (`use_bias_correction_kl`), which is a traced one here. While the
    trainer switches that off, TRL's `beta * per_token_kl` arrives in this class. Everywhere else it is a float.
    """

    def __new__(cls, beta: float, ratio: torch.Tensor):
        value = super().__new__(cls, beta)
        value.ratio = ratio  # (B, T), with its gradient
        value.times_used = 0
        return value

    ratio: torch.Tensor
    times_used: int

    def __mul__(self, per_token_kl):
        self.times_used += 1
        # In place, because TRL logs the same tensor as `kl` afterwards.
        return float(self) * per_token_kl.mul_(self.ratio)


def check_assigned(trainer: GRPOTrainer, inputs: LossInputs, beta: float) -> None:
    """Raise `RuntimeError` unless the loss that was computed from `inputs` let the credit be assigned in it, once.

    Args:
        trainer: the trainer whose loss it was.
        inputs: the inputs that the loss was given.
        beta: the coefficient of the KL term that the loss was given.
    """
    if inputs.times_asked != 1:
        raise loss_went_past(
            trainer,
            "The loss has to ask the trainer's `_get_per_token_logps_and_entropies` for log-probabilities once, which "
            f"is where the credit is assigned, and asked {inputs.times_asked} times.",
        )
    if isinstance(beta, OwnRatioBeta) and beta.times_used != 1:
        raise loss_went_past(
            trainer,
            f"The loss used `self.beta * per_token_kl` {beta.times_used} times instead of once, so that the KL term is "
            "not multiplied by each token's own ratio.",
        )
