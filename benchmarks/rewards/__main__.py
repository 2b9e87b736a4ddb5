"""Measure what scoring by `accuracy` costs, beside `trl.rewards.accuracy_reward` and under hostile answers.

python -m benchmarks.rewards --output benchmarks/rewards/rewards_cpu.json
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from trl import rewards as trl_rewards

from benchmarks.common.measuring import in_turns, prepare, processor, ratio_quartiles
from credit_trl.rewards import pool
from credit_trl.rewards.mathematics import accuracy_reward

COMPLETIONS, HOSTILE, GROUP = 1024, 64, 8

# Answers that take minutes or hours to evaluate, or memory that no machine has; "@" makes each a different one.
HOSTILE_ANSWERS = [
    "9^{9^{9^{@}}}", "(@!)!!", r"\binom{10^{9}}{5\cdot 10^{8}}+@", r"\sum_{n=1}^{10^{@}} n^{n}",
    r"\prod_{n=1}^{10^{@}} n", "(x+y+z+w)^{@00}", "(" * 3000 + "@" + ")" * 3000, r"\sqrt{" * 500 + "@" + "}" * 500,
    r"\sin(\sin(\cos(\tan(x^{@}))))^{100}+(x+1)^{300}",
    r"\int_0^1 x^{x^{x^{@}}} dx", r"\int \sin(\cos(x^{@})) e^{x^2} dx", "2^{2^{2^{2^{@}}}}", "x+" * 500_000 + "@",
]  # fmt: skip


def problem(number: int, rng: random.Random) -> tuple[str, str, str]:
    """Return a gold in the style of MATH, a right answer written in another way, and a wrong one."""
    first, second = rng.randrange(3, 40), rng.randrange(3, 40)
    kinds = [
        (f"{first * second}", f"{first * second}", f"{first + second}"),
        (rf"\frac{{{first}}}{{{first + 1}}}", rf"\dfrac{{{2 * first}}}{{{2 * first + 2}}}", rf"\frac{{1}}{{{first}}}"),
        (rf"{first}\sqrt{{{second}}}", rf"\sqrt{{{second}}} \cdot {first}", rf"{second}\sqrt{{{first + 40}}}"),
        (f"({first},{first + second})", f"({first}, {first + second})", f"({first},{second - 50})"),
        (f"x^2+{first + second}x+{first * second}", f"(x+{first})(x+{second})", f"(x-{first})(x+{second})"),
        (rf"\frac{{{first}\pi}}{{4}}", rf"\frac{{{first}}}{{4}}\pi", rf"{first}\pi"),
        (f"{first}.{second}", f"{first}.{second}0", f"{second}.{first}1"),
        (f"{1000 * first + second}", f"{first},{second:03d}", f"{first}"),
    ]
    return kinds[number % len(kinds)]


def batch(seed: int) -> tuple[list[list[dict[str, str]]], list[str], list[float]]:
    """Return completions, golds and right rewards: groups of `GROUP` completions of a problem, half of them right."""
    rng = random.Random(seed)
    completions, golds, rewards = [], [], []
    for number in range(COMPLETIONS // GROUP):
        gold, right, wrong = problem(number, rng)
        for place in range(GROUP):
            answer = (right, wrong)[place % 2]
            text = f"We compute step by step. {'So we go on. ' * 40}The answer is $\\boxed{{{answer}}}$."
            completions.append([{"role": "assistant", "content": text}])
            golds.append(f"${gold}$")  # the form in which TRL's reward reads every kind of gold
            rewards.append(1.0 - place % 2)
    return completions, golds, rewards


def seconds(reward: Callable[..., Sequence[float | None]], completions: list, golds: list[str]) -> tuple[float, list]:
    start = time.perf_counter()
    given = reward(completions, solution=golds)
    return time.perf_counter() - start, list(given)


def measure(turns: int) -> dict[str, object]:
    rewards = {"trl": trl_rewards.accuracy_reward, "credit_trl": accuracy_reward}
    seeds = {method: iter(range(turns)) for method in rewards}
    wrong = dict.fromkeys(rewards, 0)
    unequal: list[int] = []
    told: dict[int, list[list]] = {}

    def run(method: str) -> dict[str, float]:
        seed = next(seeds[method])
        completions, golds, right = batch(seed)
        spent, given = seconds(rewards[method], completions, golds)
        wrong[method] += sum(reward != truth for reward, truth in zip(given, right, strict=True))
        told.setdefault(seed, []).append(given)
        return {"seconds": spent}

    start = time.perf_counter()
    accuracy_reward([r"\boxed{\pi}"] * 40, solution=[rf"{number}\pi" for number in range(2, 42)])
    started = time.perf_counter() - start
    runs = in_turns(rewards, turns, run)
    unequal = [sum(first != second for first, second in zip(*pair, strict=True)) for pair in told.values()]
    low, middle, high = ratio_quartiles("seconds", runs["trl"], runs["credit_trl"])

    hostile = []
    for turn in range(turns):
        completions, golds, right = batch(turns + turn)
        for number in range(HOSTILE):
            place = number * (COMPLETIONS // HOSTILE)
            answer = HOSTILE_ANSWERS[number % len(HOSTILE_ANSWERS)].replace("@", str(number + 7))
            completions[place] = [{"role": "assistant", "content": rf"\boxed{{{answer}}}"}]
            right[place] = 0.0
        spent, given = seconds(accuracy_reward, completions, golds)
        hostile.append({"seconds": round(spent, 2), "wrong": sum(x != y for x, y in zip(given, right, strict=True))})
    return {
        "processor": processor(),
        "processes": len(pool._pool.processes),
        "completions": COMPLETIONS,
        "turns": turns,
        "start_of_the_pool_seconds": round(started, 2),
        "ordinary": {
            "times_as_fast_as_trl": middle,
            "quartiles": [low, high],
            "median_seconds": {name: round(median(run["seconds"] for run in runs[name]), 2) for name in rewards},
            "wrong_rewards": wrong,
            "unequal_rewards": sum(unequal),
        },
        "hostile": {
            "hostile_completions": HOSTILE,
            "median_seconds": median(run["seconds"] for run in hostile),
            "over_ordinary": round(median(run["seconds"] for run in hostile)
                                   / median(run["seconds"] for run in runs["credit_trl"]), 2),
            "runs": hostile,
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--turns", type=int, default=5, help="batches of each reward, one after the other (default 5)")
    arguments = parser.parse_args()
    prepare()
    figures = measure(arguments.turns)
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
