"""Measure what conservative policy iteration pays and gains with random resets and with an oracle's.

    python -m benchmarks.theory.cpi_theory --output benchmarks/theory/cpi_theory.json

`cpi.py` states the theorem, our reading of it and what we derive. Here the exponents are measured: on two families of
thought MDPs, for p from about 1/2 to 1/64, how many samples an iteration takes until its improvement is certified, and
how much it improves by, measured exactly; then how many iterations and samples close half of the gap to the optimum.
Intervals are bootstrap percentiles over seeds, 95%.

Three exponents stand side by side. "Derived" takes the advantage of an improvable state to be constant over p. "Exact"
puts the instances' exact advantages, variances and every term of the bounds into the derivation. In `chain` the
advantage grows as p shrinks, so single rules miss the derived exponents there; the ratios of random resets to the
oracle's, which the theorem is about, do not depend on it.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from tqdm.auto import tqdm

from benchmarks.common.drawing import TEXT, new_figure, save
from benchmarks.common.stored import own_command, parse_or_draw, store
from benchmarks.theory.cpi import (
    FAMILIES,
    certify,
    differs,
    expected_samples,
    first_policy,
    improve,
    mix,
    optimal_success,
    reset_distribution,
    reset_outcomes,
    step_size,
    success,
    values,
    visitation,
)
from credit_trl.visualization.curves import COLORS, MARKERS


class Rule(NamedTuple):
    """Say where to reset, what to roll out, which confidence bound to use, and what the step size knows of pi'."""

    oracle: bool
    blind: bool
    radius: str
    counted: bool
    predicted: dict[str, int]  # exponents of p

    @property
    def key(self) -> tuple[bool, bool, str]:
        return self.oracle, self.blind, self.radius


def exponents(samples: int, improvement: int, iterations: int) -> dict[str, int]:
    return dict(samples=samples, improvement=improvement, iterations=iterations, total_samples=samples + iterations)


RULES = {
    "random, Hoeffding": Rule(False, True, "hoeffding", False, exponents(-2, 2, -1)),
    "random, Bernstein, blind": Rule(False, True, "bernstein", False, exponents(-2, 2, -1)),
    "random, Bernstein": Rule(False, False, "bernstein", False, exponents(-1, 2, -1)),
    "random, Bernstein, counted": Rule(False, False, "bernstein", True, exponents(-1, 1, 0)),
    "oracle, Hoeffding": Rule(True, True, "hoeffding", False, exponents(0, 1, 0)),
    "oracle, Bernstein": Rule(True, True, "bernstein", False, exponents(0, 1, 0)),
}
WHOLE_RUNS = ("random, Hoeffding", "random, Bernstein, counted", "oracle, Hoeffding")


def iterate(mdp, policy, rule: Rule, rng, seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the samples and step sizes of one CPI iteration from `policy`, for each seed, and pi'."""
    _, Q = values(mdp, policy)
    target = improve(policy, Q)
    resets = reset_distribution(mdp, policy, target, oracle=rule.oracle)
    outcomes = reset_outcomes(mdp, policy, target, resets, blind=rule.blind)
    certificate = certify(outcomes, rule.radius, rng, seeds)
    q = certificate.rolled_upper if rule.counted else 1.0
    return certificate.samples, step_size(certificate.lower, len(policy), q), target


def first_iteration(mdp, rule: Rule, rng, seeds: int) -> dict[str, np.ndarray]:
    policy = first_policy(mdp)
    before = success(mdp, policy)
    samples, alphas, target = iterate(mdp, policy, rule, rng, seeds)
    gains = [success(mdp, mix(policy, target, alpha)) - before for alpha in alphas]
    return {"samples": samples, "improvement": np.array(gains)}


def whole_run(mdp, rule: Rule, rng) -> dict[str, float]:
    """Count the iterations and samples until half of the gap to the optimum is closed."""
    policy = first_policy(mdp)
    goal = (success(mdp, policy) + optimal_success(mdp)) / 2
    iterations, total = 0, 0.0
    while success(mdp, policy) < goal:
        samples, alphas, target = iterate(mdp, policy, rule, rng, 1)
        policy = mix(policy, target, alphas[0])
        iterations, total = iterations + 1, total + samples[0]
    return {"iterations": iterations, "total_samples": total}


def describe(mdp) -> dict[str, float]:
    """Return what is known exactly about an instance at the first policy."""
    policy = first_policy(mdp)
    V, Q = values(mdp, policy)
    target = improve(policy, Q)
    d = visitation(mdp, policy) / len(policy)
    p = float((d * differs(policy, target)).sum())
    advantage = float((d * ((target * Q).sum(-1) - V[:-1])).sum())
    return {"p": p, "advantage_random": advantage, "advantage_oracle": advantage / p, "success": success(mdp, policy)}


def slope(p: np.ndarray, y: np.ndarray) -> float:
    """Return the least-squares slope of log y over log p."""
    return float(np.polyfit(np.log(p), np.log(y), 1)[0])


def fit(p: np.ndarray, y: np.ndarray, rng, over: np.ndarray | None = None, resamples: int = 1000) -> dict:
    """Fit means over seeds (with `over`, ratios of means): their slope and intervals. `y` is (number of p, seeds)."""

    def resampled(values: np.ndarray) -> np.ndarray:
        seeds = values.shape[1]
        return np.stack([values[:, choice].mean(1) for choice in rng.integers(seeds, size=(resamples, seeds))])

    mean, means = y.mean(1), resampled(y)
    if over is not None:
        mean, means = mean / over.mean(1), means / resampled(over)
    return {
        "mean": mean.tolist(),
        "interval": np.percentile(means, [2.5, 97.5], axis=0).T.tolist(),
        "exponent": slope(p, mean),
        "exponent_interval": np.percentile([slope(p, row) for row in means], [2.5, 97.5]).tolist(),
    }


def exact_exponents(mdps, p: np.ndarray, rule: Rule) -> dict[str, float]:
    """Return the exponents that the derivation predicts for these instances, whose advantages may vary with p."""
    samples, improvement = [], []
    for mdp, probability in zip(mdps, p, strict=True):
        policy = first_policy(mdp)
        target = improve(policy, values(mdp, policy)[1])
        resets = reset_distribution(mdp, policy, target, oracle=rule.oracle)
        outcomes = reset_outcomes(mdp, policy, target, resets, blind=rule.blind)
        samples.append(expected_samples(outcomes, rule.radius))
        alpha = step_size(outcomes.advantage, len(policy), probability if rule.counted else 1.0)
        improvement.append(success(mdp, mix(policy, target, alpha)) - success(mdp, policy))
    return {"samples": slope(p, np.array(samples)), "improvement": slope(p, np.array(improvement))}


def measure(family: str, shares: list[float], seeds: int, whole_seeds: int, rng, progress: tqdm) -> dict:
    mdps = [FAMILIES[family](share) for share in shares]
    instances = [describe(mdp) for mdp in mdps]
    p = np.array([instance["p"] for instance in instances])
    measured: dict[str, dict[str, np.ndarray]] = {}
    for name, rule in RULES.items():
        runs = []
        for mdp in mdps:
            runs.append(first_iteration(mdp, rule, rng, seeds))
            progress.update()
        measured[name] = {key: np.stack([run[key] for run in runs]) for key in runs[0]}
        if name in WHOLE_RUNS and whole_seeds:
            whole = []
            for mdp in mdps:
                whole.append([whole_run(mdp, rule, rng) for _ in range(whole_seeds)])
                progress.update()
            for key in whole[0][0]:
                measured[name][key] = np.array([[run[key] for run in runs] for runs in whole], dtype=float)
    rules, ratios = {}, {}
    for name, rule in RULES.items():
        exact = exact_exponents(mdps, p, rule)
        rules[name] = {
            key: {"predicted_exponent": rule.predicted[key], "exact_exponent": exact.get(key)} | fit(p, y, rng)
            for key, y in measured[name].items()
        }
        if not rule.oracle:
            oracle = "oracle, Bernstein" if rule.radius == "bernstein" else "oracle, Hoeffding"
            both = measured[name].keys() & measured[oracle].keys()
            exact_oracle = exact_exponents(mdps, p, RULES[oracle])
            ratios[f"{name} / {oracle}"] = {
                key: {
                    "predicted_exponent": rule.predicted[key] - RULES[oracle].predicted[key],
                    "exact_exponent": exact[key] - exact_oracle[key] if key in exact else None,
                }
                | fit(p, y, rng, over=measured[oracle][key])
                for key, y in measured[name].items()
                if key in both
            }
    instances = [{"share": share} | instance for share, instance in zip(shares, instances, strict=True)]
    return {"instances": instances, "rules": rules, "ratios": ratios}


@rc_context(TEXT)
def draw(result: dict, path: Path) -> None:
    """Draw samples and improvement of an iteration over p, in the family of constant advantages, with slopes."""
    family = result["families"]["graded"]
    p = np.array([instance["p"] for instance in family["instances"]])
    figure = new_figure(4.4)
    quantities = {"samples": "samples of an iteration", "improvement": "exact improvement of an iteration"}
    for axes, (quantity, title) in zip(figure.subplots(1, 2), quantities.items(), strict=True):
        for index, (name, color, marker) in enumerate(zip(RULES, COLORS, MARKERS, strict=True)):
            fitted_line = family["rules"][name][quantity]
            mean, interval = np.array(fitted_line["mean"]), np.array(fitted_line["interval"])
            axes.errorbar(
                p,
                mean,
                yerr=np.abs(interval.T - mean),
                fmt=f"-{marker}",
                color=color,
                linewidth=1.2,
                # Rules that fall on one another are told apart: each marker stands inside those before it.
                markerfacecolor="none",
                markersize=10 - 1.5 * index,
                label=name,
            )
            predicted = fitted_line["predicted_exponent"]
            axes.plot(p, mean[0] * (p / p[0]) ** predicted, color=color, linestyle=":", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="p", title=title)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("p: how often a random reset is improvable; dotted: derived slopes")
    save(figure, path)


def table(families: dict) -> str:
    lines = [
        "| family | resets, bound | quantity | derived | exact | measured | at smallest p |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, result in families.items():
        for name, quantities in (result["rules"] | result["ratios"]).items():
            for quantity, fitted_line in quantities.items():
                low, high = fitted_line["exponent_interval"]
                exact = "" if fitted_line["exact_exponent"] is None else f"{fitted_line['exact_exponent']:.2f}"
                measured = f"{fitted_line['exponent']:.2f} ({low:.2f} to {high:.2f})"
                predicted = fitted_line["predicted_exponent"]
                lines.append(
                    f"| {family} | {name} | {quantity.replace('_', ' ')} | {predicted} | {exact} | {measured} | "
                    f"{fitted_line['mean'][-1]:.3g} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=400, help="for the first iteration")
    parser.add_argument("--whole-seeds", type=int, default=8, help="for runs to half of the gap; 0 leaves them out")
    parser.add_argument("--smallest", type=int, default=6, help="k of the smallest share of shaky thoughts, 2^-k")
    arguments = parse_or_draw(parser, draw)
    shares = [2.0**-k for k in range(1, arguments.smallest + 1)]
    rng = np.random.default_rng(0)
    kinds = len(RULES) + len(WHOLE_RUNS) * (arguments.whole_seeds > 0)
    with tqdm(total=len(FAMILIES) * kinds * len(shares), desc="conservative policy iteration") as progress:
        families = {
            family: measure(family, shares, arguments.seeds, arguments.whole_seeds, rng, progress)
            for family in FAMILIES
        }
    print(table(families))
    result = {
        "command": own_command("benchmarks.theory.cpi_theory"),
        "numpy": np.__version__,
        "seeds": arguments.seeds,
        "whole_seeds": arguments.whole_seeds,
        "families": families,
    }
    store(result, arguments.output, draw)


if __name__ == "__main__":
    main()
