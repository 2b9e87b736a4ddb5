"""The figures of the pages are those of the stored results: tables by the script that writes them, sentences here."""

import functools
import json
import math
import re
from statistics import fmean, stdev

import pytest

from benchmarks.learning_curves.report import first_crossing, sign_flip_p
from benchmarks.learning_curves.run import WIDE_OPERATIONS
from benchmarks.learning_curves.suite import SETTINGS as SUITE_SETTINGS
from benchmarks.learning_curves.suite import VARIANTS
from benchmarks.soak.run import WARMUP_BLOCKS
from scripts.docs_tables import PAGES, PLACE, ROOT, TABLES, filled
from scripts.docs_tables.markdown import p_value, stored, table

CURVES = stored("learning_curves/learning_curves.json")
FRESH = {
    setting: stored(f"learning_curves/fresh_seeds/{setting}/learning_curves.json")["settings"][setting]["methods"]
    for setting in ("rare", "long_reuse", "long", "wide", "wide_reuse")
}
SETTINGS = CURVES["settings"]
FIRST = {name: setting["methods"] for name, setting in SETTINGS.items()}


def words(text: str) -> str:
    """Return a text without its line breaks and list bullets, as a sentence is searched for."""
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_of_a_page_are_what_the_script_writes(page):
    text = page.read_text()
    assert len(PLACE.findall(text)) == text.count("<!-- table:") == text.count("<!-- end of table -->")
    assert filled(text) == text, "run `make docs-tables`"


def test_a_table_has_no_empty_cell():
    with pytest.raises(ValueError, match="something in each"):
        table(("method", "rate"), [("GRPO", "")])


def test_a_place_is_filled_with_its_table():
    old = "before\n\n<!-- table: real_model -->\nold\n<!-- end of table -->\n\nafter"
    assert filled(old) == (
        f"before\n\n<!-- table: real_model -->\n\n{TABLES['real_model']()}\n\n<!-- end of table -->\n\nafter"
    )
    assert filled(filled(old)) == filled(old)


def test_the_tables_for_the_readme():
    """Each has a head of two lines, and a line for each method or result."""
    lines = TABLES["methods"]("s_trace", "rrpo").splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        "`STraceTrainer`",
        '`SRPOTrainer`, `localizer="random"`',
    ]
    lines = TABLES["headlines"]().splitlines()
    assert len(lines) == 2 + 7
    assert f"GRPO-lambda, `recent`: {final(FRESH['wide_reuse'], 'grpo_lambda recent')} | " in lines[4]
    assert f"S-trace: {final(FRESH['long_reuse'], 's_trace')} | {final(FRESH['long_reuse'], 'grpo')} | " in lines[2]


# --- figures within sentences ---


def final(methods: dict, name: str) -> str:
    return f"{methods[name]['pass_at_1'][0]:.3f}"


def lead(methods: dict, name: str, figure: str = "pass_at_1") -> str:
    return f"{methods[name][f'{figure}_minus_grpo'][0]:+.3f}"


def higher(methods: dict, name: str) -> str:
    """Return by how much a method ends above GRPO."""
    return f"{methods[name]['pass_at_1_minus_grpo'][0]:.3f}"


def lower(methods: dict, name: str) -> str:
    """Return by how much a method ends below GRPO."""
    return f"{-methods[name]['pass_at_1_minus_grpo'][0]:.3f}"


def p(methods: dict, name: str, figure: str = "pass_at_1") -> str:
    return f"p = {methods[name][f'{figure}_p']:.3f}"


def catch_up(methods: dict, name: str) -> str:
    return f"{methods[name]['catch_up']['completions'][0]:.2f}"


def logged(methods: dict, name: str, figure: str) -> float:
    return methods[name]["diagnostics"][figure]


def higher_after(batches: int, methods: dict, name: str) -> str:
    """Return by how much a method is above GRPO after some batches of 64 completions, by the mean curves."""
    ours, grpo = (methods[method]["curves"]["completions"] for method in (name, "grpo"))
    at = ours["x"].index(64 * batches)
    assert grpo["x"] == ours["x"]
    return f"{ours['mean'][at] - grpo['mean'][at]:.3f}"


@functools.cache
def runs() -> list[dict]:
    return list(map(json.loads, (ROOT / "benchmarks/learning_curves/runs.jsonl").read_text().splitlines()))


def final_by_seed(setting: str, methods: dict, name: str) -> dict[int, float]:
    """Return a method's final pass rates on all seeds, by the single runs, as it was tuned."""
    return {
        run["seed"]: run["result"]["pass_at_1"][-1]
        for run in runs()
        if (run["setting_name"], run["method"]) == (setting, name)
        and methods[name]["tuned"]
        == f"lr {run['learning_rate']:g}" + "".join(f", {key} {value}" for key, value in run["options"].items())
    }


def lead_of_half(setting: str, name: str, seeds: range) -> str:
    """Return a method's mean lead over GRPO on some of the fresh seeds."""
    ours, grpo = (final_by_seed(setting, FRESH[setting], method) for method in (name, "grpo"))
    return f"{fmean(ours[seed] - grpo[seed] for seed in seeds):+.3f}"


def final_on_its_seeds(setting: str, name: str) -> list[float]:
    """Return a method's final pass rates on the seeds that it is reported on."""
    methods = FIRST[setting]
    found = final_by_seed(setting, methods, name)
    return [found[seed] for seed in methods[name]["seeds"]]


def seeds_ahead(setting: str, name: str, other: str) -> str:
    """Return on how many of its seeds a method ends above another, in words."""
    ahead = [
        one > two
        for one, two in zip(final_on_its_seeds(setting, name), final_on_its_seeds(setting, other), strict=True)
    ]
    return "every seed" if all(ahead) else f"{sum(ahead)} of {len(ahead)} seeds"


def p_between(setting: str, name: str, other: str) -> str:
    """Return the p-value of the difference of two methods."""
    pairs = zip(final_on_its_seeds(setting, name), final_on_its_seeds(setting, other), strict=True)
    return f"p = {sign_flip_p([one - two for one, two in pairs]):.3f}"


def dapo_of_resets() -> str:
    """Return how often tuning chose TRL's loss for a reset method in the longer runs."""
    resets = [
        FIRST[setting][name]
        for setting in ("wide", "wide_reuse")
        for name in FIRST[setting]
        if name.startswith(("srpo", "rrpo"))
    ]
    return f"{sum('loss_type dapo' in outcome['tuned'] for outcome in resets)} of the {len(resets)}"


def over_the_run(methods: dict) -> str:
    """Return by how much GRPO-lambda's mean pass rate over the run is higher than GRPO's."""
    means = [fmean(methods[method]["curves"]["completions"]["mean"][1:]) for method in ("grpo_lambda recent", "grpo")]
    return f"{means[0] / means[1] - 1:.0%}"


def results() -> list[str]:
    """Return what `docs/evidence/results.md` says in sentences, with the figures of today's results."""
    rare, reuse, long = FRESH["rare"], FRESH["long_reuse"], FIRST["long"]
    wide, longer, four_steps = (
        FIRST["wide"],
        FIRST["wide_reuse"],
        (FIRST["long_reuse"]["grpo"], FIRST["wide_reuse"]["grpo"]),
    )
    oracle, own = "srpo 1x4 oracle furthest", "srpo 1x4 furthest"
    comparisons = sum(len(methods.keys() - {"grpo", *VARIANTS}) for methods in FIRST.values())
    pass_rates = [f"{100 * logged(rare, oracle, f'reset/{name}_pass_rate'):.0f}%" for name in ("suffix", "base")]
    blind = {f"{100 * logged(rare, own, f'reset/{name}_pass_rate'):.0f}%" for name in ("suffix", "base")}
    gradient = logged(rare, "grpo_lambda recent", "grad_norm") / logged(rare, "grpo", "grad_norm")
    ahead = [
        name
        for setting in ("long", "short")
        for name, outcome in FIRST[setting].items()
        if name != "grpo" and outcome["pass_at_1_minus_grpo"][1] > 0
    ]
    tuned = [float(methods["tuned"].split()[1]) for methods in four_steps]
    clipped = [100 * methods["diagnostics"]["clip_ratio/region_mean"] for methods in four_steps]
    assert not ahead
    again = FRESH["long"]

    def right_after_a_reset(methods: dict) -> str:
        """Return how often continuations and fresh completions are right under SRPO with its own localization."""
        continued, fresh = (logged(methods, "srpo 1x4", f"reset/{name}_pass_rate") for name in ("suffix", "base"))
        return f"{continued:.0%} against {fresh:.0%}"

    # What the words say: the comparisons that ran again, the collapsed run, and what the PRM was trained on.
    assert sum(len(FRESH[setting].keys() - {"grpo"}) for setting in FRESH if setting != "long") == 8
    assert sum(rate < 0.01 for rate in final_on_its_seeds("wide", "rrpo")) == 1
    seen = {op for name in ("long", "rare") for op in SUITE_SETTINGS[name].operations} & set(WIDE_OPERATIONS)
    assert tuned[0] == pytest.approx(3 * tuned[1])
    return [
        f"| S-trace, four steps on a batch: {lead(reuse, 's_trace')} in the final pass rate; in a long run "
        f"{lead(longer, 's_trace 0.9')} |",
        f"the gain is not sure: {p(reuse, 's_trace')} on twenty fresh seeds; a",
        f"was three times as high ({tuned[0]:.5f} against {tuned[1]:.5f}), and more of its tokens were clipped "
        f"({clipped[0]:.1f}% against {clipped[1]:.1f}%)",
        f"by {lower(wide, 's_trace 0.99')} with `trace_lambda=0.99`, and perhaps by "
        f"{lower(wide, 's_trace 0.9')} with 0.9 ({p(wide, 's_trace 0.9')}).",
        f"GMPO ({p(longer, 'gmpo')}) and S-trace with lambda 0.99 ({p(longer, 's_trace 0.99')}) end perhaps below.",
        f"own localization SRPO ends {lower(wide, 'srpo 1x4')} below GRPO with one step on a batch, and perhaps "
        f"{lower(longer, 'srpo 1x4')} with four ({p(longer, 'srpo 1x4')}). RRPO ends {lower(wide, 'rrpo')} and "
        f"{lower(longer, 'rrpo')} below.",
        f"it ends {higher(wide, oracle)} above GRPO with one step ({p(wide, oracle)}), "
        f"but {lower(FRESH['wide'], oracle)} below on [six fresh seeds]",
        f"After 50 batches it is ahead on average on both (by {higher_after(50, wide, oracle)} and "
        f"{higher_after(50, FRESH['wide'], oracle)}).",
        f"SRPO with S-trace, at lambda 0.99, ends {lower(wide, 'srpo 1x4 s_trace')} and "
        f"{lower(longer, 'srpo 1x4 s_trace')} below. With one optimizer step on a batch, SRPO "
        "with three votes ends "
        f"{lower(wide, 'srpo 1x4 votes 3')} below, no better than with one. With the PRM it ends perhaps "
        f"{lower(wide, 'srpo 1x4 prm 500')} below ({p(wide, 'srpo 1x4 prm 500')}). But this PRM saw only "
        f"{len(seen)} of the {len(set(WIDE_OPERATIONS))} operations of `wide`",
        f"completions: {right_after_a_reset(wide)} with one step, and {right_after_a_reset(longer)} with four.",
        f"It did so in {dapo_of_resets()} rows of reset methods.",
        f"in the long runs {final(wide, 'srpo 1x4')} against {final(wide, 'rrpo')}, on "
        f"{seeds_ahead('wide', 'srpo 1x4', 'rrpo')} ({p_between('wide', 'srpo 1x4', 'rrpo')}), and with four steps "
        f"on a batch {final(longer, 'srpo 1x4')} against {final(longer, 'rrpo')}, on "
        f"{seeds_ahead('wide_reuse', 'srpo 1x4', 'rrpo')} |",
        f"GRPO ends at {final(longer, 'grpo')} with them and at {final(wide, 'grpo')} without",
        f"perfect localizer on the testbed: p {p_value(rare[oracle]['pass_at_1_p'])} on twenty fresh seeds",
        f"| {lead(rare, oracle)} in the final pass rate; needs {catch_up(rare, oracle)} times as many",
        f"SRPO with the model's own localization ends {lower(rare, own)} lower",
        f"| likely: {p(rare, own)} on twenty fresh seeds",
        f"all {CURVES['note'].split()[0]} runs in {CURVES['core_hours']:.1f} core-hours",
        f"among {comparisons} comparisons, two or three fall below p = 0.05",
        f"({lead(reuse, 's_trace', 'pass_at_16')}, {p(reuse, 's_trace', 'pass_at_16')})",
        f"first ten of the twenty seeds: {lead_of_half('long_reuse', 's_trace', range(10, 20))}, against "
        f"{lead_of_half('long_reuse', 's_trace', range(20, 30))} on the others",
        f"{pass_rates[0]} of the continuations are right, but only {pass_rates[1]} of the same policy's fresh",
        f"{blind.pop()} of both are right" if len(blind) == 1 else "both are right alike",
        f"gradient norm there is {gradient:.1f} times GRPO's",
        f"({lead(long, 'grpo_lambda recent', 'pass_at_16')}, {p(long, 'grpo_lambda recent', 'pass_at_16')})",
        f"on the advantage it is lower still ({lead(FIRST['long_reuse'], 'grpo_lambda advantage', 'pass_at_16')})",
        f"it ends at {final(long, 'grpo')} there, and at {final(again, 'grpo')} on the twenty others.",
        f"oracle's resets end {lower(long, 'srpo 1x4 oracle')} lower on the first and "
        f"{lower(again, 'srpo 1x4 oracle')} lower on the others.",
        f"With the model's own localization it is {lower(long, 'srpo 1x4')} and {lower(again, 'srpo 1x4')}.",
        f"it is {lower(again, 'grpo in two fours')} for the split and {lower(again, 'srpo 1x4 oracle')} for the",
        f"| {1 / rare[oracle]['catch_up']['completions'][0]:.1f} times with an oracle where right answers are rare",
        f"on long chains {final(long, 'srpo 1x4')} against {final(long, 'rrpo')} on the first ten seeds, a difference",
        f"GRPO ends at {final(FIRST['rare'], 'grpo')} on the first ten and at {final(rare, 'grpo')} on the twenty "
        f"others where right answers are rare, and at {final(long, 'grpo')} and {final(again, 'grpo')} in `long`",
    ]


def predictions() -> list[str]:
    """Return what the benchmark's README says of its predictions, with the figures of today's results."""
    wide, reuse = FIRST["wide"], FIRST["wide_reuse"]

    for methods, setting in ((wide, "wide"), (reuse, "wide_reuse")):
        assert methods["srpo 1x4 s_trace"]["pass_at_1"][0] < methods["srpo 1x4"]["pass_at_1"][0]
        assert p_between(setting, "srpo 1x4 s_trace", "srpo 1x4") == "p = 0.031"
        assert methods["rrpo"]["pass_at_1_p"] < 0.04
    assert wide["srpo 1x4 votes 3"]["pass_at_1"][0] < wide["srpo 1x4"]["pass_at_1"][0]
    return [
        f"with one step on a batch it ends {lower(wide, 'srpo 1x4 oracle')} lower with the oracle and "
        f"{lower(wide, 'srpo 1x4')} lower with its own localization, with four {lower(reuse, 'srpo 1x4 oracle')} and "
        f"{lower(reuse, 'srpo 1x4')} lower.",
        f"with four steps ({final(reuse, 'srpo 1x4')} against {final(reuse, 'rrpo')}, on "
        f"{seeds_ahead('wide_reuse', 'srpo 1x4', 'rrpo')}), and perhaps with one ({final(wide, 'srpo 1x4')} against "
        f"{final(wide, 'rrpo')}, on {seeds_ahead('wide', 'srpo 1x4', 'rrpo')}, "
        f"{p_between('wide', 'srpo 1x4', 'rrpo')})",
        f"for SRPO with one step on a batch (with four {p(reuse, 'srpo 1x4')}).",
        f"| yes, {dapo_of_resets().replace('of the', 'times of')} (a method",
        f"its mean pass rate over the run is {over_the_run(reuse)} higher; with one step it is {over_the_run(wide)} "
        "higher.",
        f"Before training, {wide['grpo']['curves']['completions']['mean'][0]:.0%} of the answers are right.",
        f"no: it ends {lower(reuse, 'gmpo')} lower ({p(reuse, 'gmpo')})",
        f"and at 0.99 it ends {lower(wide, 's_trace 0.99')} lower",
    ]


def floor() -> list[str]:
    """Return what `docs/evidence/results.md` says in sentences of GRPO-lambda's floor in the longer runs."""
    wide, reuse, name = FIRST["wide"], FIRST["wide_reuse"], "grpo_lambda recent"
    ends = [methods[name]["pass_at_1_minus_grpo"][0] for methods in (wide, reuse)]
    again = [FRESH[setting][name]["pass_at_1_minus_grpo"][0] for setting in ("wide", "wide_reuse")]
    (chance,) = {p(FRESH[setting], name) for setting in ("wide", "wide_reuse")}
    assert all(reuse[method]["pass_at_1"][0] > wide[method]["pass_at_1"][0] for method in wide.keys() & reuse.keys())
    signals = stored("credit/quality_floor.json")
    on_policy = [
        {method: phases["on policy"] for method, phases in signals["credit"][steps].items()}
        for steps in ("12 steps", "4 to 6 steps")
    ]
    ratios = [methods["grpo floored"]["snr_over_grpo"] for methods in on_policy]
    snr = ["{:.2f} ({:.2f} to {:.2f}) times".format(ratio["value"], *ratio["interval"]) for ratio in ratios]
    focus = [
        [f"{methods[method]['focus']['value']:.0%}" for method in ("grpo floored", "grpo")] for methods in on_policy
    ]
    at_one_rate = stored("learning_curves/rates_wide_reuse_floor.json")["methods"]
    alone, both = (at_one_rate[method]["best"]["minus_grpo"][0] for method in ("grpo floored", name))
    best = reuse["grpo"]["pass_at_1"][0]
    against_best = [at_one_rate[method]["rates"]["7e-05"]["pass_at_1"][0] - best for method in ("grpo floored", name)]
    # What the words of the page claim: everywhere ahead, by the floor, and nothing else is.
    for methods in (wide, reuse, FRESH["wide"], FRESH["wide_reuse"]):
        assert methods[name]["pass_at_1_minus_grpo"][1] > 0 and methods[name]["pass_at_1_p"] == 2 / 2**6
    for methods, others in ((wide, ["srpo 1x4 oracle furthest"]), (reuse, [])):  # ahead on average, and clearly
        assert [other for other in methods if methods[other]["pass_at_1_minus_grpo"][0] > 0] == [name, *others]
        assert [other for other in methods if methods[other]["pass_at_1_minus_grpo"][1] > 0] == [name]
    in_wide = stored("learning_curves/rates_wide_floor.json")["methods"]
    gains = [in_wide[method]["best"]["minus_grpo"][0] for method in ("grpo floored", name)]
    assert abs(gains[0] - gains[1]) < 0.005
    assert wide["grpo_lambda recent unfloored"]["pass_at_1"][0] < wide["grpo"]["pass_at_1"][0]

    def lowest(methods: dict, method: str, rate: float) -> float:
        """Return the lower of the means over the run of two tuning seeds; a run that collapses has a low one."""
        (scores,) = (
            entry["scores"] for entry in methods[method]["tuning"] if entry["learning_rate"] == rate and len(entry) == 2
        )
        return min(scores)

    assert lowest(reuse, "grpo", 0.00012) < 0.15 and lowest(reuse, name, 0.00012) > 0.4
    assert lowest(wide, name, 0.0002) < 0.15 and lowest(wide, "grpo", 0.0002) > 0.3

    def shares(methods: dict) -> str:
        """Return the range of the shares of GRPO's completions with which the pass rates 0.15, 0.2, ... are reached."""
        ours, grpo = (methods[method]["curves"]["completions"] for method in (name, "grpo"))
        levels = [percent / 100 for percent in range(15, 100, 5) if percent / 100 < grpo["mean"][-1]]
        crossings = [[first_crossing(curve["x"], curve["mean"], level) for level in levels] for curve in (ours, grpo)]
        found = [one / other for one, other in zip(*crossings, strict=True)]
        return f"{min(found):.2f} to {max(found):.2f}"

    return [
        f"| {ends[0]:+.3f} in the final pass rate with one optimizer step on a batch, {ends[1]:+.3f} with four |",
        f"also on six fresh ones in each case ({again[0]:+.3f} and {again[1]:+.3f});",
        f"leads by {again[0]:.3f} and {again[1]:.3f} in the long runs, and it is ahead on every seed ({chance} each,",
        f"In `wide` it ends {ends[0]:.3f} above GRPO, in `wide_reuse` {ends[1]:.3f},",
        f"with {catch_up(reuse, name)} times as many completions",
        f"after 25 batches it is {higher_after(25, wide, name)} in `wide`, and "
        f"{higher_after(25, FRESH['wide'], name)} on fresh seeds.",
        f"each pass rate from 0.15 on with {shares(wide)} times as many completions as GRPO ({shares(FRESH['wide'])} "
        f"on fresh seeds). In `wide_reuse` it is {shares(reuse)} ({shares(FRESH['wide_reuse'])}),",
        f"over the run its mean pass rate is {over_the_run(reuse)} higher; with one step it is {over_the_run(wide)} "
        "higher.",
        f"ends at {final(wide, 'grpo_lambda recent unfloored')} in `wide`, below GRPO's {final(wide, 'grpo')}.",
        f"and {alone:.3f} of {both:.3f} in `wide_reuse`.",
        f"tuning chose {wide['grpo floored']['tuned'].split()[1]} for GRPO with the floor: one of six seeds collapses, "
        f"and the mean is {final(wide, 'grpo floored')}.",
        f"the floor alone gains {against_best[0]:.3f}, and both together {against_best[1]:.3f}.",
        f"with four it ends {lower(reuse, 'srpo 1x4 oracle')} lower** ({p(reuse, 'srpo 1x4 oracle')}).",
        f"On the same {signals['batches']} batches it is {snr[0]} GRPO's in chains of 12 steps, and {snr[1]} in those "
        "of 4 to 6",
        f"With the floor, {focus[0][0]} of the squared gradient of the logits falls on the results of operations that "
        f"the base model mostly gets wrong, and {focus[0][1]} without it. In chains of 4 to 6 steps it is "
        f"{focus[1][0]} and {focus[1][1]}.",
    ]


def explanations() -> list[str]:
    """Return what `docs/evidence/results.md` says in sentences of the experiments on explanations."""
    long, reuse = FIRST["long"], FIRST["long_reuse"]
    rates, variants = (stored(f"learning_curves/rates_long_reuse{part}.json")["methods"] for part in ("", "_variants"))

    def at_best(name: str) -> str:
        best = rates[name]["best"]
        return "{:+.3f} ({:+.3f} to {:+.3f}), p = {:.3f}".format(*best["minus_grpo"], best["p"])

    def leads(methods: dict, name: str) -> list[str]:
        return [f"{outcome['minus_grpo'][0]:+.3f}" for outcome in methods[name]["rates"].values()]

    def behind(name: str) -> str:
        resets = stored("learning_curves/rates_long_resets.json")["methods"]
        return " and ".join(f"{-float(value):.3f}" for value in leads(resets, name))

    assert sum(float(value) > 0 for value in leads(rates, "s_trace")) == 3
    assert float(leads(variants, "p_trace")[0]) > 0 and reuse["p_trace"]["pass_at_1_minus_grpo"][0] < 0
    own = "s_trace own gradient"

    # What the words say: which side of GRPO each variant ends on, and the learning rates of P-trace.
    assert long["s_trace 0.5"]["pass_at_1_minus_grpo"][0] > 0 > long["p_trace 0.5"]["pass_at_1_minus_grpo"][0]
    for name in ("p_trace unnormalized", "s_trace unnormalized", "s_trace"):
        assert long[name]["pass_at_1_minus_grpo"][0] < 0
        assert long[name]["tuned"].endswith("trace_lambda 0.9")
    assert reuse["s_trace unnormalized"]["pass_at_1"][0] < reuse["s_trace"]["pass_at_1"][0]
    assert reuse["p_trace unnormalized"]["tuned"].startswith("lr 7e-05")
    assert all(reuse[f"{name} 0.5"]["pass_at_1_minus_grpo"][0] > 0 for name in ("p_trace", "s_trace"))
    return [
        f"S-trace ends {higher(long, 's_trace 0.5')} above GRPO ({p(long, 's_trace 0.5')}), P-trace "
        f"{lower(long, 'p_trace 0.5')} below.",
        f"P-trace ends {lower(long, 'p_trace unnormalized')} below GRPO and S-trace "
        f"{lower(long, 's_trace unnormalized')}, where the normalized S-trace ends {lower(long, 's_trace')} below. "
        f"P-trace with normalization ends at {final(long, 'p_trace')},",
        f"P-trace ends higher, at {final(reuse, 'p_trace unnormalized')}, but tuning chose a lower rate for it, at "
        f"which P-trace with normalization is {leads(variants, 'p_trace')[0].lstrip('+')} above GRPO.",
        f"S-trace ends {higher(reuse, 's_trace 0.5')} above GRPO ({p(reuse, 's_trace 0.5')}) and P-trace "
        f"{higher(reuse, 'p_trace 0.5')}.",
        f"it leads by {at_best('s_trace')}, and GMPO by {at_best('gmpo')}.",
        f"leads by {' and '.join(leads(variants, own))} at the two lower rates, instead of "
        f"{' and '.join(leads(rates, 's_trace')[:2])}.",
        f"it was tuned to {reuse['p_trace']['tuned'].split()[1]} and ends below GRPO",
        f"end {behind('grpo in two fours')} below GRPO's one group of eight.",
        f"With the oracle's resets it is {behind('srpo 1x4 oracle')}.",
        f"ends at {final(long, 'grpo in fours')}, and GRPO at {final(long, 'grpo')}.",
    ]


def localizers() -> list[str]:
    """Return what `docs/evidence/results.md` says in sentences of what a localizer is worth."""
    found = stored("localizers/localizers.json")
    lines = found["lines"]

    def crossing(selection: str, against: str) -> list[str]:
        interval = map(float, lines[selection]["crossing"][against]["interval"])
        return ["never" if math.isinf(rate) else f"{rate:.0%}" for rate in interval]

    def hit_rate(name: str) -> str:
        (rate,) = {point["hit_rate"] for line in lines.values() for point in line["real"] if point["localizer"] == name}
        return f"{rate:.0%}"

    same, all_seeds = crossing("random", "paired"), crossing("random", "all_seeds")
    before = {
        name: setting["methods"]["grpo"]["curves"]["completions"]["mean"][0] for name, setting in SETTINGS.items()
    }
    assert before["short"] > before["long"] > before["wide"]
    grpo, thirty = (found[name]["pass_at_1"][0] for name in ("grpo", "grpo_all_seeds"))
    return [
        f"it ends at {grpo:.3f}, and at {thirty:.3f} on thirty",
        f"failure pay from a hit rate of {same[0]} on, against the thirty from {all_seeds[0]} ({all_seeds[1]} to "
        f"{all_seeds[2]}). For the furthest failure it is {crossing('furthest', 'paired')[0]} and "
        f"{crossing('furthest', 'all_seeds')[0]}.",
        f"not clearly ahead of GRPO if {before['wide']:.0%} or more of the answers",
        f"In `rare` it is {before['rare']:.0%}.",
        f"names the right step in {hit_rate('self')} of the failures",
        f"has a hit rate of {hit_rate('prm 500')}, and",
    ]


def reliability() -> list[str]:
    """Return what `docs/evidence/reliability.md` says in sentences of the long runs."""
    runs = stored("soak/soak_cpu.json")["results"]

    def counts(figure: str) -> str:
        seen = {value for run in runs for value in run["blocks"][figure][WARMUP_BLOCKS:]}
        return " or ".join(f"{value:g}" for value in sorted(seen))

    assert not any(run["not_finite_logged"] + run["not_finite_weights"] for run in runs)
    return [
        "{:,} optimizer steps of each method".format(*{run["steps"] for run in runs}),
        "Every logged figure and every weight stayed finite.",
        f"Each process holds {counts('open_files')} open files and {counts('threads')} threads throughout.",
    ]


def cost() -> list[str]:
    """Return what `docs/evidence/cost.md` says in sentences of kernels, updates and reset groups."""
    counted = stored("cost/operations.json")
    operations = {(row["kernel"], row["T"]): row["operations"] for row in counted["kernels"]}
    kernels = [operations[kernel, tokens] for tokens in (16384, 128) for kernel in ("recent", "both")]
    earlier = {
        (row["kernel"], row["B"], row["T"]): row["ms"] for row in stored("cost/trace_kernels_lengths_h200.json")["rows"]
    }
    small = {row["method"]: row for row in stored("cost/reset_cost_smollm2_cpu.json")["rows"]}["srpo"]
    phases = {row["method"]: row for row in stored("cost/reset_phases_testbed_cpu.json")["rows"]}
    shortest = {name: phases[name]["cpu ratio without the rest"][0] for name in ("rrpo", "srpo")}
    return [
        f"RRPO would still be at {shortest['rrpo']:.2f} and SRPO at {shortest['srpo']:.2f}",
        "takes {} operations (`recent`) or {} (`both`) at 16,384 tokens, and {} or {} at 128".format(*kernels),
        f"on the testbed takes {counted['steps'][0]['operations']} operations",
        *updates(),
        f"{earlier['recent', 16, 16384]:.2f} ms (`recent`) and {earlier['both', 16, 16384]:.2f} ms (`both`) on such",
        f"SRPO takes {small['wall ratio'][0]:.2f} times GRPO's time and generates "
        f"{small['generated tokens ratio'][0]:.2f} times as many tokens. Localization takes "
        f"{small['localization_tokens']:.0f} more tokens",
    ]


def updates() -> list[str]:
    """Return what `docs/evidence/cost.md` says in sentences of updates at SmolLM2-135M's size."""
    ratios = {row["method"]: row["process_ratios"] for row in stored("cost/update_step_smollm2_135m_h200.json")["rows"]}
    means = {method: fmean(values) for method, values in ratios.items()}
    alike = ("p_trace", "grpo_lambda recent", "grpo_lambda both")
    starts = [fmean(of_start) for of_start in zip(*(ratios[method] for method in alike), strict=True)]
    mean, half = fmean(starts), 4.303 * stdev(starts) / len(starts) ** 0.5  # Student's t of 2 degrees of freedom
    return [
        f"P-trace ({means['p_trace']:.3f}), GRPO-lambda `both` ({means['grpo_lambda both']:.3f}) and GRPO-lambda on "
        f"the advantage ({means['grpo_lambda advantage']:.3f}) are within it. GRPO-lambda `recent` "
        f"({means['grpo_lambda recent']:.3f}) and S-trace ({means['s_trace']:.3f}) are not.",
        f"between {min(ratios['grpo']):.3f} and {max(ratios['grpo']):.3f}",
        f"a mean of {mean:.3f} (95% interval {mean - half:.3f} to {mean + half:.3f})",
        f"With it, GRPO takes {means['grpo top entropy']:.3f}",
    ]


def traces_on_gpu() -> list[str]:
    """Return what `docs/evidence/cost.md` says in sentences of the GPU kernels of the traces."""
    found = stored("cost/fused_h200.json")
    for check in found["checks"]:
        assert check.get("compiled") or all(
            check[name] is True for name in ("tf32", "autocast", "deterministic", "without_waiting")
        )
    assert all(check["deterministic"] for check in found["credit"])
    read = max(check[f"{name}_relative_error"] for check in found["credit"] for name in ("read", "gradient"))
    for limit in found["limits"]:
        assert limit["lambda_zero_largest_difference"] == 0 and not limit["figures_that_differ"]

    def within(exponent: int, *kernels: str, compiled: bool = False) -> str:
        checks = [c for c in found["checks"] if c["kernel"] in kernels and c.get("compiled", False) == compiled]
        error = max(check[f"{name}_relative_error"] for check in checks for name in ("z", "gradient"))
        return f"within {math.ceil(10**exponent * error)}e-{exponent}"

    def pair(rows: list[dict], form: str, T: int, figure: str = "median_ms") -> list[str]:
        of = {row["kernel"]: row[figure] for row in rows if (row["form"], row["T"]) == (form, T)}
        return [f"{of[kernel]:.{2 if of[kernel] < 10 else 0}f}" for kernel in ("recent", "both")]

    rows = found["kernels"]
    medians = {(row["form"], row["kernel"], row["T"]): row["median_ms"] for row in rows}
    for (form, kernel, tokens), ours in medians.items():
        if form == "ours" and tokens >= 1024:
            assert ours < min(1, medians["matrix", kernel, tokens])
    assert {row["launches"] for row in rows if row["form"] == "ours"} == {5}
    before = stored("cost/traces_h200.json")["kernels"]
    return [
        "Our kernels take {} ms (`recent`) and {} ms (`both`).".format(*pair(rows, "ours", 16384)),
        "The operations take {} and {} ms, and the matrix takes {} and {} ms.".format(
            *pair(rows, "operations", 16384), *pair(rows, "matrix", 16384)
        ),
        "At 1,024 tokens we take {} and {} ms, and the matrix takes {} and {} ms.".format(
            *pair(rows, "ours", 1024), *pair(rows, "matrix", 1024)
        ),
        "the GPU works for {} ms (`recent`) or {} ms (`both`).".format(*pair(rows, "ours", 16384, "gpu_ms")),
        "the same operations took {} and {} ms at 16,384 tokens".format(*pair(before, "ours", 16384)),
        f"gradients were {within(8, 'recent', 'both')} of float64 on the CPU. Under `torch.compile` they were "
        f"{within(7, 'recent', 'both', compiled=True)}. The kernel `uniform`, which has no GPU kernel of its own, was "
        f"{within(7, 'uniform')}.",
        f"These and their gradients were within {math.ceil(1e8 * read)}e-8 too.",
    ]


def resets_on_gpu() -> list[str]:
    """Return what `docs/evidence/cost.md` says in sentences of reset groups with vLLM on a GPU."""
    found = stored("cost/reset_step_vllm_h200.json")
    grpo, rrpo, srpo = (found["methods"][name] for name in ("grpo", "rrpo", "srpo"))
    assert rrpo["median_over_grpo"] < 1.2 < srpo["interval_over_grpo"][0]
    seconds = grpo["step_seconds"]
    return [
        f"for {found['rounds']} rounds after {found['warmup_rounds']} of warm-up",
        "interval of that median is {:.2f} to {:.2f}.".format(*rrpo["interval_over_grpo"]),
        f"GRPO's was {min(seconds):.2f} to {max(seconds):.2f} seconds.",
    ]


def quickstart() -> dict[str, list[str]]:
    """Return what two pages say in sentences of the memory of the quickstart."""
    found = stored("cost/quickstart_memory_h200.json")
    training = found["training"]
    peak = max(found["cells"], key=lambda cell: cell["allocated_gib"])
    completion = training["max_completion_length"]
    assert training["largest_batch"]["tokens"] == training["possible_tokens"]
    return {
        "docs/guides/scale.md": [
            f"peak of tensors {peak['allocated_gib']:.1f} GiB, of the allocator "
            f"{max(cell['reserved_gib'] for cell in found['cells']):.1f} GiB, of {found['allowed_gib']:.0f} allowed",
            f"within the memory of a T4: {training['steps']} of its 120 steps",
            f"in batches of {training['batch_size']}, with prompts of at most "
            f"{training['possible_tokens'] - completion} tokens and completions of {completion}.",
            f"the measured peak of the tensors was {peak['allocated_gib']:.2f} GiB. CUDA's allocator held "
            f"{peak['reserved_gib']:.2f} GiB for them,",
        ],
        "notebooks/01_quickstart.ipynb": [
            f"({found['allowed_gib']:.0f} GiB allowed on an H200), the peak was {peak['allocated_gib']:.1f} GiB in "
            f"{training['steps']} training steps.",
        ],
    }


def position() -> dict[str, list[str]]:
    """Return what two pages say in sentences of the credit by position."""
    found = stored("credit/position.json")
    computed = {row["length"]: row["methods"] for row in found["computed"]}
    measured, rule = found["measured"], {row["c"]: row for row in found["rule"]}

    def pair(length: int, decay: str) -> list[str]:
        of = computed[length][f"S-trace {decay}"]
        return [f"{of['first']:.1f}", f"{of['later_half']:.1f}"]

    def tenth(of: dict) -> str:
        return f"{of['first_tenth']:.0%}"

    by_chance = {
        length: [
            100 * abs(of["first_tenth"] - of["first_tenth_at_random"])
            for name, of in methods.items()
            if name.startswith("S-trace")
        ]
        for length, methods in computed.items()
    }
    changed = math.ceil(max(difference for length in by_chance if length >= 100 for difference in by_chance[length]))
    short, long, lower = pair(40, "0.99"), pair(2000, "0.99"), pair(40, "0.9")
    below = max(
        100 * (row["first_tenth"] - share)
        for row in (rule[c] for c in (4, 10, 20))
        for name in ("p_trace", "s_trace")
        for length, share in zip(row["lengths"], row[name], strict=True)
        if length <= 100
    )
    text, many, few = (
        measured[name]["0.99"] for name in ("text, 400 tokens", "testbed, 16 steps", "testbed, 4 to 6 steps")
    )

    def figures(of: dict) -> str:
        return f"{of['before_first']:.0%}, {of['first']:.1f}, {of['later_half']:.1f} and {tenth(of)}."

    return {
        "docs/methods/s_trace.md": [
            f"the first eligible token gets {short[0]}, and the later half of the eligible tokens get {short[1]} each. "
            f"With 2,000 tokens it is {long[0]} and {long[1]}. With `trace_lambda=0.9` and 40 tokens it is {lower[0]} "
            f"and {lower[1]}.",
            f"gets {tenth(rule[4])} of all credit with c = 4, {tenth(rule[10])} with c = 10, and {tenth(rule[20])} "
            f"with c = 20. For 40 and 100 tokens it gets up to {below:.1f} points less.",
            f"the first tenth of 40 tokens gets {computed[40]['S-trace 0.99']['first_tenth_at_random']:.0%} with "
            "lambda 0.99, since the first tokens are often not eligible. From 100 tokens on, this changes the shares "
            f"by less than {changed} point.",
            f"the first eligible token comes after {text['before_first']:.0%} of the tokens. It gets "
            f"{text['first']:.1f}, and the later half of the eligible tokens get {text['later_half']:.1f} each. The "
            f"first tenth of the tokens gets {tenth(text)}.",
            f"16 steps ({many['mean_length']:.0f} tokens) these figures are {figures(many)}",
            f"4 to 6 steps ({few['mean_length']:.0f} tokens) they are {figures(few)}",
        ],
        "docs/evidence/results.md": [
            f"With lambda 0.99 and 40 tokens, the first tenth of the tokens gets {tenth(computed[40]['S-trace 0.99'])} "
            f"of S-trace's credit, and with 2,000 tokens {tenth(computed[2000]['S-trace 0.99'])}.",
            f"(about {many['mean_length']:.0f} tokens) we measured {tenth(many)}, but in those of 4 to 6 steps "
            f"{tenth(few)},",
        ],
    }


# What each page says in sentences, and the numbers of its sentences that were chosen or cited, not measured.
SENTENCES = {
    "docs/evidence/results.md": [
        *results(),
        *floor(),
        *explanations(),
        *localizers(),
        *position()["docs/evidence/results.md"],
    ],
    "benchmarks/learning_curves/README.md": predictions(),
    "docs/evidence/reliability.md": reliability(),
    "docs/evidence/cost.md": [*cost(), *traces_on_gpu(), *resets_on_gpu()],
    **quickstart(),
    "docs/methods/s_trace.md": position()["docs/methods/s_trace.md"],
}
CHOSEN = {
    "docs/evidence/results.md": "trace_lambda=0.9; epsilon=0.1; delta=1.5; From 0.00015 on; but at 0.00007; "
    "Lambda is 0.99; at 0.00012 GRPO collapses; In `wide` at 0.0002 it is; "
    "own rate (0.00005); S-trace with lambda 0.9 ends where; GRPO-lambda the default 0.99; "
    "raises negative advantages to -0.1; "
    "Lambda 0.5 neither; lambda 0.99 for it; chose lambda 0.9 for both; "
    "A smaller lambda does not help either: with lambda 0.5; "
    "P-trace at lambda 0.5; lambda 0.5 means; Lambda 0.9 means c = 7.5 and costs about 0.025; "
    "the 20% of tokens; 0.6 M parameters; p = 0.05 by chance; 95% bootstrap; about 90%; 0.45, and an; 30 to 40%; "
    "28.7% of prefixes; and 16.3%; about 0.02; temperature 0.3",
    "docs/evidence/reliability.md": "95% bootstrap; Qwen2.5-VL",
    "benchmarks/learning_curves/README.md": "--rates 7e-5 1.2e-4 1.5e-4 2e-4; 30 to 40%; "
    "S-trace at lambda 0.9 and GMPO; at lambda 0.9 and no better at 0.99 | at 0.9 it is; "
    "(9% lies between; S-trace, at lambda 0.99, ends lower",
}


@pytest.mark.parametrize(
    ("page", "sentence"), [(page, sentence) for page, sentences in SENTENCES.items() for sentence in sentences]
)
def test_a_sentence_has_the_figures_of_the_results(page, sentence):
    assert words(sentence) in words((ROOT / page).read_text())


@pytest.mark.parametrize("page", CHOSEN)
def test_no_figure_of_a_page_goes_untested(page):
    """Every decimal and percentage outside of tables that are made stands in a sentence above, or was chosen."""
    text = re.sub(r"\]\([^)]*\)|```.*?```", "]", PLACE.sub("", (ROOT / page).read_text()), flags=re.S)
    text = words(text)
    for known in (*map(words, SENTENCES[page]), *CHOSEN[page].split("; ")):
        assert known in words((ROOT / page).read_text()), "says nothing of the page any more"
        text = text.replace(known, "")
    assert not re.findall(r".{30}(?<![\d.])\d+(?:\.\d+|(?=%)).{10}", text)
