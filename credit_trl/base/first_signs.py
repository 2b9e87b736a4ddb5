"""Warn once where the first logged figures of a run show a setting under which nothing can be learned."""

from accelerate.logging import get_logger
from transformers import TrainerCallback

logger = get_logger(__name__)

LOGS = 3  # in a row, from the first one on

# metric -> the value that is a bad sign, and what to say. The fields of `args` stand in braces.
SIGNS = {
    "completions/clipped_ratio": (
        1.0,
        "Every completion so far was cut off at max_completion_length={args.max_completion_length}, before its end. "
        "Raise it, or look at what the model writes with log_completions=True.",
    ),
    "reset/kept_fraction": (
        0.0,
        "Every reset so far went back to the beginning of its completion. Either completions have a single step: set "
        "step_delimiter, now {args.step_delimiter!r}, to what the model writes between steps. Or step 1 is always the "
        "one that is named: see reset/parse_rate, and reset_offset, now {args.reset_offset}.",
    ),
}


class FirstSigns(TrainerCallback):
    """Look at the first logs of a run, and warn of each of `SIGNS` that all of them show."""

    def __init__(self):
        self.seen = dict.fromkeys(SIGNS, 0)  # metric -> logs that showed the sign

    def on_log(self, args, state, control, logs=None, **kwargs):
        for metric in [metric for metric in self.seen if metric in (logs or ())]:
            bad, message = SIGNS[metric]
            self.seen[metric] += 1
            if logs[metric] != bad:
                del self.seen[metric]
            elif self.seen[metric] == LOGS:
                del self.seen[metric]
                logger.warning(message.format(args=args))
