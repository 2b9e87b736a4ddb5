"""The benchmark of where credit lands: its sums against values worked out by hand, and its batches' independence."""

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from benchmarks.credit import quality as credit_quality
from benchmarks.credit.quality import (
    PHASES,
    SHAKY,
    Decisive,
    Failure,
    correction,
    decisive_tokens,
    failures,
    localizer_quality,
    observe,
    push,
    read_credit,
    same_counts,
    snr_over_grpo,
    summarize,
)
from credit_trl.testbed import Problem, step_truths
from credit_trl.testbed.arithmetic import apply_operation
from scripts.pretrain_testbed import build_tokenizer


def test_decisive_tokens_are_the_results_of_well_written_steps():
    (value, operator, operand), wrong = next(iter(SHAKY.items()))
    right = apply_operation(value, operator, operand)
    solid = next((wrong, "+", n) for n in range(17) if (wrong, "+", n) not in SHAKY)
    problem = Problem(value, ((operator, operand), solid[1:], ("-", 1), ("*", 2)))
    result = apply_operation(*solid)
    # The third step is malformed: a result is missing. The fourth takes up the result of the second.
    text = f"{value}{operator}{operand}={wrong}\n\n{wrong}+{solid[2]}={result}\n\n{result}-1=\n\n{result}*2=3\n\n#3"
    tokenizer = build_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
    found = decisive_tokens(7, problem.prompt, tokens)
    last = (result, "*", 2)
    assert found == [
        Decisive(7, 4, False, right, wrong),
        Decisive(7, 10, True, result, None),
        Decisive(7, 21, apply_operation(*last) == 3, apply_operation(*last), SHAKY.get(last)),
    ]
    assert [tokens[one.column] for one in found] == [str(wrong), str(result), "3"]


def test_a_push_is_what_descent_on_the_logits_does():
    generator = torch.Generator().manual_seed(0)
    right, wrong = 2, 5
    for token in (right, wrong, 0):
        logits = torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True)
        logp = logits.log_softmax(-1)[token]
        loss = (3 * logp - 1) ** 2  # any function of the log-probability
        gradient, slope = torch.autograd.grad(loss, [logits, logp])
        expected = -(gradient[right] - gradient[wrong])
        actual = push(slope.item(), token, logits.detach().softmax(-1).numpy(), right, wrong)
        assert actual == pytest.approx(expected.item())


def test_the_sums_of_a_batch_by_hand():
    """Two rows of three tokens: a wrong and a right step in a failed row, a right step that is masked, a right one."""
    gradient = np.array([[3.0, 1.0, 5.0], [-2.0, -2.0, 0.0]])
    mask = np.array([[True, True, False], [True, True, True]])
    ids = np.array([[1, 0, 0], [0, 2, 2]])
    probabilities = np.full((2, 3, 4), 0.25)
    probabilities[0, 0] = [0.2, 0.6, 0.1, 0.1]
    decisive = [Decisive(0, 0, False, 10, 11), Decisive(0, 1, True, 10, None), Decisive(0, 2, True, 10, 11)]
    decisive.append(Decisive(1, 0, True, 10, 11))
    sums = read_credit(gradient, probabilities, ids, mask, decisive, {10: 0, 11: 1})
    rms = np.sqrt((9 + 1 + 4 + 4 + 0) / 5)
    # Squared gradients of the logits: g^2 (sum of pi^2 + 1 - 2 pi(token)).
    squares = [9 * (0.42 + 1 - 1.2), 1 * 0.75, 4 * 0.75, 4 * 0.75]
    pushes = [-3 * (-1 - (0.2 - 0.6)), 2 * (1 - 0)]
    expected = dict(right=(-1 + 2) / rms, right_count=2, wrong=-3 / rms, wrong_count=1, blame=3 / rms, negative=4 / rms)
    expected |= dict(squares=sum(squares), shaky_squares=squares[0] + squares[2], push=sum(pushes))
    assert sums == pytest.approx(expected)


def test_localizer_quality_by_hand():
    problem = Problem(1, (("+", 2),) * 3)
    named = [2, 1, 4, None]
    found = [Failure(problem, ("a", "b", "c", "d"), 2, one) for one in named]
    quality = localizer_quality(found, np.random.default_rng(0))
    expected = dict(parse_rate=3 / 4, hit_rate=1 / 4, hit_rate_random=1 / 4, clean_rate=2 / 4, clean_rate_random=2 / 4)
    expected |= dict(distance=(0 + 1 + 2) / 3, distance_random=(1 + 0 + 1 + 2) / 4)
    assert {name: quality[name]["value"] for name in expected} == pytest.approx(expected)
    assert quality["signed_distance"]["shares"] == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 0, 1 / 3, 0, 0])


def test_every_batch_is_the_base_models(tmp_path):
    """What was learned from a batch in the first step shows in the second, and not in the next batch."""

    def run(learning_rate: float) -> list[list[dict]]:
        observed = observe("grpo", (2, 2), 3, learning_rate, str(tmp_path), tqdm(disable=True))
        return [observed[index :: len(PHASES)] for index in range(len(PHASES))]

    frozen, learning = run(0.0), run(1e-3)
    for one, other in zip(frozen[0], learning[0], strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    for one, other in zip(frozen[1], learning[1], strict=True):
        assert abs(other["push"] / one["push"] - 1) > 1e-2


def test_the_phases_are_told_apart(monkeypatch):
    monkeypatch.setattr(credit_quality, "FIGURES", {"ratio": lambda sums: sums["a"].sum() / sums["b"].sum()})
    steps = [{"a": 1.0, "b": 2.0}, {"a": 30.0, "b": 10.0}, {"a": 5.0, "b": 2.0}, {"a": 50.0, "b": 10.0}]
    summary = summarize(steps, np.random.default_rng(0))
    assert [summary[phase]["ratio"]["value"] for phase in PHASES] == [6 / 4, 80 / 20]
    assert summary[PHASES[0]]["ratio"]["interval"] == [0.5, 2.5]  # the one batch twice, or the other


def steps_of(pushes: list[float], right: int = 3, wrong: int = 1, off_policy: int = 7) -> list[dict]:
    """Return a step on policy with each push, and after it one off policy that says something else."""
    steps = []
    for push_on_policy in pushes:
        steps.append({"push": push_on_policy, "right_count": right, "wrong_count": wrong})
        steps.append({"push": 100.0, "right_count": off_policy, "wrong_count": off_policy})
    return steps


def test_a_signal_is_compared_batch_by_batch():
    """A method whose push is GRPO's in each batch, times 5, has exactly its signal; less spread is more of it."""
    pushes = [float(push) for push in range(1, 13)]
    scaled = snr_over_grpo(steps_of([5 * push for push in pushes]), steps_of(pushes), np.random.default_rng(0))
    assert scaled["value"] == pytest.approx(1) and scaled["interval"] == pytest.approx([1, 1])
    steadier = snr_over_grpo(steps_of([6.5 + push for push in pushes]), steps_of(pushes), np.random.default_rng(0))
    assert steadier["value"] == pytest.approx(2)  # twice the mean, the same deviation


def test_methods_with_the_same_completions_are_told_by_their_counts_on_policy():
    assert same_counts(steps_of([1.0, 2.0]), steps_of([5.0, 6.0], off_policy=8))
    assert not same_counts(steps_of([1.0, 2.0]), steps_of([1.0, 2.0], right=2))
    assert not same_counts(steps_of([1.0, 2.0]), steps_of([1.0, 2.0], wrong=2))


class PlainTokenizer:
    """Texts are their own tokens."""

    batch_decode = staticmethod(list)


def continue_without_a_slip(model, tokenizer, texts, *others):
    """Goes on from the last value that each text states."""
    continued = []
    for text in texts:
        prompt, _, prefix = text.partition(":")
        steps = prefix.split("\n\n")[:-1]
        value = int(steps[-1].partition("=")[2]) if steps else Problem.parse(f"{prompt}:").start
        continued.append(Problem(value, Problem.parse(f"{prompt}:").operations[len(steps) :]).solution())
    return continued


def test_corrections_of_clean_and_of_erroneous_prefixes(monkeypatch):
    """A writer without slips mends every failure from a clean prefix, and none from an erroneous one."""
    monkeypatch.setattr(credit_quality, "complete", continue_without_a_slip)
    one = Failure(Problem(5, (("+", 12), ("+", 1))), ("5+12=0\n\n", "0+1=4\n\n", "#4"), 2, 2)
    other = Failure(Problem(3, (("-", 1), ("+", 6))), ("3-1=1\n\n", "1+6=7\n\n", "#7"), 1, 3)
    third = Failure(Problem(2, (("+", 2),)), ("2+2=4\n\n", "#5"), 2, 1)
    found = [one, other, third]
    rates = correction(None, PlainTokenizer, found, 9, 2, np.random.default_rng(0), tqdm(disable=True))
    figures = {kind: (figure["value"], figure["prefixes"]) for kind, figure in rates["self"].items()}
    assert figures == {"all": (2 / 3, 3), "clean": (1, 2), "erroneous": (0, 1)}
    assert {kind: figure["value"] for kind, figure in rates["oracle"].items()} == {"all": 1, "clean": 1}
    assert set(rates["random"]) <= {"all", "clean", "erroneous"}


def test_failures_are_those_that_the_model_was_asked_about(monkeypatch):
    """The second step is wrong in every other completion; the model names the first."""
    tokenizer, asked = build_tokenizer(), []

    def complete(model, tokenizer, texts, *others):
        if texts[0].endswith("?"):
            asked.extend(texts)
            return [tokenizer.encode("\\boxed{1}") for _ in texts]
        written = []
        for index, text in enumerate(texts):
            problem = Problem.parse(text)
            first = apply_operation(problem.start, *problem.operations[0])
            second = (apply_operation(first, *problem.operations[1]) + index % 2) % 17
            written.append(tokenizer.encode(problem.solution([first, second])))
        return written

    monkeypatch.setattr(credit_quality, "complete", complete)
    found = failures(None, tokenizer, (2, 2), 20, tqdm(disable=True))
    assert len(found) == len(asked) == 20
    for one, text in zip(found, asked, strict=True):
        assert (one.error, one.named, len(one.steps)) == (2, 1, 3)
        assert step_truths(one.problem, "".join(one.steps)) == [True, False, True]
        assert text.startswith(f"{one.problem.prompt}Step 1: {one.steps[0]}")
