"""What a localizer is worth: the estimate against exact chains, the crossings, and the stored results."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from benchmarks.learning_curves import suite
from benchmarks.learning_curves.run import Setting, base_model, base_tokenizer
from benchmarks.localizers import __main__ as command
from benchmarks.localizers import worth
from benchmarks.localizers.estimate import hit_rate_at_least, hit_rate_between, oracle_bound
from benchmarks.localizers.figure import draw, spread
from benchmarks.localizers.hit_rates import measure, table
from benchmarks.localizers.policy import CANDIDATES, Failure, continuations, sample_failures
from benchmarks.localizers.quality import (
    chance_quality,
    effective_hit_rate,
    mean_interval,
    noisy_answers,
    quality,
    reset_steps,
    seeds,
)
from benchmarks.localizers.tables import markdown
from credit_trl.testbed import Problem
from credit_trl.testbed.arithmetic import apply_operation

# --- the estimate ---


def chain_rates(reliabilities: list[float]) -> tuple[float, float, float]:
    """Return p, and how often continuations pass after random resets and an oracle's: a loop over all outcomes."""
    n = len(reliabilities)
    base = math.prod(reliabilities)
    at_random = at_error = 0.0
    for right in itertools.product((True, False), repeat=n):
        if all(right):
            continue
        probability = math.prod(r if ok else 1 - r for r, ok in zip(reliabilities, right, strict=True))
        error = right.index(False)
        at_error += probability * math.prod(reliabilities[error:])
        at_random += probability * sum(math.prod(reliabilities[step:]) for step in range(error + 1)) / n
    return base, at_random / (1 - base), at_error / (1 - base)


@pytest.mark.parametrize("seed", range(5))
def test_chains_keep_the_bounds(seed):
    base, at_random, at_error = chain_rates(np.random.default_rng(seed).uniform(0.2, 0.999, 6).tolist())
    assert at_random < base < at_error < oracle_bound(base)
    for rate in (0, 0.25, 0.5, 0.75, 1):
        suffix = rate * at_error + (1 - rate) * at_random
        assert hit_rate_between(suffix, at_random, at_error) == pytest.approx(rate)
        assert hit_rate_at_least(base, suffix) <= hit_rate_at_least(base, suffix, at_random) <= rate + 1e-12


def test_many_slightly_uncertain_steps_reach_the_bound():
    bounds = []
    for n in (1, 4, 16):
        reliability = 0.1 ** (1 / n)
        base, at_random, at_error = chain_rates([reliability] * n)
        bounds.append(hit_rate_at_least(base, at_error, at_random))
        assert at_error == pytest.approx(n * (1 - reliability) * base / (1 - base))
    assert bounds == sorted(bounds) and bounds[0] < 0.3 and bounds[-1] > 0.9


def test_the_bound_is_exact_at_its_ends():
    assert oracle_bound(0) == 0 and oracle_bound(1) == 1
    assert oracle_bound(1 - 1e-9) == pytest.approx(1)
    assert oracle_bound(0.1) == pytest.approx(0.1 * math.log(10) / 0.9)
    # A mix of easy and hard problems has less than their mean pass rate says.
    assert (oracle_bound(0.02) + oracle_bound(0.9)) / 2 < oracle_bound(0.46)
    with pytest.raises(ValueError, match="between 0 and 1"):
        oracle_bound(1.2)
    assert hit_rate_at_least(0.2, 0.1) == 0  # below the base rate nothing is shown
    assert hit_rate_at_least(0, 0) == 0 and hit_rate_at_least(1, 1) == 0
    assert hit_rate_between(0.5, 0.1, 0.4) == 1


# --- the quality of answers ---


def failure(prompt: int, candidate: int, wrong: list[int], steps: int = 4) -> Failure:
    """Return a solution of a problem of its own whose steps in `wrong` are wrong."""
    problem = Problem.sample(random.Random(prompt), steps)
    value, results = problem.start, []
    for number, operation in enumerate(problem.operations, start=1):
        value = (apply_operation(value, *operation) + (number in wrong)) % 17
        results.append(value)
    texts = problem.solution(results).split("\n\n")
    texts = [text + "\n\n" for text in texts[:-1]] + texts[-1:]
    return Failure(prompt, candidate, problem, tuple(texts), min(wrong))


FAILURES = [failure(0, 0, [1]), failure(0, 2, [3]), failure(1, 1, [2, 4]), failure(2, 3, [4])]


def test_quality_counts_hits_clean_prefixes_and_distances():
    figures = {name: interval[0] for name, interval in quality(FAILURES, [1, 2, 4, None]).items()}
    assert figures["hit_rate"] == 0.25 and figures["clean_rate"] == 0.5 and figures["parse_rate"] == 0.75
    assert figures["distance"] == 1 and figures["late"] == pytest.approx(1 / 3, abs=1e-4)
    # Cut are the failures (0, 2), named later than (0, 0), and the only ones of the other problems: no hit.
    assert figures["hit_rate_cut_furthest"] == 0


def test_the_furthest_answer_is_cut_and_every_problem_once():
    assert seeds(FAILURES, [1, 2, 4, None], "furthest") == [1, 2, 3]
    assert seeds(FAILURES, [3, 2, 4, None], "furthest") == [0, 2, 3]
    drawn = {tuple(seeds(FAILURES, [1, 2, 4, None], "random", draw)) for draw in range(20)}
    assert drawn == {(0, 2, 3), (1, 2, 3)}


def test_chance_is_the_mean_over_all_steps():
    named = [quality(FAILURES, [step] * len(FAILURES)) for step in range(1, 6)]  # of four steps and the answer
    for name, interval in chance_quality(FAILURES).items():
        assert interval[0] == pytest.approx(np.mean([figures[name][0] for figures in named]), abs=1e-3)


def test_the_noisy_oracle_hits_as_often_as_is_computed():
    many = [failure(prompt, 0, [1 + prompt % 4], steps=4 + prompt % 9) for prompt in range(3000)]
    for rate in (0, 0.5, 1):
        measured = quality(many, noisy_answers(many, rate))["hit_rate"][0]
        assert measured == pytest.approx(effective_hit_rate(many, rate), abs=0.03)
    assert effective_hit_rate([found._replace(error=None) for found in many], 1) == 0


def test_whole_problems_are_resampled():
    prompts = np.repeat(np.arange(30), 20)
    same = mean_interval(np.repeat(np.arange(30) % 2, 20), prompts)  # all failures of a problem agree
    spread = mean_interval(np.tile(np.arange(20) % 2, 30), prompts)
    assert same[0] == spread[0] == 0.5
    assert same[2] - same[1] > 0.3 and spread[2] - spread[1] == 0


def test_a_failure_without_an_answer_is_reset_to_a_random_step():
    many = [FAILURES[0]] * 500
    assert set(reset_steps(many, [None] * 500)) == {1, 2, 3, 4, 5}
    assert set(reset_steps(many, [2] * 500)) == {2}


def test_a_fixed_policy_never_mends_a_wrong_prefix():
    setting = Setting(5, 5, num_iterations=1, generations=1, evaluate_every=1)
    torch.manual_seed(0)
    with tqdm(disable=True) as progress:
        sampled = sample_failures(base_model().eval(), base_tokenizer(), setting, 16, progress)
        cuts = [(f, step) for f in sampled.failures for step in (f.error, f.error + 1) if f.error < len(f.steps)]
        passed, exact = continuations(base_model(), base_tokenizer(), cuts, setting, 4, progress)
    assert {f.candidate for f in sampled.failures} <= set(range(CANDIDATES))
    assert passed.shape == (len(cuts), 4) and not (exact & ~passed).any()
    assert exact[::2].any() and not exact[1::2].any()  # before the error, and after it
    assert 0 < sampled.exact <= sampled.passed < 1


def test_a_policy_is_measured_with_every_localizer():
    setting = Setting(5, 5, num_iterations=1, generations=1, evaluate_every=1)
    localizers = {"first": lambda failed: [1] * len(failed)}
    with tqdm(disable=True) as progress:
        measured = measure(base_model().eval(), setting, 8, 2, (1, 3), (0, 1), localizers, progress)
    assert list(measured["localizers"]) == [
        "chance",
        "noisy oracle 0",
        "noisy oracle 1",
        "self",
        "self, 3 votes",
        "first",
    ]
    figures = measured["localizers"]
    assert figures["noisy oracle 1"]["hit_rate"] == [1, 1, 1] and figures["first"]["clean_rate"] == [1, 1, 1]
    assert (
        figures["first"]["tokens"] == 0 and 2.5 < figures["self, 3 votes"]["tokens"] / figures["self"]["tokens"] < 3.5
    )
    assert figures["noisy oracle 1"]["suffix_exact_rate"][0] > figures["noisy oracle 0"]["suffix_exact_rate"][0]
    assert "| self, 3 votes | " in table({"a policy": measured})


# --- what hit rates are worth ---


def test_a_nondecreasing_curve_is_the_closest_one():
    assert worth.nondecreasing(np.array([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]
    assert worth.nondecreasing(np.array([3.0, 1.0, 2.0, 5.0])).tolist() == [2, 2, 2, 5]
    assert worth.nondecreasing(np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [[0, 1.5, 1.5], [2, 2, 2]]


def test_a_crossing_is_where_gains_stay_above_zero():
    assert worth.crossing([0, 0.5, 1], [-1, 1, 2]) == 0.25
    assert worth.crossing([0, 0.5, 1], [1, -1, 1]) == 0.75
    assert worth.crossing([0, 0.5, 1], [0.5, 1, 2]) == -math.inf
    assert worth.crossing([0, 0.5, 1], [-1, 1, -2]) == math.inf


def test_the_interval_of_a_crossing_counts_resamples_that_have_none():
    resampled = np.array([[-1.0, 1.0]] * 50 + [[-3.0, 1.0]] * 30 + [[-2.0, -1.0]] * 20)
    found = worth.crossing_interval([0, 1], np.array([-1.0, 1.0]), resampled)
    assert found == {"interval": [0.5, 0.5, "inf"], "always": 0, "never": 0.2}


def passing(hit_rate: float, suffix: float, exact: float) -> dict[str, list[float]]:
    names = ("hit_rate", "clean_rate", "suffix_pass_rate", "suffix_exact_rate")
    return {name: [value] * 3 for name, value in zip(names, (hit_rate, 0.5, suffix, exact), strict=True)}


HIT_RATES = {
    "policies": {
        "rare, base model": {
            "base_pass_rate": 0.1,
            "base_exact_rate": 0.05,
            "effective_hit_rates": {"0": 0.06, "0.25": 0.3, "0.5": 0.53, "0.75": 0.77, "1": 1.0},
            "localizers": {
                "noisy oracle 0": passing(0.06, 0.08, 0.03),
                "self": passing(0.35, 0.1, 0.045),
                "self, 3 votes": passing(0.4, 0.1, 0.045),
                "noisy oracle 1": passing(1.0, 0.16, 0.09),
            },
        }
    }
}
FINAL = {"grpo": 0.1, "rrpo": 0.05, "srpo 1x4": 0.08, "srpo 1x4 oracle 0.5": 0.15, "srpo 1x4 oracle": 0.3,
         "srpo 1x4 oracle furthest": 0.4, "srpo 1x4 furthest": 0.2, "srpo 1x4 votes 3": 0.12}  # fmt: skip


@pytest.fixture
def finished() -> dict[str, dict]:
    """Return runs of `FINAL`, whose final pass@1 rises by 0.001 with each seed, tuning included."""
    runs: dict[str, dict] = {}
    for method, final in FINAL.items():
        for _ in range(3):  # the fifth candidate, and then the reported seeds, follow from the runs before
            for run in suite.known_runs(("rare", method), (*suite.SEEDS, *worth.FRESH_SEEDS), runs):
                rate = final + 0.001 * (run.seed % 1000)
                diagnostics = {"reset/base_pass_rate": 0.1, "reset/suffix_pass_rate": 0.05 + final / 2}
                diagnostics["reset/corrected_fraction"] = 0.3
                runs[run.key()] = {
                    "completions": [0, 64], "pass_at_1": [0.0, rate], "pass_at_16": [0.0, rate],
                    "diagnostics": {} if method == "grpo" else diagnostics,
                }  # fmt: skip
    return runs


def test_gains_lie_at_the_measured_hit_rates(finished):
    summary = worth.summarize(HIT_RATES, finished)
    line, furthest = (summary["lines"][selection] for selection in ("random", "furthest"))
    gains = [(found["hit_rate"], round(found["gain"][0], 6)) for found in line["points"]]
    assert gains == [(0.06, -0.05), (0.53, 0.05), (1.0, 0.2)]
    assert [(found["localizer"], found["hit_rate"]) for found in line["real"]] == [
        ("self", 0.35),
        ("self, 3 votes", 0.4),
    ]
    assert [found["method"] for found in furthest["points"]] == ["srpo 1x4 oracle furthest"]
    assert "crossing" not in furthest  # a point is no line
    assert line["crossing"]["paired"]["interval"][0] == pytest.approx((0.06 + 0.53) / 2)
    # Over all thirty seeds GRPO is 0.01 better, which shifts the line down.
    assert line["crossing"]["all_seeds"]["interval"][0] == pytest.approx(0.06 + 0.6 * 0.47)


def test_estimates_are_those_of_the_logged_pass_rates(finished):
    points = {found["method"]: found for found in worth.summarize(HIT_RATES, finished)["lines"]["random"]["points"]}
    assert points["srpo 1x4 oracle 0.5"]["logged"]["suffix_over_base"][0] == pytest.approx(1.25)
    estimates = {method: found["estimates"] for method, found in points.items()}
    assert estimates["rrpo"]["between"] == 0.06 and estimates["srpo 1x4 oracle"]["between"] == 1  # chance hits too
    assert estimates["srpo 1x4 oracle 0.5"]["between"] == pytest.approx(0.06 + 0.94 * (0.125 - 0.075) / (0.2 - 0.075))
    bound = (0.125 - 0.075) / (oracle_bound(0.1) - 0.075)
    assert estimates["srpo 1x4 oracle 0.5"]["at_least_with_random"] == pytest.approx(bound, abs=1e-4)
    assert estimates["srpo 1x4 oracle 0.5"]["at_least"] < bound


def test_estimates_of_a_fixed_policy_are_those_of_its_own_ends(finished):
    found = worth.summarize(HIT_RATES, finished)["fixed_policies"]["rare, base model"]["self"]
    assert found["pass"]["between"] == pytest.approx(0.06 + 0.94 * 0.25)
    assert found["exact"]["between"] == pytest.approx(0.06 + 0.94 * 0.25)
    assert found["exact"]["at_least_with_random"] == pytest.approx(0.015 / (oracle_bound(0.05) - 0.03), abs=1e-4)


def test_points_that_overlap_stand_apart():
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.44, 0.44, 0.45, 0.9], 0.1) == pytest.approx([0.3433, 0.4433, 0.5433, 0.9], abs=1e-4)
    assert spread([], 0.1) == []


def test_a_figure_and_tables_are_made_of_a_few_runs(finished, tmp_path):
    summary = worth.summarize(HIT_RATES, finished)
    draw(summary, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    text = markdown(summary)
    assert "| noisy oracle 0.5 | random | 53% |" in text and "resets pay from a hit rate of 30% on" in text


def test_the_stored_results_are_those_of_the_stored_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["localizers", "--output", str(tmp_path)])
    command.main()
    for name in ("localizers.json", "localizers.md"):
        assert (tmp_path / name).read_text() == (command.RESULTS / name).read_text()
