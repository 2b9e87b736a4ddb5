"""The benchmark of learning curves: what its figures rest on, without its hours of training."""

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.methods import METHODS
from benchmarks.learning_curves import rates
from benchmarks.learning_curves import suite as suite
from benchmarks.learning_curves.figures import draw_setting, figure_path
from benchmarks.learning_curves.report import (
    catch_up_interval,
    first_crossing,
    mean_curve,
    mean_interval,
    ratio_interval,
    sign_flip_p,
    summarize_method,
)
from benchmarks.learning_curves.run import (
    HELD_OUT_SEED,
    Run,
    Setting,
    generated_tokens,
    make_trainer,
    pass_at,
    sample_problems,
    solution_probabilities,
    train,
)
from credit_trl.evaluation.run import pass_rate
from credit_trl.resets.localization import FailedCompletion
from credit_trl.testbed import BASE_MODEL, Problem, make_dataset

BLOCKS = [("short", "grpo"), ("short", "s_trace")]
SEEDS = (0, 1, 2)


def result(pass_at_1: list[float], **changes) -> dict:
    length = len(pass_at_1)
    return {
        "completions": list(range(0, 64 * length, 64)),
        "generated_tokens": list(range(0, 1000 * length, 1000)),
        "seconds": [float(index) for index in range(length)],
        "pass_at_1": pass_at_1,
        "pass_at_16": pass_at_1,
        "diverged": False,
        "diagnostics": {},
        "cpu_seconds": 36.0,
        **changes,
    }


class FakeTraining:
    """Remembers what was trained; the pass rate is the learning rate's, and `wrong` on the seeds that are reported."""

    def __init__(self, limit: int | None = None):
        self.runs: list[Run] = []
        self.limit = limit

    def __call__(self, run: Run) -> dict:
        if len(self.runs) == self.limit:
            raise KeyboardInterrupt
        self.runs.append(run)
        on_tuning_seed = run.seed in suite.TUNING_SEEDS
        rate = 100 * run.learning_rate if on_tuning_seed else 1 - 100 * run.learning_rate
        rate += 0.001 * len(run.options)  # the method's own knob helps a little
        return result([0.0, rate, rate])


def carry_out(path, training, seeds=SEEDS):
    log = suite.RunLog(path)
    with ThreadPoolExecutor(1) as executor:
        suite.run_missing(lambda: suite.suite_runs(BLOCKS, seeds, log.finished), 26, log, executor, 1, training)
    return log


# --- the suite: resume, tuning ---


def test_an_interrupted_suite_trains_only_what_is_missing(tmp_path):
    path = tmp_path / "runs.jsonl"
    first = FakeTraining(limit=20)
    with pytest.raises(KeyboardInterrupt):
        carry_out(path, first)
    with path.open("ab") as file:
        file.write(b'{"key": "cut of')  # the write that the interruption cut off
    second = FakeTraining()
    carry_out(path, second)
    keys = [run.key() for run in first.runs + second.runs]
    assert len(keys) == len(set(keys)) == len(BLOCKS) * (5 * len(suite.TUNING_SEEDS) + len(SEEDS))
    assert len(first.runs) == 20
    assert len(path.read_text().splitlines()) == len(keys)
    third = FakeTraining()
    carry_out(path, third, seeds=(*SEEDS, 3))
    assert [run.seed for run in third.runs] == [3, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"learning_rate": 2e-4},
        {"method": "gspo"},
        {"options": {"epsilon": 0.1}},
        {"setting": Setting(4, 6, 1, 40, 5, held_out=64)},
        {"setting": Setting(4, 6, 1, 40, 5, operations=(("+", 1),))},
    ],
)
def test_a_run_is_known_by_all_that_defines_it(change):
    same = dict(setting_name="short", setting=Setting(4, 6, 1, 40, 5), method="grpo", learning_rate=1e-4)
    assert Run(**same).key() == Run(**same).key()
    assert Run(**(same | change)).key() != Run(**same).key()


def test_tuning_looks_at_tuning_seeds_only(tmp_path):
    """The reported seeds of the fake prefer the lowest learning rate, the tuning seeds the highest."""
    log = carry_out(tmp_path / "runs.jsonl", FakeTraining())
    fastest = max(suite.LEARNING_RATES["short"])
    assert suite.best_candidate(("short", "grpo"), log.finished) == (fastest, {})
    for run in suite.reported_runs(("short", "s_trace"), SEEDS, log.finished):
        assert (run.learning_rate, run.options) == (fastest, {"trace_lambda": 0.9})
    for key in list(log.finished):
        if '"seed": 1000' in key and '"s_trace"' in key:
            del log.finished[key]
            break
    assert suite.best_candidate(("short", "s_trace"), log.finished) is None


def test_every_method_is_tuned_over_equally_many_candidates(tmp_path):
    for method in METHODS:
        block, finished = ("short", method), {}
        for _ in range(2):  # what the second stage tries depends on the first
            for runs in suite.tuning_runs(block, finished):
                finished |= {run.key(): result([0.0, 1000 * run.learning_rate]) for run in runs}
        names = [(rate, tuple(options.items())) for rate, options in suite.candidates(block, finished)]
        assert len(set(names)) == len(names) == 5, method
        assert [rate for rate, _ in names[:4]] == list(suite.LEARNING_RATES["short"][:4])
        if method in suite.KNOBS:  # the other value of the knob, at the best learning rate
            assert names[4] == (max(suite.LEARNING_RATES["short"]), (suite.KNOBS[method],))
    assert not set(suite.SEEDS) & set(suite.TUNING_SEEDS)


def test_no_method_fixes_the_knob_that_is_tuned():
    """Its own options override those of a run."""
    for method, (name, _) in suite.KNOBS.items():
        assert name not in METHODS[method].options, method


def test_the_suite_has_every_method_and_no_block_twice():
    blocks = suite.plan(None, None)
    assert len(blocks) == len(set(blocks))
    assert {method for _, method in blocks} | set(suite.LOCALIZERS) == set(METHODS)
    assert len(suite.LOCALIZERS) == 13 and not {("rare", method) for method in suite.LOCALIZERS} & set(blocks)
    assert {setting for setting, _ in blocks} == set(suite.SETTINGS) == set(suite.LEVELS)


# --- aggregation ---


def test_the_bootstrap_interval_of_a_mean():
    """Of half zeros and half ones, a resample's mean is binomial: 0.5 with a standard deviation of 0.5 / sqrt(n)."""
    mean, low, high = mean_interval([0.0, 1.0] * 200)
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.005)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.005)
    assert mean_interval([0.25] * 10) == (0.25, 0.25, 0.25)


def test_first_crossings_by_hand():
    completions = [0, 100, 200, 300]
    assert first_crossing(completions, [0.1, 0.2, 0.4, 0.3], 0.3) == pytest.approx(150)
    assert first_crossing(completions, [0.1, 0.2, 0.4, 0.3], 0.4) == pytest.approx(200)
    assert first_crossing(completions, [0.5, 0.2, 0.4, 0.3], 0.3) == 0
    assert first_crossing(completions, [0.1, 0.2, 0.2, 0.2], 0.3) == math.inf


def test_sign_flips_by_hand():
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8  # all alike is the furthest that there is, either way
    assert sign_flip_p([-1.0, -2.0, 3.0]) == 1  # nothing is nearer to 0
    assert sign_flip_p([3.0, 2.0, -1.0]) == 4 / 8  # 6 and 4, and their opposites
    assert sign_flip_p([0.25] * 10) == 2 / 1024
    assert sign_flip_p([1.0] * 12 + [-1.0] * 8) == pytest.approx(0.5034, abs=1e-4)  # at least 12 of 20 coins alike
    assert sign_flip_p([1.0] * 13 + [-1.0] * 9) == pytest.approx(0.523, abs=0.01)  # at least 13 of 22


def test_ratios_of_crossings_bear_runs_that_never_cross():
    inf = math.inf
    assert ratio_interval([50.0] * 5, [100.0] * 5) == (0.5, 0.5, 0.5)
    value, low, high = ratio_interval([50.0, 50.0, 50.0, inf, inf], [100.0] * 5)
    assert value == low == 0.5
    assert high == inf  # some resamples have three runs or more that never cross
    assert ratio_interval([inf] * 5, [100.0] * 5) == (inf, inf, inf)
    assert ratio_interval([50.0] * 5, [inf] * 5) == (0, 0, 0)
    value, low, high = ratio_interval([inf] * 5, [inf] * 5)
    assert math.isnan(value)
    assert (low, high) == (0, inf)  # nothing is known


def test_ratios_are_paired_by_seed():
    """Twice as fast on every seed, and the seeds differ by far: unpaired resamples would differ too."""
    theirs = [100.0, 200.0, 400.0, 800.0, 1600.0]
    assert ratio_interval([value / 2 for value in theirs], theirs) == (0.5, 0.5, 0.5)
    ours = {seed: result([0.1, 0.2 + seed / 10]) for seed in range(5)}
    reference = {seed: result([0.1, 0.1 + seed / 10]) for seed in reversed(range(1, 7))}
    summary = summarize_method(ours, reference, [0.15])
    assert summary["paired_seeds"] == [1, 2, 3, 4]
    assert summary["pass_at_1_minus_grpo"] == pytest.approx((0.1, 0.1, 0.1))


def test_the_share_of_the_references_cost_at_which_its_end_is_reached():
    """The mean curves are lines, so that all can be seen: ours reaches 0.4, with which GRPO ends, halfway."""
    ours, reference = [result([0.0, 0.4, 0.8])] * 4, [result([0.0, 0.2, 0.4])] * 4
    assert catch_up_interval(ours, reference, "completions") == (0.5, 0.5, 0.5)
    assert catch_up_interval(reference, ours, "completions") == (math.inf, math.inf, math.inf)
    # Mixed seeds: the mean of 0.8 and 0.4 crosses 0.4 at two thirds, and resamples of one kind at 1/2 and at 1.
    value, low, high = catch_up_interval([ours[0], reference[0]], reference[:2], "generated_tokens")
    assert (value, low, high) == pytest.approx((2 / 3, 1 / 2, 1))


def test_mean_curves_are_interpolated_to_where_the_shortest_run_ends():
    runs = [result([0.0, 0.2, 0.4], seconds=[0.0, 10.0, 20.0]), result([0.0, 0.4, 0.8], seconds=[0.0, 5.0, 10.0])]
    curve = mean_curve(runs, "seconds", points=3)
    assert curve["x"] == [0, 5, 10]
    assert curve["mean"] == pytest.approx([0.0, (0.1 + 0.4) / 2, (0.2 + 0.8) / 2])
    assert curve["low"] == pytest.approx([0.0, 0.1, 0.2])
    assert curve["high"] == pytest.approx([0.0, 0.4, 0.8])


def test_a_report_is_made_of_what_has_run(tmp_path):
    log = carry_out(tmp_path / "runs.jsonl", FakeTraining())
    log.finished["of another base model"] = result([0.0, 0.5])
    summary = suite.summarize([*BLOCKS, ("short", "rrpo")], SEEDS, log.finished)
    methods = summary["settings"]["short"]["methods"]
    assert list(methods) == ["grpo", "s_trace"]
    assert methods["s_trace"]["seeds"] == [0, 1, 2]
    assert methods["s_trace"]["tuned"] == "lr 0.00034, trace_lambda 0.9"
    assert summary["core_hours"] == pytest.approx(2 * (10 + 3) * 36 / 3600)
    suite.report(summary, tmp_path)
    assert json.loads((tmp_path / "learning_curves.json").read_text())["core_hours"] == summary["core_hours"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".json", ".md", ".png"}
    assert (
        "| s_trace | lr 0.00034, trace_lambda 0.9 | 0.967 (0.967 to 0.967) |"
        in (tmp_path / "learning_curves.md").read_text()
    )


# --- figures ---


@pytest.mark.parametrize(("axis", "end"), [("completions", 128), ("generated_tokens", 2000), ("seconds", 2)])
def test_each_panel_has_one_method_against_grpo(tmp_path, axis, end):
    ends = {"grpo": 0.4, "srpo 1x4": 0.3, "s_trace": 0.5, "new method": 0.6}
    runs = {name: {seed: result([0.1, 0.2, value]) for seed in range(3)} for name, value in ends.items()}
    methods = {name: summarize_method(runs[name], runs["grpo"], [0.3]) for name in ends}
    path = figure_path(tmp_path, "long", axis)
    assert path.name == {"completions": "learning_curves_long.png"}.get(axis, f"learning_curves_long_{axis}.png")
    figure = draw_setting("long", {"methods": methods}, path, axis)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == [
        "S-trace\n+0.100 (+0.100 to +0.100)",
        "NEW, method\n+0.200 (+0.200 to +0.200)",
        "SRPO, 1x4\n−0.100 (−0.100 to −0.100)",  # methods with resets come last
    ]
    for panel, final in zip(panels, (0.5, 0.6, 0.3), strict=True):
        curves = [line.get_xydata()[-1].tolist() for line in panel.lines]
        assert curves == [pytest.approx([end, 0.4]), pytest.approx([end, final])]
        assert panel.get_ylim() == panels[0].get_ylim() and panel.get_xlim() == panels[0].get_xlim()
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("names", [["grpo"], ["s_trace"]])
def test_a_setting_with_one_method_has_one_panel(tmp_path, names):
    runs = {seed: result([0.1, 0.2]) for seed in range(3)}
    methods = {name: summarize_method(runs, {}, []) for name in names}
    figure = draw_setting("short", {"methods": methods}, tmp_path / "figure.png")
    (panel,) = (panel for panel in figure.axes if panel.get_visible())
    assert panel.get_title() == {"grpo": "GRPO", "s_trace": "S-trace"}[names[0]] and len(panel.lines) == 1


# --- a run ---


@pytest.fixture(scope="module")
def base():
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.mark.thorough
def test_exact_pass_rates_agree_with_sampling(base):
    """Over problems of unlike lengths, so that padding and positions are seen to be right too."""
    model, tokenizer = base
    dataset = make_dataset(64, min_steps=1, max_steps=8, seed=5)
    problems = [Problem.parse(prompt) for prompt in dataset["prompt"]]
    solutions = {problem.prompt: problem.solution() for problem in problems}
    exact = solution_probabilities(model, tokenizer, problems, batch_size=32)
    samples = 64

    def is_the_solution(prompts, completions, **kwargs):
        return [float(text == solutions[prompt]) for prompt, text in zip(prompts, completions, strict=True)]

    sampled = pass_rate(
        model, tokenizer, dataset, is_the_solution, num_samples=samples, max_completion_length=56, batch_size=1024
    )
    deviation = (exact * (1 - exact)).sum().sqrt().item() / len(problems) / math.sqrt(samples)
    assert 0.2 < exact.mean() < 0.8
    assert exact.std() > 0.1
    assert abs(sampled - pass_at(exact, 1)) < 3 * deviation
    assert deviation < 0.01


def test_pass_at_k_by_hand():
    probabilities = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64)
    assert pass_at(probabilities, 1) == pytest.approx(0.5)
    assert pass_at(probabilities, 2) == pytest.approx((0.75 + 0 + 1) / 3)


def test_tokens_are_counted_once_a_generation_and_with_localizations():
    history = [
        {"step": 1, "completions/mean_length": 10.0},
        {"step": 2},  # a second optimizer step on the same completions
        {"step": 3, "completions/mean_length": 4.0, "reset/generated_tokens": 300.0, "reset/localization_tokens": 7.0},
        {"step": 4, "completions/mean_length": 10.0},
    ]
    assert generated_tokens(history, 0) == 0
    assert generated_tokens(history, 3) == 640 + 307


def test_the_oracle_names_the_first_wrong_step():
    problem = Problem(5, (("+", 12), ("*", 3), ("-", 8)))
    failed = FailedCompletion(problem.prompt, ("5+12=0\n\n", "0*3=1\n\n", "1-8=10\n\n", "#10"))
    assert METHODS["srpo 1x4 oracle"].localizer([failed]) == [2]


MICRO = Setting(min_steps=1, max_steps=2, num_iterations=2, generations=2, evaluate_every=1, held_out=16)


def test_a_run_measures_the_policy_that_it_trains(base):
    model, tokenizer = base
    problems = sample_problems(MICRO, 16, HELD_OUT_SEED)
    assert {operation for problem in problems for operation in problem.operations} <= set(MICRO.operations)
    start = pass_at(solution_probabilities(model, tokenizer, problems), 1)
    still = train(Run("micro", MICRO, "grpo", 0.0))
    assert still["completions"] == [0, 64, 128]
    assert still["pass_at_1"] == pytest.approx([start] * 3, abs=1e-5)
    assert 128 * 9 < still["generated_tokens"][-1] < 128 * 16  # 9 tokens for one step, 15 for two
    moved = train(Run("micro", MICRO, "srpo 1x4", 3e-3))
    assert moved["pass_at_1"][0] == pytest.approx(start, abs=1e-5)
    assert abs(moved["pass_at_1"][-1] - start) > 1e-3
    assert np.all(np.diff(moved["seconds"]) > 0)
    assert moved["diagnostics"]["reset/parse_rate"] > 0.5


def test_two_groups_of_four_have_the_same_problem(base, tmp_path):
    """They train on GRPO's batches, which have eight problems, with each problem in two groups."""
    batches = {}
    for name in ("grpo", "grpo in two fours"):
        trainer = make_trainer(Run("micro", MICRO, name, 1e-4, seed=3), copy.deepcopy(base[0]), str(tmp_path))
        batches[name] = [[row["prompt"] for row in batch] for batch in trainer.get_train_dataloader()]
    assert trainer.num_generations == 4
    assert batches["grpo"] == batches["grpo in two fours"]
    assert len({prompt for batch in batches["grpo"] for prompt in batch}) == 16


def test_a_run_that_diverges_has_failed_from_there_on():
    blown = train(Run("micro", MICRO, "grpo", math.inf))
    assert blown["diverged"]
    assert blown["pass_at_1"][0] > 0
    assert blown["pass_at_1"][1:] == [0.0, 0.0]
    assert len(blown["seconds"]) == len(blown["completions"]) == 3


# --- every method at every rate ---


def test_methods_are_compared_at_the_same_rate_and_at_the_best_of_each(tmp_path):
    """GRPO is best at 0.001 and S-trace at 0.002; a sum of seeds, not a lucky one, says which."""
    log = carry_out(tmp_path / "runs.jsonl", FakeTraining())
    final = {
        "grpo": {0.001: (0.5, 0.7), 0.002: (0.9, 0.1)},
        "s_trace": {0.001: (0.6, 0.9), 0.002: (0.8, 0.8)},
    }
    runs = rates.grid("short", ["grpo", "s_trace"], [0.001, 0.002], [0, 1], log.finished)
    assert {run.options.get("trace_lambda") for row in runs["s_trace"].values() for run in row} == {0.9}  # as tuned
    for method, row in runs.items():
        for rate, of_seeds in row.items():
            for run, value in zip(of_seeds, final[method][rate], strict=True):
                log.finished[run.key()] = result([0.0, value])
    summary = rates.summarize(runs, log.finished)
    compared = {rate: figures["minus_grpo"][0] for rate, figures in summary["s_trace"]["rates"].items()}
    assert compared == pytest.approx({0.001: 0.15, 0.002: 0.3})
    assert (summary["grpo"]["best_rate"], summary["s_trace"]["best_rate"]) == (0.001, 0.002)
    assert summary["s_trace"]["best"]["minus_grpo"][0] == pytest.approx(0.2)


def test_a_method_without_tuning_is_not_compared():
    with pytest.raises(ValueError, match="s_trace is not tuned in short"):
        rates.grid("short", ["s_trace"], [0.001], [0], {})


def test_mini_batches_define_a_run_and_old_runs_keep_their_keys():
    same = dict(setting_name="short", method="grpo", learning_rate=1e-4)
    plain, split = (Run(setting=Setting(4, 6, 2, 40, 5, mini_batches=count), **same) for count in (1, 2))
    assert "mini_batches" not in plain.key() and '"mini_batches": 2' in split.key()
    assert (plain.setting.steps_per_batch, split.setting.steps_per_batch) == (2, 4)


def test_longer_settings_tune_the_loss_of_resets_and_report_six_seeds():
    assert suite.knob(("wide", "srpo 1x4")) == suite.knob(("wide_reuse", "rrpo")) == ("loss_type", "dapo")
    assert suite.knob(("wide", "s_trace")) == suite.knob(("long", "s_trace")) == ("trace_lambda", 0.9)
    assert suite.knob(("long", "srpo 1x4")) == ("reset_offset", 1)
    assert [len(suite.reported_seeds(setting, None)) for setting in ("long", "wide", "wide_reuse")] == [10, 6, 6]
    assert suite.reported_seeds("wide", (7,)) == (7,)
