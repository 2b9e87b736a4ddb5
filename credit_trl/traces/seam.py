"""Hand credit through the seam into TRL's loss, and raise an error for a loss that goes past it."""

import sys

import torch
from trl import GRPOTrainer

from ..base.data_checks import KNOWN_PACKAGES
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


def check_credit_arrived(trainer: GRPOTrainer, inputs: LossInputs, beta: float) -> None:
    """Raise `RuntimeError` if the loss that has just been computed from `inputs` did not use the credit in them.

    Args:
        trainer: the trainer whose loss it was.
        inputs: the inputs that the loss was given.
        beta: the coefficient of the KL term that the loss was given.
    """
    if inputs.times_asked != 1:
        raise RuntimeError(
            loss_went_past(
                trainer,
                "The loss has to ask the trainer's `_get_per_token_logps_and_entropies` for log-probabilities once, "
                f"which is where the credit is assigned, and asked {inputs.times_asked} times.",
            )
        )
    if inputs.unread:
        raise RuntimeError(
            loss_went_past(
                trainer,
                f"The loss did not read {' and '.join(sorted(inputs.unread))}, in which the credit is, from its inputs "
                "after it had asked for log-probabilities.",
            )
        )
    if isinstance(beta, OwnRatioBeta) and beta.times_used != 1:
        raise RuntimeError(
            loss_went_past(
                trainer,
                f"The loss used `self.beta * per_token_kl` {beta.times_used} times instead of once, so that the KL "
                "term is not multiplied by each token's own ratio.",
            )
        )


def loss_went_past(trainer: GRPOTrainer, what: str) -> str:
    """Return the message of the error: what happened, what it means, whose code it probably was, and what to do."""
    name = type(trainer).__name__
    if "unsloth" in sys.modules:
        advice = (
            "Unsloth is imported, and it replaces TRL's trainers and their loss: train in a process that does not "
            "import it, with a model from transformers or peft."
        )
    else:
        advice = (
            "Leave out whatever replaces or patches TRL's GRPOTrainer, let a subclass's method call the one that it "
            "overrides, or use the version of TRL that credit_trl is tested with."
        )
    return (
        f"{what} Going on would train plain GRPO, without the credit of {name}, and nothing would show it. The weights "
        f"are those of the last finished step. {_foreign_methods(type(trainer))}{advice}"
    )


def _foreign_methods(trainer_class: type[GRPOTrainer]) -> str:
    """Return sentences that name the methods on the way to the loss whose code is of another package; or nothing."""
    foreign = []
    for kind in trainer_class.__mro__:
        for name in ("training_step", "prediction_step", "compute_loss", "_compute_loss"):
            module = getattr(vars(kind).get(name), "__globals__", {}).get("__name__", "a module without a name")
            if name in vars(kind) and module.split(".")[0] not in KNOWN_PACKAGES:
                foreign.append(f"{kind.__name__}.{name} is not TRL's but comes from {module}.")
    return " ".join([*foreign, ""])
