"""Compute and measure where traces put credit: a token's credit on policy, by its position in the completion.

    python -m benchmarks.credit.position --output benchmarks/credit/position.json

The credit of token k on policy is W[k], relative to that of GRPO, which is 1 for every token. With a trace over the
eligible tokens, e[k] = 1, and the decay a,

    W[k] = e[k] * sum over t >= k of a^(t - k) / S[t],        S[t] = sum over j <= t of a^(t - j) e[j]

under normalization (P-trace, S-trace), and W[k] = sum over t of w(t, k) without it (GRPO-lambda), where `trace_weights`
has a closed form. Under normalization the following holds:

- Between two eligible tokens all traces are the same mean, since the decay cancels. So W is a sum over the eligible
  tokens, and `credit` computes it exactly in a number of operations linear in T. It is a sum and no closed form: with
  all tokens eligible S[t] = (1 - a^t) / (1 - a), and the sum of a^t / (1 - a^t) is a Lambert series.
- Every trace shares 1 among its tokens, so W adds up to the number of tokens that have an eligible one at or before
  them. (At a = 0 the trace of a token that is not eligible is empty: W = e.)
- If every s-th token is eligible, from the first on, W is s times that of P-trace on T/s tokens with the decay a^s.
  So T tokens and the decay a matter through c = T ln(1/a), which is about T (1 - a).
- For many tokens the sum becomes an integral, and that has a closed form. At the depth x = k ln(1/a)

      W = e^x ln((1 - e^-c) / (1 - e^-x)),

  and the first share f of the tokens has the share `first_share` of all credit.
- If every token is eligible with probability p, independently, the mean of W over such choices is an integral in one
  variable, which `expected_credit` evaluates.

**Measured** is the credit that the package's own `token_credit` gives with S-trace's entropy mask, a quantile over a
batch as in the trainer: batches of the testbed's base model, 8 completions for each of 8 problems, and a batch of 16
texts that SmolLM2-135M-Instruct continues from the same words, with the end token forbidden. No text is longer than 500
tokens: the 2,000 and 4,000 tokens are 4 and 8 of these texts, one behind the other.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common.drawing import GRAY, TEXT, new_figure, save
from benchmarks.common.measuring import QUIET, prepare
from benchmarks.common.methods import METHODS
from benchmarks.common.stored import own_command, parse_or_draw, store
from benchmarks.credit.pictures import entropies_of
from benchmarks.credit.quality import COMPLETIONS, complete, longest
from credit_trl import token_credit
from credit_trl.testbed import BASE_MODEL, make_dataset
from credit_trl.traces.kernels import trace_weights
from credit_trl.visualization.curves import COLORS, MARKERS

LENGTHS = (40, 100, 400, 2000, 4000)
LAMBDAS = (0.99, 0.9, 0.5)
SPACING = 5  # every fifth token is eligible, which is S-trace's default fraction
TENTH = 0.1
SHAPES = (1, 2, 4, 10, 20, 40)  # values of c = length * (1 - lambda)
SETTINGS = {"testbed, 4 to 6 steps": (4, 6), "testbed, 12 steps": (12, 12), "testbed, 16 steps": (16, 16)}
BINS = 10  # of the position, for what is measured
TEXTS, TEXT_LENGTH = 16, 500
BEGINNING = "The history of the steam engine begins long before the first railway."


# --- computed ---


def credit(eligible: np.ndarray, decay: float) -> np.ndarray:
    """Return W under normalization, (T,), of the tokens of one completion.

    Args:
        eligible: (T,), nonzero for the tokens that enter a trace.
        decay: gamma * lambda, in [0, 1].
    """
    position = np.flatnonzero(eligible)
    if decay == 0 or not len(position):
        return (np.asarray(eligible) != 0).astype(float)
    gap = np.diff(position, append=len(eligible))  # tokens whose trace has this as its newest eligible token
    carried = decay ** gap.astype(float)
    shares, weight = [], 0.0
    for index in range(len(position)):
        weight = 1 + weight
        shares.append(gap[index] / weight)
        weight *= carried[index]
    result, received = np.zeros(len(eligible)), 0.0
    for index in reversed(range(len(position))):
        received = shares[index] + carried[index] * received
        result[position[index]] = received
    return result


def expected_credit(length: int, decay: float, probability: float) -> np.ndarray:
    """Return the mean of W over random choices of eligible tokens, (T,).

    A token at the distance d has the share a^d / S of a trace with the sum of weights S. As 1 / S is the integral of
    e^(-u S) over u > 0, and the tokens are independent, the mean share in a trace over t tokens is the integral of

        p a^d e^(-u a^d) * product over the other distances j < t of (1 - p + p e^(-u a^j)).

    The trapezoidal rule in ln u evaluates it, to about 9 digits.

    Args:
        length: T.
        decay: above 0, below 1.
        probability: p, that a token is eligible; above 0, below 1.
    """
    rate = -np.log(decay)
    # Weights decay to 1e-12 over half of this distance, and no token in it is eligible with a probability of 1e-12 at
    # most: shares beyond it are nothing.
    reach = min(length, int(2 * 28 / min(rate, -np.log1p(-probability))) + 1)
    distance, step = np.arange(reach), 0.25
    log_u = np.arange(-45, rate * reach + 5, step)
    scaled = np.exp(log_u[:, None] - rate * distance)  # u a^d, of u and d
    log_factor = np.log1p(probability * np.expm1(-scaled))
    own = probability * scaled * np.exp(-scaled - log_factor) * step
    share = np.exp(log_factor.cumsum(1)).T @ own  # of a trace over t tokens, t = 1..reach, and d
    result = np.zeros(length)
    for d in distance:
        result[: length - d] += np.pad(share[d:, d], (0, length - reach), mode="edge")
    return result


def first_share(fraction: float, c: float) -> float:
    """Return the share of all credit that the first `fraction` of the tokens has, for many tokens, all eligible.

    It depends on the length T and the decay a through c = T ln(1/a) > 0.
    """
    return float(fraction + np.expm1(fraction * c) / c * np.log(np.expm1(-c) / np.expm1(-fraction * c)))


def evenly(length: int) -> np.ndarray:
    """Return which tokens are eligible if every fifth is, from the first on: (T,) boolean."""
    return np.arange(length) % SPACING == 0


def share_of_tenth(values: np.ndarray) -> float:
    """Return the share of the sum of (T,) `values` that the first tenth of the tokens has."""
    return float(values[: round(TENTH * len(values))].sum() / values.sum())


def unnormalized(length: int, kernel: str, decay: float) -> np.ndarray:
    """Return W without normalization, (T,), all tokens eligible."""
    return trace_weights(torch.ones(1, length), decay=decay, kernel=kernel)[0].double().numpy()


def summary(values: np.ndarray, eligible: np.ndarray) -> dict[str, float]:
    """Return what the tables have of one completion's credit, given which tokens are eligible."""
    own = values[eligible]
    return {"first": own[0], "later_half": own[len(own) // 2 :].mean(), "first_tenth": share_of_tenth(values)}


def computed() -> list[dict]:
    """Return for every length the summaries of every method."""
    rows = []
    for length in LENGTHS:
        everything = np.ones(length, dtype=bool)
        methods = {f"P-trace {decay}": summary(credit(everything, decay), everything) for decay in LAMBDAS}
        for decay in LAMBDAS:
            methods[f"S-trace {decay}"] = summary(credit(evenly(length), decay), evenly(length)) | {
                "first_tenth_at_random": share_of_tenth(expected_credit(length, decay, 1 / SPACING))
            }
        for kernel in ("recent", "both"):
            values = unnormalized(length, kernel, LAMBDAS[0])
            methods[f"GRPO-lambda {kernel}"] = summary(values, everything) | {"mean": values.mean()}
        rows.append({"length": length, "methods": methods})
    return rows


def rule() -> list[dict]:
    """Return the share of the first tenth with lambda = 1 - c / length: of the integral, and of every length."""
    rows = []
    for c in SHAPES:
        lengths = [length for length in LENGTHS if c <= length / 2]
        rows.append(
            {
                "c": c,
                "first_tenth": first_share(TENTH, c),
                "lengths": lengths,
                "p_trace": [share_of_tenth(credit(np.ones(length), 1 - c / length)) for length in lengths],
                "s_trace": [share_of_tenth(credit(evenly(length), 1 - c / length)) for length in lengths],
            }
        )
    return rows


# --- measured ---


def testbed_entropies(model, tokenizer, steps: tuple[int, int], seed: int, progress) -> list[torch.Tensor]:
    """Return the policy's entropies in nats at the tokens of a batch of sampled completions, the end included."""
    problems = make_dataset(COMPLETIONS // 8, min_steps=steps[0], max_steps=steps[1], seed=seed)
    prompts = [prompt for prompt in problems["prompt"] for _ in range(8)]
    sampled = complete(model, tokenizer, prompts, longest(steps[1]), 1.0, progress)
    return [
        entropies_of(model, tokenizer, prompt, [*ids, tokenizer.eos_token_id])
        for prompt, ids in zip(prompts, sampled, strict=True)
    ]


def text_entropies(folder: str, length: int) -> torch.Tensor:
    """Return the entropies, (TEXTS, length) in nats, of texts that a language model samples after `BEGINNING`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(BEGINNING, return_tensors="pt")["input_ids"].repeat(TEXTS, 1)
    entropies, cache = [], None
    with torch.no_grad():
        for _ in tqdm(range(length), desc="tokens of the texts"):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[:, -1], output.past_key_values
            logits[:, tokenizer.eos_token_id] = -torch.inf
            distribution = torch.distributions.Categorical(logits=logits)
            entropies.append(distribution.entropy())
            ids = distribution.sample().unsqueeze(1)
    return torch.stack(entropies, 1)


def measure(batches: Sequence[Sequence[torch.Tensor]], decay: float) -> dict:
    """Return the summary of the credit that S-trace gives to the completions of batches of entropies, and its bins.

    Means are over completions that have an eligible token. In a bin of positions they are over its eligible tokens,
    and None where it has none.
    """
    config = METHODS["s_trace"].config("unused", trace_lambda=decay, use_cpu=True, **QUIET)
    summaries, sums, counts, before = [], np.zeros(BINS), np.zeros(BINS), []
    for batch in batches:
        mask = pad_sequence([torch.ones(len(row)) for row in batch], batch_first=True)
        entropies = pad_sequence(list(batch), batch_first=True)
        credits = token_credit(config, torch.ones(len(batch)), mask, entropies)
        for row, values in zip(batch, credits.double().numpy(), strict=True):
            length = len(row)
            values = values[:length]
            eligible = values > 0
            if not eligible.any():
                continue
            summaries.append(summary(values, eligible))
            before.append(eligible.argmax() / length)
            bins = (np.flatnonzero(eligible) + 0.5) * BINS // length
            sums += np.bincount(bins.astype(int), values[eligible], BINS)
            counts += np.bincount(bins.astype(int), minlength=BINS)
    means = {name: float(np.mean([row[name] for row in summaries])) for name in summaries[0]}
    return means | {
        "completions": len(summaries),
        "mean_length": float(np.mean([len(row) for batch in batches for row in batch])),
        "before_first": float(np.mean(before)),  # share of the tokens, which no trace reaches
        "eligible_by_position": (counts / counts.sum()).tolist(),
        "credit_by_position": [total / count if count else None for total, count in zip(sums, counts, strict=True)],
    }


def measured(batches: int, text_model: str | None) -> dict[str, dict]:
    """Return the measured summaries by where the entropies are from, and by lambda."""
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    with tqdm(desc="completions of the testbed") as progress:
        sources: dict[str, Sequence[Sequence[torch.Tensor]]] = {
            name: [testbed_entropies(model, tokenizer, steps, seed, progress) for seed in range(batches)]
            for name, steps in SETTINGS.items()
        }
    if text_model is not None:
        texts = text_entropies(text_model, TEXT_LENGTH)
        sources["text, 400 tokens"] = [list(texts[:, :400])]
        sources["texts, 2,000 tokens"] = [list(texts.view(-1, 2000))]
        sources["texts, 4,000 tokens"] = [list(texts.view(-1, 4000))]
    return {
        name: {str(decay): measure(found, decay) for decay in LAMBDAS}
        for name, found in tqdm(sources.items(), desc="credit")
    }


# --- report ---


def rounded(value):
    """Return nested results with numbers of 5 digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def tables(result: dict) -> str:
    lines = ["| tokens | method | first eligible | later half | first tenth | at random |", "|---|---|---|---|---|---|"]
    for row in result["computed"]:
        for name, of in row["methods"].items():
            at_random = f"{of['first_tenth_at_random']:.1%}" if "first_tenth_at_random" in of else "-"
            lines.append(
                f"| {row['length']} | {name} | {of['first']:.2f} | {of['later_half']:.2f} | {of['first_tenth']:.1%} | "
                f"{at_random} |"
            )
    lines += ["", "| c | closed form | P-trace | S-trace |", "|---|---|---|---|"]
    for row in result["rule"]:
        cells = (" ".join(f"{share:.1%}" for share in row[name]) for name in ("p_trace", "s_trace"))
        lines.append(f"| {row['c']} | {row['first_tenth']:.1%} | {' | '.join(cells)} |")
    lines += ["", "| measured | lambda | tokens | before | first | later half | first tenth |", "|---|" + "---|" * 6]
    for name, lambdas in result["measured"].items():
        for decay, of in lambdas.items():
            lines.append(
                f"| {name} | {decay} | {of['mean_length']:.0f} | {of['before_first']:.1%} | {of['first']:.2f} | "
                f"{of['later_half']:.2f} | {of['first_tenth']:.1%} |"
            )
    return "\n".join(lines)


@rc_context(TEXT)
def draw(result: dict, path: Path) -> None:
    """Draw the credit of eligible tokens over the position: a panel for each method, a line for each length."""
    figure = new_figure(7)
    grid = figure.subplots(3, 2, sharex=True, sharey="row")
    for decay, axes in zip((None, *LAMBDAS), grid[:2].flat, strict=True):
        for length, color in zip(LENGTHS, COLORS, strict=False):
            eligible = np.ones(length, dtype=bool) if decay is None else evenly(length)
            _draw_line(axes, credit(eligible, decay or LAMBDAS[0]), eligible, color, length)
        if decay is not None:
            _draw_measured(axes, result["measured"], str(decay))
        axes.set_title(f"P-trace, lambda {LAMBDAS[0]}" if decay is None else f"S-trace, lambda {decay}")
        axes.set_ylim(0.2, 30)
    for kernel, axes in zip(("recent", "both"), grid[2], strict=True):
        for length, color in zip(LENGTHS, COLORS, strict=False):
            _draw_line(axes, unnormalized(length, kernel, LAMBDAS[0]), np.ones(length, dtype=bool), color, length)
        axes.set_title(f"GRPO-lambda, {kernel}, lambda {LAMBDAS[0]}")
        axes.set(ylim=(0.7, 6000), xlabel="position in the completion")
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.supylabel("credit of an eligible token (GRPO: 1)")
    save(figure, path)


def _draw_line(axes: Axes, values: np.ndarray, eligible: np.ndarray, color: str, length: int) -> None:
    position = (np.flatnonzero(eligible) + 0.5) / length
    axes.plot(position, values[eligible], color=color, linewidth=1.4, label=f"{length:,} tokens")
    axes.axhline(1, color=GRAY, linestyle=":", linewidth=1)
    axes.set(yscale="log", xlim=(0, 1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0%}"))
    axes.grid(alpha=0.3)


def _draw_measured(axes: Axes, found: dict[str, dict], decay: str) -> None:
    position = (np.arange(BINS) + 0.5) / BINS
    drawn = {"testbed, 4 to 6 steps": COLORS[0], "testbed, 16 steps": COLORS[1], "text, 400 tokens": COLORS[2]}
    for (name, color), marker in zip(drawn.items(), MARKERS, strict=False):
        if name in found:
            values = [np.nan if value is None else value for value in found[name][decay]["credit_by_position"]]
            axes.plot(position, values, marker, color=color, markersize=4, markerfacecolor="none", label=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=8, help="of the testbed's completions, of each setting")
    parser.add_argument("--text-model", help="folder of SmolLM2-135M-Instruct; the testbed's completions alone without")
    arguments = parse_or_draw(parser, draw)
    prepare()
    torch.manual_seed(0)
    result = {
        "command": own_command("benchmarks.credit.position"),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "computed": computed(),
        "rule": rule(),
        "measured": measured(arguments.batches, arguments.text_model),
    }
    print(tables(result))
    store(rounded(result), arguments.output, draw)


if __name__ == "__main__":
    main()
