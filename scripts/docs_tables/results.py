"""Make the tables of `docs/evidence/results.md` and `reliability.md`, and those of the README's results."""

from benchmarks.learning_curves.suite import VARIANTS
from benchmarks.soak.run import WARMUP_BLOCKS
from benchmarks.theory import chain_signal

from .markdown import interval, p_value, percents, share, stored, table, title

CURVES = "learning_curves/learning_curves.json"
FRESH = "learning_curves/fresh_seeds/{}/learning_curves.json"


def learning_curve(setting: str) -> str:
    """Return where every method ends in a setting of the learning curves, the best first, beside GRPO."""
    methods = stored(CURVES)["settings"][setting]["methods"]
    compared = {name: outcome for name, outcome in methods.items() if name not in VARIANTS}
    return _beside_grpo(methods) + "\n\n" + _ends(compared)


def variants(setting: str) -> str:
    """Return where the experiments on explanations, and the variants of the traces, end in a setting."""
    methods = stored(CURVES)["settings"][setting]["methods"]
    return _ends({name: outcome for name, outcome in methods.items() if name in VARIANTS})


def _ends(methods: dict) -> str:
    return table(
        ("method", "tuned learning rate", "final pass rate", "minus GRPO", "final pass@16"),
        [
            (
                title(name),
                f"{outcome['tuned'].split()[1].removesuffix(',')}",
                interval(outcome["pass_at_1"]),
                interval(outcome["pass_at_1_minus_grpo"], "+"),
                f"{outcome['pass_at_16'][0]:.3f}",
            )
            for name, outcome in _best_first(methods)
        ],
    )


def settings() -> str:
    """Return what the settings of the learning curves are, and the pass rate before training."""
    rows = []
    for name, setting in stored(CURVES)["settings"].items():
        fields, curve = setting["fields"], setting["methods"]["grpo"]["curves"]["completions"]
        steps = " to ".join(map(str, sorted({fields["min_steps"], fields["max_steps"]})))
        completions, before = f"{curve['x'][-1]:,.0f}", f"{curve['mean'][0]:.3f}"
        on_a_batch = fields["num_iterations"] * fields.get("mini_batches", 1)
        rows.append((f"`{name}`", steps, str(on_a_batch), completions, before))
    header = ("setting", "operations in a chain", "optimizer steps on a batch", "trained completions")
    return table((*header, "pass rate before training"), rows)


def fresh_seeds(setting: str) -> str:
    """Return what the methods that ran again in a setting do on seeds that nobody had looked at."""
    methods = stored(FRESH.format(setting))["settings"][setting]["methods"]
    first = stored(CURVES)["settings"][setting]["methods"]
    return (
        _beside_grpo(methods)
        + "\n\n"
        + table(
            ("method", "minus GRPO, fresh seeds", "p", "minus GRPO, first seeds", "completions to GRPO's final rate"),
            [
                (
                    title(name),
                    interval(outcome["pass_at_1_minus_grpo"], "+"),
                    p_value(outcome["pass_at_1_p"]),
                    f"{first[name]['pass_at_1_minus_grpo'][0]:+.3f}",
                    share(outcome["catch_up"]["completions"]),
                )
                for name, outcome in _best_first(methods)
            ],
        )
    )


def rates(*names: str) -> str:
    """Return GRPO's final pass rate at each learning rate, and below it what methods gain over GRPO at the same one.

    The figures are those of the files `rates_<name>.json`; the first file says which learning rates are shown.
    """
    files = [stored(f"learning_curves/rates_{name}.json")["methods"] for name in names]
    grpo, *_ = (methods.pop("grpo")["rates"] for methods in files)
    compared = {
        _with_options(name, outcome["options"]): outcome["rates"]
        for methods in files
        for name, outcome in methods.items()
    }
    rows = [["GRPO", *(interval(outcome["pass_at_1"]) for outcome in grpo.values())]]
    for name, outcomes in compared.items():
        gains = (interval(outcomes[rate]["minus_grpo"], "+") if rate in outcomes else "not run" for rate in grpo)
        rows.append([f"{name}, minus GRPO", *gains])
    return table(("learning rate", *(f"{float(rate):g}" for rate in grpo)), rows)


def _with_options(name: str, options: dict[str, float]) -> str:
    """Return a method's name and the options that tuning chose for it: "S-trace, lambda 0.9"."""
    names = {"trace_lambda": "lambda", "reset_offset": "offset"}
    return ", ".join([title(name), *(f"{names[option]} {value:g}" for option, value in options.items())])


def _best_first(methods: dict) -> list[tuple[str, dict]]:
    others = [(name, outcome) for name, outcome in methods.items() if name != "grpo"]
    return sorted(others, key=lambda entry: -entry[1]["pass_at_1"][0])


def _beside_grpo(methods: dict) -> str:
    grpo = methods["grpo"]
    rate = grpo["tuned"].split()[1]
    return (
        f"GRPO ends at {interval(grpo['pass_at_1'])}, pass@16 at {grpo['pass_at_16'][0]:.3f}, at learning rate {rate}."
    )


def localizers() -> str:
    """Return what resets gain over GRPO by who names the wrong step, the surest localizer last."""
    lines = stored("localizers/localizers.json")["lines"]
    found: dict[str, dict[str, dict]] = {}
    for selection, line in lines.items():
        for point in [*line["points"], *line["real"]]:
            found.setdefault(point["localizer"], {})[selection] = point
    rows = []
    for name, points in sorted(found.items(), key=lambda entry: min(p["hit_rate"] for p in entry[1].values())):
        rate = f"{next(iter(points.values()))['hit_rate']:.0%}"
        gains = (interval(points[s]["gain"], "+") if s in points else "not run" for s in ("random", "furthest"))
        rows.append((_localizer_title(name), rate, *gains))
    return table(("the step is named by", "hit rate", "a random failure is cut", "the furthest failure is cut"), rows)


def _localizer_title(name: str) -> str:
    kind, *details = name.split()
    if name.startswith("noisy oracle"):
        return {"0": "chance", "1": "the oracle"}.get(details[-1], f"the noisy oracle, probability {details[-1]}")
    if kind == "prm":
        return f"a PRM, trained on {details[0]} labeled solutions"
    return "the model itself" + (f", {' '.join(details)}" if details else "")


def reset_exponents() -> str:
    """Return the exponents of p of random resets over the oracle's, as derived and as measured."""
    families = stored("theory/cpi_theory.json")["families"]
    rows = {
        "samples, Hoeffding's bound": ("Hoeffding", "samples"),
        "samples, Bernstein's bound, every reset rolled out": ("Bernstein, blind", "samples"),
        "samples, Bernstein's bound, no rollout where the policies agree": ("Bernstein", "samples"),
        "improvement of an iteration": ("Hoeffding", "improvement"),
        "improvement, step size counted where the policies differ": ("Bernstein, counted", "improvement"),
        "iterations to half of the gap (3 seeds)": ("Hoeffding", "iterations"),
        "samples in all to half of the gap (3 seeds)": ("Hoeffding", "total_samples"),
    }

    def cells(rule: str, quantity: str) -> list[str]:
        ratio = f"random, {rule} / oracle, {rule.split(',')[0]}"
        fits = [families[family]["ratios"][ratio][quantity] for family in ("graded", "chain")]
        measured = (interval([fit["exponent"], *fit["exponent_interval"]], digits=2) for fit in fits)
        return [str(fits[0]["predicted_exponent"]), *measured]

    header = ("random resets over the oracle's", "derived", "`graded`, measured", "`chain`, measured")
    return table(header, [(label, *cells(*fit)) for label, fit in rows.items()])


def informative_groups() -> str:
    """Return how often groups on a chain of uncertain steps say anything, from the closed form."""
    reliability, rows = 0.45, []  # the testbed's uncertain facts
    for steps in (1, 2, 3, 4, 6, 8):
        fresh = chain_signal.pass_probability(reliability, steps)
        shares = [chain_signal.informative(fresh, size) for size in (8, 4)]
        shares += [chain_signal.informative_after_reset(reliability, steps, 4, failures) for failures in (1, 4)]
        rows.append((str(steps), f"{fresh:.3f}", *(f"{value:.0%}" for value in shares)))
    header = ("uncertain steps", "pass rate", "8 from the prompt", "4 from the prompt")
    return table((*header, "4 after a reset", "4 after a reset, furthest"), rows)


def credit() -> str:
    """Return where each method's negative credit lands on policy, and how clear a batch's push is."""
    settings = stored("credit/quality.json")["credit"]
    shown = ("grpo", "p_trace", "s_trace", "grpo_lambda recent", "rrpo", "srpo 1x4", "srpo 1x4 oracle")

    def cells(figures: dict) -> list[str]:
        blame, snr = ([figures[name]["value"], *figures[name]["interval"]] for name in ("blame", "snr"))
        return [percents(blame), interval(snr, digits=2)]

    return table(
        ("method", *(f"{figure}, {setting}" for setting in settings for figure in ("blame", "SNR"))),
        [
            (title(name), *(cell for methods in settings.values() for cell in cells(methods[name]["on policy"])))
            for name in shown
        ],
    )


def credit_by_position() -> str:
    """Return the share of S-trace's credit that the first tenth of the tokens gets, by length and lambda."""
    rows = stored("credit/position.json")["computed"]
    lambdas = ("0.99", "0.9", "0.5")
    return table(
        ("tokens", *(f"`trace_lambda={value}`" for value in lambdas)),
        [
            (
                f"{row['length']:,}",
                *(f"{row['methods'][f'S-trace {value}']['first_tenth']:.0%}" for value in lambdas),
            )
            for row in rows
        ],
    )


def localization() -> str:
    """Return how well the testbed's model and chance name the first wrong step, and what continues a prefix."""
    settings = stored("credit/quality.json")["localization"].values()

    def answers(name: str) -> list[str]:
        return [f"{100 * setting['answers'][name]['value']:.1f}%" for setting in settings]

    def right(localizer: str, kind: str) -> list[str]:
        return [f"{100 * setting['correction'][localizer][kind]['value']:.1f}%" for setting in settings]

    rows = [
        ("the model names the first wrong step", *answers("hit_rate")),
        ("a random step is the first wrong step", *answers("hit_rate_random")),
        ("the model's prefix has no error", *answers("clean_rate")),
        ("a random prefix has no error", *answers("clean_rate_random")),
        ("right continuations, oracle's prefixes", *right("oracle", "all")),
        ("right continuations, the model's prefixes", *right("self", "all")),
        ("right continuations, the model's prefixes without an error", *right("self", "clean")),
        ("right continuations, the model's prefixes with an error", *right("self", "erroneous")),
        ("right continuations, random prefixes", *right("random", "all")),
    ]
    return table(("share of 2,000 failures", *stored("credit/quality.json")["localization"]), rows)


def real_model() -> str:
    """Return the mean rewards of the runs of a real model on one H200: first and last quarter, each seed."""
    results = stored("real_model/real_model_h200.json")["results"]

    def quarters(result: dict, name: str) -> str:
        return ", ".join(f"{reward:.3f}" for reward in result[name])

    return table(
        ("method", "first quarter of the batches", "last quarter"),
        [
            (title(result["method"]), quarters(result, "first_quarter"), quarters(result, "last_quarter"))
            for result in results
        ],
    )


def soak() -> str:
    """Return what two thousand steps of each method do to the process."""
    rows = []
    for result in stored("soak/soak_cpu.json")["results"]:
        slopes, blocks = result["slopes_per_1000_steps"], result["blocks"]
        seconds = blocks["cpu_seconds"][WARMUP_BLOCKS:]
        rows.append(
            (
                title(result["method"]),
                interval(slopes["resident_memory"], "+", digits=1),
                f"{blocks['resident_memory'][-1]:.0f}",
                interval([100 * value for value in slopes["cpu_seconds"]], "+", digits=1),
                f"{sum(seconds) / len(seconds):.2f}",
                " to ".join(f"{reward:.2f}" for reward in result["reward"]),
            )
        )
    header = ("method", "memory, MiB per 1,000 steps", "MiB at the end", "step time, % per 1,000 steps")
    return table((*header, "CPU seconds a step", "reward, first to last"), rows)


def headlines() -> str:
    """Return seven results with the options of `python -m benchmarks.learning_curves` that measure them anew."""
    again = "--seeds {10..29}"
    chosen = (
        ("four optimizer steps per batch", FRESH, "long_reuse", "s_trace", again),
        ("the same over 100 batches of other problems, six seeds", CURVES, "wide_reuse", "s_trace 0.9", ""),
        ("the same, six fresh seeds", FRESH, "wide_reuse", "grpo_lambda recent", "--seeds {10..15}"),
        ("100 batches, one step per batch, six fresh seeds", FRESH, "wide", "grpo_lambda recent", "--seeds {10..15}"),
        ("right answers are rare, an oracle names the wrong step", FRESH, "rare", "srpo 1x4 oracle furthest", again),
        ("right answers are rare, the model names the wrong step", FRESH, "rare", "srpo 1x4 furthest", again),
        ("long chains, one optimizer step per batch", FRESH, "long", "srpo 1x4", again),
    )
    rows = []
    for situation, path, setting, method, seeds in chosen:
        methods = stored(path.format(setting))["settings"][setting]["methods"]
        rows.append(
            (
                situation,
                f"{title(method)}: {methods[method]['pass_at_1'][0]:.3f}",
                f"{methods['grpo']['pass_at_1'][0]:.3f}",
                interval(methods[method]["pass_at_1_minus_grpo"], "+"),
                f"`--settings {setting} {seeds}".strip() + "`",
            )
        )
    return table(
        ("situation", "final pass rate", "final pass rate of GRPO", "difference (95% interval)", "options"), rows
    )
