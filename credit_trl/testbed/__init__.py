"""Provide a first run that needs nothing: a tiny base model, its arithmetic, and the truth of every step.

from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset

trainer = STraceTrainer(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(2000))
"""

from pathlib import Path

from .arithmetic import LOCALIZATION_TEMPLATE, Problem, answer_reward, first_error, make_dataset, step_truths

BASE_MODEL = Path(__file__).parent / "base_model"  # `python -m scripts.pretrain_testbed` makes it anew

__all__ = [
    "BASE_MODEL",
    "LOCALIZATION_TEMPLATE",
    "Problem",
    "answer_reward",
    "first_error",
    "make_dataset",
    "step_truths",
]
