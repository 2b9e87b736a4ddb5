"""The benchmark of credit by position: its sums against slow loops, autograd and every choice of eligible tokens."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.credit import position
from benchmarks.credit.position import (
    BINS,
    credit,
    draw,
    evenly,
    expected_credit,
    first_share,
    measure,
    rounded,
    rule,
    share_of_tenth,
    summary,
    text_entropies,
    unnormalized,
)
from credit_trl.testbed import BASE_MODEL
from credit_trl.traces.credit import traced_log_ratio

STORED = Path(position.__file__).with_name("position.json")
MASKS = [np.random.default_rng(seed).random(23) < share for seed, share in enumerate((0.2, 0.2, 0.5, 1.0))]


def slow_credit(eligible, decay):
    """Return W from its definition: every trace's share of every token, one after the other."""
    total = [0.0] * len(eligible)
    for t in range(len(eligible)):
        weights = {k: decay ** (t - k) for k in range(t + 1) if eligible[k]}
        for k, weight in weights.items():
            if sum(weights.values()) > 0:
                total[k] += weight / sum(weights.values())
    return np.array(total)


def trained_credit(eligible, decay, *, kernel="recent", normalize=True):
    """Return W from the trace that the trainers put into the loss, at equal policies: (T,)."""
    logps = torch.zeros(1, len(eligible), dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, len(eligible))
    z, _ = traced_log_ratio(
        logps,
        logps.detach(),
        mask,
        torch.ones(1),
        decay=decay,
        kernel=kernel,
        normalize=normalize,
        trust_region="token" if normalize else "trace",
        epsilon_low=0.2,
        epsilon_high=0.2,
        eligible=torch.tensor(eligible)[None],
    )
    (gradient,) = torch.autograd.grad(z.exp().sum(), logps)
    return gradient[0].numpy()


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("eligible", MASKS)
def test_credit_is_what_a_slow_loop_and_the_trained_trace_give(eligible, decay):
    found = credit(eligible, decay)
    np.testing.assert_allclose(found, slow_credit(eligible, decay), rtol=1e-12)
    np.testing.assert_allclose(found, trained_credit(eligible, decay), rtol=1e-12)


def test_the_limits_of_credit():
    for eligible in MASKS:
        reached = len(eligible) - eligible.argmax()
        np.testing.assert_array_equal(credit(eligible, 0), eligible)
        for decay in (0.01, 0.5, 0.99, 1):
            assert credit(eligible, decay).sum() == pytest.approx(reached)
    harmonic = np.cumsum(1 / np.arange(1, 41)[::-1])[::-1]  # at lambda 1: 1/k + ... + 1/40
    np.testing.assert_allclose(credit(np.ones(40), 1), harmonic)
    np.testing.assert_array_equal(credit(np.zeros(4), 0.9), 0)
    # A token beyond what a float of the decay can hold still shares its traces.
    assert credit(evenly(4000), 1e-80).sum() == pytest.approx(4000)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_every_fifth_token_is_p_trace_on_a_fifth_of_the_tokens(decay):
    np.testing.assert_allclose(credit(evenly(40), decay)[::5], 5 * credit(np.ones(8), decay**5))


@pytest.mark.parametrize("decay", [0.4, 0.9, 0.99])
def test_the_expected_credit_is_the_mean_over_every_choice(decay):
    length, probability = 9, 0.2
    mean = np.zeros(length)
    for choice in itertools.product((0, 1), repeat=length):
        weight = probability ** sum(choice) * (1 - probability) ** (length - sum(choice))
        mean += weight * credit(np.array(choice), decay)
    np.testing.assert_allclose(expected_credit(length, decay, probability), mean, rtol=1e-8)


def test_the_expected_credit_of_many_tokens():
    """Every trace with an eligible token shares 1, and far from both ends a token gets as much as it gives: 1."""
    found = expected_credit(1200, 0.9, 0.2)  # more tokens than those whose shares are computed one by one
    assert found.sum() == pytest.approx(1200 - (0.8 ** np.arange(1, 1201)).sum())
    assert found[600] == pytest.approx(1)


@pytest.mark.parametrize("c", [0.4, 4, 20])
def test_the_closed_form_is_the_sum_over_many_tokens(c):
    length = 20000
    values = credit(np.ones(length), np.exp(-c / length))
    for fraction in (0.1, 0.5):
        assert first_share(fraction, c) == pytest.approx(values[: int(fraction * length)].sum() / length, abs=1e-4)
    assert first_share(1, c) == pytest.approx(1)


def test_the_limits_of_the_closed_form():
    assert first_share(0.1, 1e-9) == pytest.approx(0.1 + 0.1 * np.log(10))  # lambda 1
    assert first_share(0.1, 500) == pytest.approx(0.1)


@pytest.mark.parametrize("kernel", ["recent", "both"])
def test_credit_without_normalization_is_that_of_the_trained_trace(kernel):
    trained = trained_credit(np.ones(30, dtype=bool), 0.9, kernel=kernel, normalize=False)
    np.testing.assert_allclose(unnormalized(30, kernel, 0.9), trained, rtol=1e-5)


def test_what_the_tables_have_of_a_completion():
    values, eligible = np.array([0, 6, 0, 3, 0, 0, 0, 0, 1, 0.0]), np.arange(10) % 10 != 0
    assert summary(values, values > 0) == {"first": 6, "later_half": 2, "first_tenth": 0}
    assert summary(values, eligible)["later_half"] == pytest.approx(1 / 5)
    assert share_of_tenth(np.array([3, 1, 0, 0, 0, 0, 0, 0, 0, 0])) == 0.75


def test_measured_credit_takes_the_batch_s_fifth_of_highest_entropy():
    entropies = torch.rand(30, generator=torch.Generator().manual_seed(0))
    long, short = entropies[:20], entropies[20:]
    eligible = [(row >= torch.quantile(entropies, 0.8)).numpy() for row in (long, short)]
    found = measure([[long, short]], 0.9)
    expected = [summary(credit(choice, 0.9), choice) for choice in eligible]
    for name in expected[0]:
        assert found[name] == pytest.approx(np.mean([row[name] for row in expected]), rel=1e-5)
    assert (found["completions"], found["mean_length"]) == (2, 15)
    assert found["before_first"] == pytest.approx(np.mean([choice.argmax() / len(choice) for choice in eligible]))
    by_bin = [
        [value for choice in eligible for k, value in enumerate(credit(choice, 0.9)) if choice[k]
         and k * BINS // len(choice) == index]
        for index in range(BINS)
    ]  # fmt: skip
    assert found["eligible_by_position"] == pytest.approx([len(values) / 6 for values in by_bin])
    assert found["credit_by_position"] == [
        pytest.approx(np.mean(values), rel=1e-5) if values else None for values in by_bin
    ]


def test_a_completion_without_an_eligible_token_counts_for_nothing():
    certain, uncertain = torch.zeros(8), torch.tensor([0.1, 0.9])
    assert measure([[certain, uncertain]], 0.9)["completions"] == 1


def test_the_entropies_of_a_text_are_the_model_s_without_the_end(monkeypatch):
    monkeypatch.setattr(position, "BEGINNING", "5+12*3:")
    found = text_entropies(str(BASE_MODEL), 4)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    logits = model(**tokenizer("5+12*3:", return_tensors="pt")).logits[0, -1].detach()
    keeps = torch.arange(len(logits)) != tokenizer.eos_token_id
    probabilities = logits[keeps].softmax(0)
    assert found.shape == (position.TEXTS, 4)
    torch.testing.assert_close(found[:, 0], torch.full((position.TEXTS,), -(probabilities @ probabilities.log())))


def test_the_stored_results_are_those_of_the_formulas(tmp_path):
    stored = json.loads(STORED.read_text())
    assert stored["rule"] == rounded(rule())
    (shortest,) = (row["methods"] for row in stored["computed"] if row["length"] == 40)
    for name, of in shortest.items():
        if name.startswith("S-trace"):
            found = summary(credit(evenly(40), float(name.split()[1])), evenly(40))
            assert {key: of[key] for key in found} == pytest.approx(found, rel=1e-4)
    draw(stored, tmp_path / "position.png")
    assert (tmp_path / "position.png").stat().st_size > 10000
