"""The reward `countdown`: exact arithmetic, each number once, and no text that raises or stalls."""

import time

import pytest

from credit_trl.rewards.countdown import countdown_reward


def score(text, nums=(8, 3, 1), target=24):
    (reward,) = countdown_reward([text], nums=[list(nums)], target=[target])
    return reward


@pytest.mark.parametrize(
    "text",
    [
        "<answer>8 * 3 * 1</answer>",
        "<answer>(8*3)/1 = 24</answer>",
        "\\boxed{8 \\times 3 \\div 1}",
        "\\boxed{\\left(8 \\cdot 3\\right) \\cdot 1}",
        "\\boxed{\\frac{8 \\cdot 3}{1}}",
        "I try 8 + 3.\nThe answer is 8 × 3 ÷ 1.",
        "<answer>$8 * 3 * 1$</answer>",
        "<answer>[8 * 3] * 1</answer>",
        "<answer>\\( (8 * 3) * 1 = 24 \\)</answer>",
        "<answer>\\[ 8 · 3 · 1 \\]</answer>",
        "<answer>−8 * 3 * −1</answer>",
        [{"role": "assistant", "content": "\\boxed{8 * 3 * 1}"}],
    ],
)
def test_right_expressions(text):
    assert score(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{24}", "\\boxed{8 * 3}", "\\boxed{8 * 3 * 1 * 1}", "\\boxed{8 * 3 + 1}", "\\boxed{83 - 1}",
        "\\boxed{8 // 3 * 1}",
        "\\boxed{8 ** 3 ** 1}", "\\boxed{8 * 3 * 1, 1}", "\\boxed{8(3)(1)}", "8 * 3 * 1", "", "\\boxed{}", "\\boxed{x}",
        "\\boxed{8 / (3 - 3) * 1}", "\\boxed{8.0 * 3 * 1}", "\\boxed{08 * 3 * 1}",
    ],
)  # fmt: skip
def test_wrong_ones(text):
    assert score(text) == 0.0


def test_fractions_are_exact():
    assert score("\\boxed{8 / (3 - 8 / 3)}", (8, 8, 3, 3), 24) == 1.0
    assert score("\\boxed{(1 / 3 + 1) * 3}", (1, 1, 3, 3), 4) == 1.0


def test_numbers_that_are_text_count_as_numbers():
    assert score("<answer>8 * 3 * 1</answer>", ("8", "3", "1"), "24") == 1.0


def test_hostile_texts_take_no_time():
    start = time.process_time()
    hostile = [
        "9**9**9",
        "(" * 5000,
        "1" * 10_000,
        "-" * 299 + "1",
        "(" * 140 + "1" + ")" * 140,
        "9*" * 149 + "9",
        "\x00",
        "\ud800",
    ]
    assert [score(f"<answer>{text}</answer>") for text in hostile] == [0.0] * len(hostile)
    assert time.process_time() - start < 1
