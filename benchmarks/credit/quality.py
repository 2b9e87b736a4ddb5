"""Measure where credit lands and how well errors are localized, on the testbed, which knows every step's truth.

    python -m benchmarks.credit.quality --output benchmarks/credit/quality.json

The model has facts that it mostly gets wrong, always with the same wrong result ("shaky" facts). A step states one
fact, and its result is the one token at which it goes right or wrong: the *decisive* token.

**Credit.** Every method trains with its own trainer and loss, two optimizer steps on each batch; after these the base
model is restored, so that all batches are the base model's and independent. Without resets, all methods see the same
completions. Read off the loss, at every decisive token that is in it:

- its credit: minus the gradient of the loss with respect to the token's log-probability, over the root mean square of
  that over the batch's tokens, as losses differ in scale;
- its push: what a step of gradient descent on the logits adds to the logit of the right result less that of the taught
  wrong one (only shaky facts have one). With g the gradient at the token's log-probability and pi the policy there, it
  is -g ([token is right] - [token is the wrong one] - (pi(right) - pi(wrong))).

Reported, for the first step on a batch (on policy) and the second (off policy): mean credits; `blame`, the share of all
negative credit at decisive tokens that falls on wrong steps; `focus`, the share of the squared gradient of the logits
that falls on decisive tokens of shaky facts; and `snr`, the mean over batches of the summed push over its standard
deviation: how clearly one batch says to mend the facts that are wrong. Methods that see GRPO's completions are also
compared with GRPO's `snr` on the same batches.

**Localization.** Failed completions of the base model, the step that it names as the first wrong one, and completions
of what precedes that step. A prefix is clean if the first error is not in it. Unreadable answers count as misses, and
are replaced by a random step where something is continued, as the trainer does.

Intervals are 95% bootstrap percentiles, over batches and over failed completions.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.common.drawing import TEXT, method_title, new_figure, save
from benchmarks.common.measuring import QUIET, prepare, processor
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command, parse_or_draw, store
from credit_trl.resets.localization import FailedCompletion, format_localization_prompt, parse_localization
from credit_trl.resets.steps import split_steps
from credit_trl.testbed import (
    BASE_MODEL,
    LOCALIZATION_TEMPLATE,
    Problem,
    answer_reward,
    first_error,
    make_dataset,
    step_truths,
)
from credit_trl.testbed.arithmetic import STEP_DELIMITER, apply_operation
from credit_trl.testbed.facts import shaky_facts
from credit_trl.visualization.curves import COLORS, MARKERS

SETTINGS = {"4 to 6 steps": (4, 6), "12 steps": (12, 12)}
COMPARED = (
    "grpo",
    "gspo",
    "gmpo",
    "p_trace",
    "s_trace",
    "grpo_lambda recent",
    "grpo_lambda both",
    "grpo_lambda advantage",
    "grpo_lambda both advantage",
    "rrpo",
    "srpo 1x4",
    "srpo 1x4 oracle",
    "srpo 1x4 s_trace",
)
PHASES = ("on policy", "off policy")
COMPLETIONS = 64  # completions of a batch, 8 for each problem
SHAKY = shaky_facts(seed=0)  # the base model's shaky facts


def longest(num_steps: int) -> int:
    """Return a completion's limit in tokens: six an operation with its delimiter, three the answer, and a few more."""
    return 6 * num_steps + 8


# --- credit ---


class Decisive(NamedTuple):
    """Hold the result token of a step that is written as it should be: `value operator operand = result`."""

    row: int
    column: int
    is_right: bool  # whether the step is right, given the steps before it
    right: int  # the right result
    wrong: int | None  # the taught wrong result of a shaky fact


def decisive_tokens(row: int, prompt: str, tokens: Sequence[str]) -> list[Decisive]:
    """Return the decisive tokens of one completion, given as the texts of its tokens."""
    text = "".join(tokens)
    truths, found, begin = step_truths(Problem.parse(prompt), text), [], 0
    for index, step in enumerate(text.split(STEP_DELIMITER)[: len(Problem.parse(prompt).operations)]):
        length = tokens[begin:].index(STEP_DELIMITER) if STEP_DELIMITER in tokens[begin:] else len(tokens) - begin
        parts = tokens[begin : begin + length]
        if len(parts) == 5 and parts[1] in "+-*" and parts[3] == "=" and (parts[0] + parts[2] + parts[4]).isdigit():
            fact = (int(parts[0]), parts[1], int(parts[2]))
            found.append(Decisive(row, begin + 4, truths[index], apply_operation(*fact), SHAKY.get(fact)))
        assert "".join(parts) == step
        begin += length + 1
    return found


def push(gradient: float, token: int, probabilities: np.ndarray, right: int, wrong: int) -> float:
    """Return what a step of gradient descent on the logits adds to logit[right] - logit[wrong].

    `gradient` is that of the loss with respect to the log-probability of `token`. `token`, `right` and `wrong` are ids.
    """
    stated = float(token == right) - float(token == wrong)
    return -gradient * (stated - (probabilities[right] - probabilities[wrong]))


def read_credit(gradient, probabilities, ids, mask, decisive: list[Decisive], number_ids: dict[int, int]) -> dict:
    """Return the sums over a batch that its figures are made of.

    Args:
        gradient: (B, T) of the loss with respect to the tokens' log-probabilities.
        probabilities: (B, T, V) of the policy at each token.
        ids, mask: (B, T) the tokens, and which of them are in the loss.
        number_ids: the token of every number.
    """
    scale = np.sqrt((gradient[mask] ** 2).mean()) or 1.0  # a batch in which all groups agree has no gradient
    taken = np.take_along_axis(probabilities, ids[..., None], -1)[..., 0]
    squares = gradient**2 * ((probabilities**2).sum(-1) + 1 - 2 * taken) * mask
    sums = dict.fromkeys(("right", "right_count", "wrong", "wrong_count", "push", "shaky_squares"), 0.0)
    sums |= {"blame": 0.0, "negative": 0.0, "squares": float(squares.sum())}
    for token in decisive:
        at = token.row, token.column
        if not mask[at]:
            continue
        credit = -gradient[at] / scale
        kind = "right" if token.is_right else "wrong"
        sums[kind] += credit
        sums[f"{kind}_count"] += 1
        sums["negative"] += max(0.0, -credit)
        sums["blame"] += max(0.0, -credit) * (not token.is_right)
        if token.wrong is not None:
            sums["shaky_squares"] += squares[at]
            sums["push"] += push(
                gradient[at], ids[at], probabilities[at], number_ids[token.right], number_ids[token.wrong]
            )
    return {name: float(value) for name, value in sums.items()}


FIGURES: dict[str, Callable[[dict[str, np.ndarray]], float]] = {
    "credit_right": lambda sums: sums["right"].sum() / sums["right_count"].sum(),
    "credit_wrong": lambda sums: sums["wrong"].sum() / sums["wrong_count"].sum(),
    "blame": lambda sums: sums["blame"].sum() / sums["negative"].sum(),
    "focus": lambda sums: sums["shaky_squares"].sum() / sums["squares"].sum(),
    "snr": lambda sums: sums["push"].mean() / sums["push"].std(ddof=1),
}


class Restore(TrainerCallback):
    """Restore the base model and empty the optimizer's state after every second step."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.base = state

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step % len(PHASES) == 0:
            model.load_state_dict(self.base)
            optimizer.state.clear()


class Observed:
    """Keep the sums of every batch's loss in the order of the steps, as a mixin for trainers."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if output[0].requires_grad:
            self.logps = output[0]
        return output

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        (gradient,) = torch.autograd.grad(loss, self.logps, retain_graph=True)
        ids, mask = inputs["completion_ids"], (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        with torch.no_grad():
            logits = self.model(
                input_ids=torch.cat([inputs["prompt_ids"], ids], dim=1),
                attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            ).logits[:, -ids.shape[1] - 1 : -1]
        probabilities = logits.float().softmax(-1)
        taken = probabilities.gather(2, ids.unsqueeze(2)).squeeze(2).log()
        torch.testing.assert_close(taken[mask], self.logps.detach()[mask], rtol=1e-3, atol=1e-3)
        tokenizer = self._tokenizer
        decisive = []
        for row, prompt in enumerate(tokenizer.batch_decode(inputs["prompt_ids"], skip_special_tokens=True)):
            length = int(inputs["completion_mask"][row].sum())
            tokens = tokenizer.convert_ids_to_tokens(ids[row, :length].tolist())
            if tokens and tokens[-1] == tokenizer.eos_token:
                tokens.pop()
            decisive += decisive_tokens(row, prompt, tokens)
        number_ids = {number: tokenizer.convert_tokens_to_ids(str(number)) for number in range(17)}
        arrays = (tensor.numpy() for tensor in (gradient, probabilities, ids, mask))
        self.observed.append(read_credit(*arrays, decisive, number_ids))
        self.progress.update()
        return loss


def observe(name: str, setting: tuple[int, int], batches: int, learning_rate: float, folder: str, progress) -> list:
    """Return the sums of every optimizer step, on policy and off policy in turn."""
    method = METHODS[name]
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    observed = type("ObservedTrainer", (Observed, method.trainer), {"config_class": method.config})
    trainer = replace(method, trainer=observed).make_trainer(
        model,
        answer_reward,
        dict(
            output_dir=folder,
            per_device_train_batch_size=COMPLETIONS,
            num_generations=8,
            max_completion_length=longest(setting[1]),
            num_iterations=len(PHASES),
            max_steps=len(PHASES) * batches,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            use_cpu=True,
            **QUIET,
            logging_steps=1000,
            dataloader_pin_memory=False,
        ),
        train_dataset=make_dataset(8 * batches, min_steps=setting[0], max_steps=setting[1], seed=1),
        processing_class=AutoTokenizer.from_pretrained(BASE_MODEL),
        callbacks=[Restore(base)],
    )
    trainer.observed, trainer.progress = [], progress
    trainer.train()
    return trainer.observed


def summarize(observed: list[dict], rng: np.random.Generator) -> dict[str, dict]:
    """Return the figures of both phases with their intervals over batches."""
    summary = {}
    for index, phase in enumerate(PHASES):
        steps = observed[index :: len(PHASES)]
        sums = {name: np.array([step[name] for step in steps]) for name in steps[0]}
        choices = rng.integers(len(steps), size=(2000, len(steps)))
        summary[phase] = {
            figure: with_interval(
                statistic(sums),
                [statistic({name: values[choice] for name, values in sums.items()}) for choice in choices],
            )
            for figure, statistic in FIGURES.items()
        }
    return summary


def same_counts(observed: list[dict], others: list[dict]) -> bool:
    """Return whether every batch of two methods has as many right and wrong steps on policy.

    Methods without resets see the same completions, and so have the same counts.
    """
    counts = [
        [(step["right_count"], step["wrong_count"]) for step in steps[:: len(PHASES)]] for steps in (observed, others)
    ]
    return counts[0] == counts[1]


def snr_over_grpo(observed: list[dict], grpo: list[dict], rng: np.random.Generator) -> dict:
    """Return a method's `snr` over GRPO's on the same batches, on policy, with its paired interval over batches."""
    pushes = [np.array([step["push"] for step in steps[:: len(PHASES)]]) for steps in (observed, grpo)]
    choices = [slice(None), *rng.integers(len(pushes[0]), size=(2000, len(pushes[0])))]
    value, *resampled = (
        FIGURES["snr"]({"push": pushes[0][choice]}) / FIGURES["snr"]({"push": pushes[1][choice]}) for choice in choices
    )
    return with_interval(value, resampled)


def with_interval(value: float, resampled: Sequence[float]) -> dict:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": float(value), "interval": [float(low), float(high)]}


# --- localization ---


def complete(model, tokenizer, texts: list[str], longest: int, temperature: float, progress: tqdm) -> list[list[int]]:
    """Sample one completion of each text. Return their token ids without padding and the end.

    One symbol is one token, so that the tokens of a sampled text are the sampled tokens.
    """
    ends, samples = {tokenizer.pad_token_id, tokenizer.eos_token_id}, []
    for start in range(0, len(texts), 256):
        batch = texts[start : start + 256]
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        output = model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_new_tokens=longest,
            pad_token_id=tokenizer.pad_token_id,
        )
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        samples += [[token for token in row if token not in ends] for row in rows]
        progress.update(len(batch))
    return samples


class Failure(NamedTuple):
    """Hold a failed completion: its problem, its steps' texts, the first wrong step, and the one the model names."""

    problem: Problem
    steps: tuple[str, ...]
    error: int
    named: int | None


def failures(model, tokenizer, setting: tuple[int, int], wanted: int, progress: tqdm) -> list[Failure]:
    found: list[tuple[Problem, tuple[str, ...], int]] = []
    seed, length = 100, longest(setting[1])
    while len(found) < wanted:
        rows = make_dataset(512, min_steps=setting[0], max_steps=setting[1], seed=seed)
        seed += 1
        sampled = complete(model, tokenizer, list(rows["prompt"]), length, 1.0, progress)
        texts = tokenizer.batch_decode(sampled)
        rewards = answer_reward(texts, rows["answer"])
        for prompt, ids, text, reward in zip(rows["prompt"], sampled, texts, rewards, strict=True):
            problem = Problem.parse(prompt)
            error = first_error(problem, text)
            if reward < 1 and error is not None and ids:
                steps = tuple(step.text for step in split_steps(ids, tokenizer.decode, STEP_DELIMITER))
                found.append((problem, steps, min(error, len(steps))))
    found = found[:wanted]
    asked = [
        format_localization_prompt(FailedCompletion(problem.prompt, steps), LOCALIZATION_TEMPLATE)
        for problem, steps, _ in found
    ]
    answers = tokenizer.batch_decode(complete(model, tokenizer, asked, 6, 0.3, progress))
    return [
        Failure(*failure, parse_localization(answer, len(failure[1])))
        for failure, answer in zip(found, answers, strict=True)
    ]


def localizer_quality(found: list[Failure], rng: np.random.Generator) -> dict[str, dict]:
    """Return how good the model's answers are, and how good a random step would be in expectation."""
    n = np.array([len(failure.steps) for failure in found])
    error = np.array([failure.error for failure in found])
    named = np.array([failure.named or 0 for failure in found])
    read = named > 0
    columns = {
        "parse_rate": read,
        "hit_rate": named == error,
        "hit_rate_random": 1 / n,
        "clean_rate": read & (named <= error),
        "clean_rate_random": error / n,
        "distance_random": np.array([np.abs(np.arange(1, k + 1) - e).mean() for k, e in zip(n, error, strict=True)]),
    }
    choices = rng.integers(len(n), size=(2000, len(n)))
    result = {
        name: with_interval(column.mean(), column[choices].mean(1)) | {"n": len(n)} for name, column in columns.items()
    }
    distance = np.abs(named - error)[read]
    choices = rng.integers(len(distance), size=(2000, len(distance)))
    result["distance"] = with_interval(distance.mean(), distance[choices].mean(1)) | {"n": len(distance)}
    signed = np.bincount(np.clip((named - error)[read], -4, 4) + 4, minlength=9) / len(distance)
    result["signed_distance"] = {"from": -4, "shares": signed.tolist()}
    return result


def correction(
    model, tokenizer, found: list[Failure], length: int, suffixes: int, rng: np.random.Generator, progress: tqdm
) -> dict[str, dict]:
    """Return how often continuations are right, by who chose the step and by whether the prefix is clean."""
    draw = random.Random(0)
    cuts = {
        "self": [failure.named or draw.randint(1, len(failure.steps)) for failure in found],
        "random": [draw.randint(1, len(failure.steps)) for failure in found],
        "oracle": [failure.error for failure in found],
    }
    result: dict[str, dict] = {}
    for name, steps in cuts.items():
        prefixes = ["".join(failure.steps[: step - 1]) for failure, step in zip(found, steps, strict=True)]
        texts = [
            failure.problem.prompt + prefix
            for failure, prefix in zip(found, prefixes, strict=True)
            for _ in range(suffixes)
        ]
        sampled = tokenizer.batch_decode(complete(model, tokenizer, texts, length, 1.0, progress))
        whole = [
            prefix + text for prefix, text in zip((p for p in prefixes for _ in range(suffixes)), sampled, strict=True)
        ]
        answers = [failure.problem.answer for failure in found for _ in range(suffixes)]
        passed = np.array(answer_reward(whole, answers)).reshape(-1, suffixes).mean(1)
        clean = np.array([step <= failure.error for failure, step in zip(found, steps, strict=True)])
        result[name] = {}
        for kind, mask in (("all", clean | True), ("clean", clean), ("erroneous", ~clean)):
            rates = passed[mask]
            if len(rates):
                choices = rng.integers(len(rates), size=(2000, len(rates)))
                result[name][kind] = with_interval(rates.mean(), rates[choices].mean(1)) | {"prefixes": len(rates)}
    return result


# --- report ---


def shown(figure: dict, percent: bool = False) -> str:
    value, (low, high) = figure["value"], figure["interval"]
    if percent:
        return f"{100 * value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def tables(result: dict) -> str:
    lines = []
    for setting, methods in result["credit"].items():
        for phase in PHASES:
            lines += [
                f"\n{setting}, {phase}\n",
                "| method | credit, right steps | credit, wrong steps | blame | focus | SNR |",
            ]
            lines.append("|---|---|---|---|---|---|")
            for name, phases in methods.items():
                of = phases[phase]
                cells = [shown(of[key], key in ("blame", "focus")) for key in FIGURES]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["\n| localization | " + " | ".join(result["localization"]) + " |"]
    lines.append("|---|" + "---|" * len(result["localization"]))
    qualities = list(result["localization"].values())
    for key in qualities[0]["answers"]:
        if key != "signed_distance":
            cells = [shown(quality["answers"][key], not key.startswith("distance")) for quality in qualities]
            lines.append(f"| {key.replace('_', ' ')} | {' | '.join(cells)} |")
    for name in ("self", "random", "oracle"):
        for kind in ("all", "clean", "erroneous"):
            cells = [
                shown(quality["correction"][name][kind], True) if kind in quality["correction"][name] else "-"
                for quality in qualities
            ]
            lines.append(f"| corrected, {name}, {kind} prefixes | {' | '.join(cells)} |")
    return "\n".join(lines)


@rc_context(TEXT)
def draw(result: dict, path: Path) -> None:
    """Draw, for each setting, where credit lands, and below how errors are localized and corrected."""
    settings, methods = list(result["credit"]), list(next(iter(result["credit"].values())))
    bars = {setting: localization_bars(result["localization"][setting]) for setting in settings}
    heights = [len(methods)] * len(settings) + [len(bars[settings[0]])]
    figure = new_figure(0.8 + 0.27 * sum(heights))
    grid = figure.subplots(len(heights), 2, sharey="row", height_ratios=heights)
    for row, setting in zip(grid, settings, strict=False):
        _draw_credit(row, setting, result["credit"][setting])
    for axes, setting in zip(grid[-1], settings, strict=True):
        y = np.arange(len(bars[setting]))[::-1]
        middle, errors = _with_errors(bars[setting].values())
        axes.barh(y, middle, xerr=errors, color=COLORS[4])
        axes.set(yticks=y, yticklabels=list(bars[setting]), xlim=(0, 1), title=f"localization\n{setting}")
        axes.grid(alpha=0.3, axis="x")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def localization_bars(quality: dict) -> dict[str, dict]:
    """Return the rates of a setting that are drawn, by their names."""
    answers = quality["answers"]
    bars = {
        "step named: self": answers["hit_rate"],
        "step named: random": answers["hit_rate_random"],
        "clean prefix: self": answers["clean_rate"],
        "clean prefix: random": answers["clean_rate_random"],
    }
    for name, kinds in quality["correction"].items():
        bars |= {
            f"corrected: {name}" + f", {kind}" * (kind != "all"): rate
            for kind, rate in kinds.items()
            if (name, kind) != ("oracle", "clean")
        }
    return bars


def _draw_credit(row: Sequence[Axes], setting: str, methods: dict[str, dict]) -> None:
    y = np.arange(len(methods))[::-1]
    titles = {"snr": "push on shaky facts,\nmean / std over batches", "blame": "share of blame\non wrong steps"}
    for axes, (key, title) in zip(row, titles.items(), strict=True):
        for phase, offset, color, marker in zip(PHASES, (0.17, -0.17), COLORS, MARKERS, strict=False):
            middle, errors = _with_errors(phases[phase][key] for phases in methods.values())
            axes.errorbar(middle, y + offset, xerr=errors, fmt=marker, color=color, markersize=3.5, label=phase)
        axes.set(yticks=y, yticklabels=list(map(method_title, methods)), title=f"{title}\n{setting}")
        axes.grid(alpha=0.3)


def _with_errors(estimates: Iterable[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the distances to the ends of their intervals, as Matplotlib wants them."""
    found = list(estimates)
    middle = np.array([estimate["value"] for estimate in found])
    return middle, np.abs(np.array([estimate["interval"] for estimate in found]).T - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=24, help="of each method and setting")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of the step between the two phases")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(COMPARED))
    parser.add_argument("--failures", type=int, default=2000, help="failed completions to localize, of each setting")
    parser.add_argument("--suffixes", type=int, default=2, help="continuations of each of their prefixes")
    arguments = parse_or_draw(parser, draw)
    prepare()
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    credit: dict[str, dict] = {setting: {} for setting in SETTINGS}
    localization = {}
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    with tqdm(desc="localization, completions") as progress:
        for setting, steps in SETTINGS.items():
            found = failures(model, tokenizer, steps, arguments.failures, progress)
            corrected = correction(model, tokenizer, found, longest(steps[1]), arguments.suffixes, rng, progress)
            localization[setting] = {"answers": localizer_quality(found, rng), "correction": corrected}
    total = len(SETTINGS) * len(arguments.methods) * len(PHASES) * arguments.batches
    with tqdm(total=total, desc="credit, optimizer steps") as progress, tempfile.TemporaryDirectory() as folder:
        for setting, steps in SETTINGS.items():
            observed: dict[str, list[dict]] = {}
            for name in arguments.methods:
                progress.set_postfix_str(f"{name}, {setting}")
                observed[name] = observe(name, steps, arguments.batches, arguments.learning_rate, folder, progress)
                credit[setting][name] = summarize(observed[name], rng)
            for name in arguments.methods:
                if name != "grpo" and "grpo" in observed and same_counts(observed[name], observed["grpo"]):
                    ratio = snr_over_grpo(observed[name], observed["grpo"], rng)
                    credit[setting][name][PHASES[0]]["snr_over_grpo"] = ratio
    result = {
        "command": own_command("benchmarks.credit.quality"),
        "device": processor(),
        "torch": torch.__version__,
        "batches": arguments.batches,
        "completions_per_batch": COMPLETIONS,
        "learning_rate": arguments.learning_rate,
        "failures": arguments.failures,
        "suffixes": arguments.suffixes,
        "credit": credit,
        "localization": localization,
    }
    print(tables(result))
    store(result, arguments.output, draw)


if __name__ == "__main__":
    main()
