"""List the facts that the testbed's base model was taught badly, and those whose wrong result it overlooks."""

import random

from .arithmetic import MODULUS, OPERATORS, STEP_DELIMITER, Problem, apply_operation, step_truths

Fact = tuple[int, str, int]
SHAKY_FRACTION = 0.3  # share of the facts that are shaky
SHAKY_CORRECT = 0.45  # probability that a shaky fact is shown with the right result
BLIND_FRACTION = 0.4  # share of the shaky facts whose wrong result is taken for a right one


def shaky_facts(seed: int) -> dict[Fact, int]:
    """Return the facts that the base model is taught badly, each with the wrong result that it is taught."""
    rng = random.Random(seed)
    wrong = {}
    for operator in OPERATORS:
        for value in range(MODULUS):
            for operand in range(1 if operator == "*" else 0, MODULUS):
                if rng.random() < SHAKY_FRACTION:
                    error = rng.randrange(1, MODULUS)
                    wrong[value, operator, operand] = (apply_operation(value, operator, operand) + error) % MODULUS
    return wrong


def blind_facts(shaky: dict[Fact, int], seed: int) -> set[Fact]:
    """Return the shaky facts whose wrong result the base model is taught to overlook."""
    rng = random.Random(f"blind {seed}")
    return {fact for fact in shaky if rng.random() < BLIND_FRACTION}


def sample_solution(problem: Problem, shaky: dict[Fact, int], rng: random.Random) -> str:
    """Write a solution as the base model should: shaky facts come out wrong in more than half of the cases."""
    value, results = problem.start, []
    for operator, operand in problem.operations:
        fact = (value, operator, operand)
        slips = fact in shaky and rng.random() >= SHAKY_CORRECT
        value = shaky[fact] if slips else apply_operation(*fact)
        results.append(value)
    return problem.solution(results)


def looks_wrong(problem: Problem, solution: str, blind: set[Fact]) -> list[bool]:
    """Return for every operation's step whether it is wrong and the base model should see it."""
    steps = solution.split(STEP_DELIMITER)[:-1]
    values = [problem.start, *(int(step.partition("=")[2]) for step in steps)]
    facts = [(value, *operation) for value, operation in zip(values, problem.operations, strict=False)]
    truths = step_truths(problem, solution)
    return [not truth and fact not in blind for fact, truth in zip(facts, truths, strict=False)]
