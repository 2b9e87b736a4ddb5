"""Make multi-step modular arithmetic, written out step by step, with the truth of every step known.

A problem is a start value and a chain of operations, read from left to right without precedence, modulo 17. The
solution writes one operation a line and then repeats the result as the answer:

    prompt       5+12*3-8:
    completion   5+12=0
                                (steps are separated by a blank line, the delimiter "\\n\\n")
                 0*3=0

                 0-8=9

                 #9

Addition, subtraction and multiplication by 1..16 are bijections modulo a prime, so a wrong step always makes the final
answer wrong unless a later wrong step happens to repair it: the reward at the end says nothing about *which* step
failed, and the functions below do.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

MODULUS = 17
STEP_DELIMITER = "\n\n"
ANSWER_MARK = "#"
LOCALIZATION_MARK = "?"
# How the base model is asked for the number of the first wrong step, which it answers as \boxed{h}.
LOCALIZATION_TEMPLATE = "{problem}{steps}" + LOCALIZATION_MARK
OPERATORS = "+-*"
MAX_STEPS = 16  # the longest chain that the base model was shown

_STEP = re.compile(r"(\d+)([+*-])(\d+)=(\d+)")
_PROBLEM = re.compile(r"(\d+)((?:[+*-]\d+)+):")


def apply_operation(value: int, operator: str, operand: int) -> int:
    """Apply one exact step modulo 17."""
    if operator == "+":
        return (value + operand) % MODULUS
    if operator == "-":
        return (value - operand) % MODULUS
    return (value * operand) % MODULUS


@dataclass(frozen=True)
class Problem:
    """Hold a start value and the operations to apply to it, in order."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @classmethod
    def sample(cls, rng: random.Random, num_steps: int) -> "Problem":
        """Draw a problem of `num_steps` operations."""
        operations = []
        for _ in range(num_steps):
            operator = rng.choice(OPERATORS)
            # Multiplying by zero would forget every error made before it.
            operations.append((operator, rng.randrange(1 if operator == "*" else 0, MODULUS)))
        return cls(rng.randrange(MODULUS), tuple(operations))

    @classmethod
    def parse(cls, prompt: str) -> "Problem":
        """Read a problem from its `prompt`. Raises `ValueError` for a text that is not a problem."""
        match = _PROBLEM.fullmatch(prompt)
        if match is None:
            raise ValueError(f"not a testbed problem: {prompt!r} (expected for example '5+12*3-8:')")
        operations = re.findall(r"([+*-])(\d+)", match[2])
        return cls(int(match[1]), tuple((operator, int(operand)) for operator, operand in operations))

    @property
    def prompt(self) -> str:
        """Return the problem as the model reads it, such as `5+12*3-8:`."""
        return f"{self.start}{''.join(f'{operator}{operand}' for operator, operand in self.operations)}:"

    @property
    def answer(self) -> int:
        """Return the exact result."""
        value = self.start
        for operator, operand in self.operations:
            value = apply_operation(value, operator, operand)
        return value

    def solution(self, results: Sequence[int] | None = None) -> str:
        """Write the completion that states `results` step by step; without them, the exact one."""
        value, lines = self.start, []
        for index, (operator, operand) in enumerate(self.operations):
            result = apply_operation(value, operator, operand) if results is None else results[index]
            lines.append(f"{value}{operator}{operand}={result}")
            value = result
        return STEP_DELIMITER.join([*lines, f"{ANSWER_MARK}{value}"])


def step_truths(problem: Problem, completion: str) -> list[bool]:
    """Return for every step of `completion` whether it is right *given the steps before it*.

    A step is right if it takes up the result stated before it, applies the problem's next operation and computes
    the result correctly; the answer line is right if it repeats the last result. Later steps can be right again after
    a wrong one, since they are judged on what they were given.
    """
    truths, value = [], problem.start
    steps = completion.split(STEP_DELIMITER)
    for index, step in enumerate(steps):
        if index >= len(problem.operations):
            truths.append(index == len(problem.operations) and step == f"{ANSWER_MARK}{value}")
            continue
        operator, operand = problem.operations[index]
        truths.append(step == f"{value}{operator}{operand}={apply_operation(value, operator, operand)}")
        match = _STEP.fullmatch(step)
        if match is not None:
            value = int(match[4])
    return truths


def first_error(problem: Problem, completion: str) -> int | None:
    """Return the 1-based number of the first wrong step, `None` if there is none. A missing step counts as wrong."""
    truths = step_truths(problem, completion)
    if False in truths:
        return truths.index(False) + 1
    return None if len(truths) == len(problem.operations) + 1 else len(truths) + 1


def answer_reward(completions: list[str], answer: list[int], **kwargs) -> list[float]:
    """Return 1.0 where the completion's answer line states the right answer, else 0.0 (a TRL reward function)."""
    return [
        float(completion.rpartition(STEP_DELIMITER)[2] == f"{ANSWER_MARK}{expected}")
        for completion, expected in zip(completions, answer, strict=True)
    ]


def as_dataset(problems: Sequence[Problem]) -> Dataset:
    """Return `problems` as TRL wants them: `prompt` and the reward's `answer`."""
    columns = {name: [getattr(problem, name) for problem in problems] for name in ("prompt", "answer")}
    return Dataset.from_dict(columns)


def make_dataset(num_problems: int, *, min_steps: int = 4, max_steps: int = 6, seed: int = 0) -> Dataset:
    """Make random problems with `min_steps` to `max_steps` steps, with the columns of `as_dataset`.

    Raises `ValueError` for step counts outside 1..16, which the base model has never seen.
    """
    if not 1 <= min_steps <= max_steps <= MAX_STEPS:
        raise ValueError(f"need 1 <= min_steps <= max_steps <= {MAX_STEPS}, got {min_steps=} and {max_steps=}")
    rng = random.Random(seed)
    return as_dataset([Problem.sample(rng, rng.randint(min_steps, max_steps)) for _ in range(num_problems)])
