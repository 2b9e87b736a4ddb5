"""Say in an error whose code took the place of TRL's and the trainer's, and what to do."""

import sys
from collections.abc import Iterable

from trl import GRPOTrainer

from .data_checks import KNOWN_PACKAGES

LOSS = ("training_step", "prediction_step", "compute_loss", "_compute_loss")  # methods on the way to the loss


def loss_went_past(trainer: GRPOTrainer, what: str) -> RuntimeError:
    """Return the error of a step whose loss did not use the credit; `what` says how that was seen."""
    return RuntimeError(
        f"{what} Going on would train without the credit of {type(trainer).__name__}, and nothing would show it. The "
        f"weights are those of the last finished step. {whose_code(trainer, LOSS)}"
    )


def whose_code(trainer: GRPOTrainer, names: Iterable[str]) -> str:
    """Return sentences that name those of the methods `names` whose code is of another package, and what to do."""
    sentences = []
    for kind in type(trainer).__mro__:
        for name in names:
            module = getattr(vars(kind).get(name), "__globals__", {}).get("__name__", "a module without a name")
            if name in vars(kind) and module.split(".")[0] not in KNOWN_PACKAGES:
                sentences.append(f"{kind.__name__}.{name} is not TRL's but comes from {module}.")
    if "unsloth" in sys.modules:
        sentences.append(
            "Unsloth is imported, and it replaces TRL's trainers and their loss: train in a process that does not "
            "import it, with a model from transformers or peft."
        )
    else:
        sentences.append(
            "Leave out whatever replaces or patches TRL's GRPOTrainer, let a subclass's method call the one that it "
            "overrides, or use the version of TRL that credit_trl is tested with."
        )
    return " ".join(sentences)
