"""Answers: what a text states, in the ways in which models write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit_trl.rewards.answers import choice_reward, extract_answer, extract_choice, extract_yes_no, yes_no_reward
from credit_trl.rewards.mathematics import math_answer
from credit_trl.rewards.statements import final_part


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Maybe the answer is A. No: the answer is B.", "B"),
        (r"\boxed{A, B, C, D}", None),
        ("Answer: A, B, C, D", None),
        (r"\boxed{B. A tree}", "B"),
        (r"\boxed{(B) I and II}", "B"),
        ("The answer is B, since A is too small.", "B"),
        ("The answer is (B) because (A) is out", "B"),
        ("<answer>(B) because (A) is out</answer>", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"<answer>\boxed{B}</answer>", "B"),
        ("<answer>**B**</answer>", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** B", "B"),
        ("**Final Answer:** (B)", "B"),
        ("Final Answer: B", "B"),
        (r"The final answer is: $\boxed{B}$. I hope it is correct.", "B"),
        (r"<think>A or B? \boxed{A}</think>\boxed{B}", "B"),
        ("The correct option is **B) Paris**.", "B"),
        ("The answer is B (Paris).", "B"),
        ("The answer is B - Paris", "B"),
        ("The answer is B because A is out", "B"),
        (r"\boxed{A or B}", None),
        (r"\boxed{A/B}", None),
        (r"\boxed{A} or \boxed{B}", None),
        (r"\boxed{A}, \boxed{B}", None),
        (r"\boxed{A \text{ or } B}", None),
        ("The answer is A or B", None),
        ("The answer is (A) or (B)", None),
        ("The answer is (A) and (B).", None),
        ("The answer is B, or maybe C.", None),
        ("The answer is B. Or maybe C.", None),
        ("The answer is B, but it could also be C.", None),
        ("The answer is B, but not A.", "B"),
        ("The answer is B, but A is close.", "B"),
        ("The answer is (A)(B)", None),
        (r"\boxed{AB}", None),
        (r"\boxed{A B}", None),
        (r"\boxed{A & B}", None),
        (r"\boxed{A; B}", None),
        (r"\boxed{\text{A, B}}", None),
        (r"\boxed{A}\boxed{B}", None),
        ("\\boxed{B}\n\n\\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        ("The answer is not A. The answer is B.", "B"),
        ("The answer is B. The answer is not A.", "B"),
        ("I'm not sure", None),
        ("The answer is I'm not sure", None),
        ("The answer is: A tree", None),
        (r"\boxed{\textbf{(B)}\ 42}", "B"),
        ("Answer: `B`", "B"),
        ('Answer: "B"', "B"),
        ("The answer is option B.", "B"),
        ("Answer: B\nExplanation: A is out", "B"),
        ("**Answer**: B", "B"),
        ("The best answer is B.", "B"),
        ("The answer to the question is B.", "B"),
        ("### Final Answer\nB", "B"),
        (r"\boxed{B: Paris}", "B"),
        (r"\(\boxed{B}\)", "B"),
        (r"The answer is \(B\).", "B"),
        ("The answer is $B$.", "B"),
        ("", None),
        ("B", None),
        (r"\boxed{Paris}", None),
        (r"\boxed{None of A}", None),
        (r"\boxed{B, C}", None),
        (r"\boxed{B, I and II}", "B"),
        ("The answer is either A or B", None),
        ("Answer: A? B?", None),
        (r"\boxed{B and A}", None),
        ("<answer>B</answer><answer>C</answer>", None),
        ("<answer>B</answer>\nWait.\n<answer>C</answer>", "C"),
        ("The answer is B. No wait, C.", None),
        (r"\boxed{\mathrm{B}}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{A|B}", None),
        (r"\boxed{A + B}", None),
        ("Answer: A, B", None),
        ("Answer: (A), (B)", None),
        (r"\boxed{A,B,C,D}", None),
        (r"\boxed{\{A,B\}}", None),
        ("The answer is P(A) = 0.5", None),
        ("Answer is B!", "B"),
        ("ANSWER: B", "B"),
        ("answer: b", "B"),
        ("The answer is B.\n\nI hope this helps. A good day!", "B"),
        (r"The answer: \textbf{B}", "B"),
        (r"\boxed{B}. A is wrong", "B"),
        ("The answer should be B.", "B"),
        (r"\boxed{A, A}", "A"),
        (r"\boxed{\text{Option B}}", "B"),
        ("Hence the answer is clearly (C).", "C"),
        (r"\boxed{A \quad B}", None),
        (r"\boxed{A \lor B}", None),
        ("Answer: B\n\n#### Why\nA is too small.", "B"),
        ("The answer is A.\n\n#### B\nI hope this helps.", "B"),
        ("The answer is most likely B.", "B"),
        ("Answer: A - B", None),
    ],
)
def test_extract_choice(text, letter):
    assert extract_choice(text) == letter


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The answer is yes? No, the answer is no.", "no"),
        (r"\boxed{yes or no}", None),
        (r"\boxed{yes no}", None),
        ("<answer>yes\nno</answer>", None),
        (r"\boxed{\text{yes}\text{no}}", None),
        (r"\boxed{yes, no doubt}", "yes"),
        (r"\boxed{Yes}", "yes"),
        (r"\boxed{\text{No}}", "no"),
        ("The answer is yes, because no one can.", "yes"),
        ("The answer is no. It is not true that", "no"),
        (r"\boxed{yes/no}", None),
        (r"\boxed{yes, no}", None),
        (r"\boxed{Yes} or \boxed{No}", None),
        ("Answer: Yes. No.", None),
        ("Answer: True", "yes"),
        ("Answer: true or false", None),
        ("Answer: yes and no", None),
        ("The answer is **yes**.", "yes"),
        ("<answer>No</answer>", "no"),
        ("<answer>Yes, no doubt</answer>", "yes"),
        ("maybe", None),
        (r"\boxed{Yes\text{ or }No}", None),
        ("Answer: either yes or no", None),
        ("Answer: yes, maybe no", None),
        ("Answer: No, false", "no"),
        (r"\boxed{not yes}", None),
        ("Final answer: yes", "yes"),
        ("The answer is Yes!", "yes"),
        (r"\boxed{True}", "yes"),
        (r"\boxed{yes (no)}", None),
        ("Answer: Yes; no.", None),
        (r"\boxed{\text{yes and no}}", None),
        ("Yes", None),
        ("The answer is no one", "no"),
    ],
)
def test_extract_yes_no(text, word):
    assert extract_yes_no(text) == word


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x = −3", "-3"),
        ("8−3", "3"),
        ("pages 3–5", "5"),
        (r"\boxed{\left\{x, y\right.}", r"\left\{x, y\right."),
        (r"\boxed{\text{uncle}}", "uncle"),
        (r"<answer>\boxed{uncle}</answer>", "uncle"),
        ("<answer>**uncle**</answer>", "uncle"),
        ("<answer>\n`uncle`\n</answer>", "uncle"),
        ("Final Answer: uncle", "uncle"),
        ("**Final Answer:** uncle", "uncle"),
        (r"\boxed{$\frac{3}{4}$}", r"$\frac{3}{4}$"),
        ("The answer is 17 apples.", "17"),
        ("The answer is 17, because 3+4=7", "17"),
        ("The answer is $17$.", "17"),
        ("The answer is x = −3.", "-3"),
        (r"The final answer is: $\boxed{5}$. I hope it is correct.", "5"),
        ("<answer>Final Answer: 5</answer>", "5"),
        (r"\boxed{−3}", "-3"),
        ("The answer is Paris.", "Paris"),
        ("answer is 1,234", "1,234"),
        ("#### 12", "12"),
        ("#### uncle\n", "uncle"),
        ("The answer is 12.\n#### How it works\nWe add.", "12"),
        ("The answer is 12.\n#### A better way\nWe add.", "12"),
        ("The answer is 12.\n#### 1. Check\nWe add.", "12"),
        ("The answer is 12. The answer is probably not 13.", "12"),
        ("The answer is most likely 12", "12"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        ("The answer is -5", "-5"),
        ("Answer: 3/4", "3/4"),
        ("<think>5</think>\nSo it is 6", "6"),
        ("The answer is (3, 5).", "(3, 5)"),
        ("```\n<answer>7</answer>\n```", "7"),
        ("Answer: \n```\n1 2\n3 4\n```", "1 2\n3 4"),
        (r"\boxed{\text{a\_b}}", "a_b"),
        ("answer", "answer"),
        ("The answer is", "The answer is"),
        (r"$-\frac{1}{2}$", "2"),
        ("**Answer: -3*z**7 + z**2**", "-3*z**7 + z**2"),
        ("The answer is **-X**5/7**.", "-X**5/7"),
        ("The answer is **[1, 2]**.", "[1, 2]"),
        ("Answer:\n```\n" + "up\n" * 900 + "```", ("up\n" * 900).strip()),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_reasoning_without_an_answer_after_it_is_all_there_is():
    assert final_part("<think>4</think>\n") == "<think>4</think>\n"
    assert final_part("<think>4</think> 5 </think> 6") == " 6"


@pytest.mark.parametrize("gold", ["B", "(B)", "b", 1, r"\boxed{B}"])
def test_choice_golds_of_every_kind(gold):
    assert choice_reward([r"\boxed{B}", r"\boxed{A}"], solution=[gold] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("gold", ["yes", "Yes", "TRUE", True, 1])
def test_yes_no_golds_of_every_kind(gold):
    assert yes_no_reward([r"\boxed{Yes}", r"\boxed{No}"], solution=[gold] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("gold", ["Paris", None, "", "1", 27, True, 1.0])
def test_choice_golds_that_are_none_name_row_and_column(gold):
    with pytest.raises(ValueError, match="choice_reward: row 1 of column `solution` holds"):
        choice_reward(["", ""], solution=["A", gold])


@pytest.mark.parametrize("gold", ["maybe", None, 2, 0.5])
def test_yes_no_golds_that_are_none_name_row_and_column(gold):
    with pytest.raises(ValueError, match="yes_no_reward: row 1 of column `solution` holds"):
        yes_no_reward(["", ""], solution=["no", gold])


# What the readers look for, so that random texts reach every branch.
_PIECES = ["\\boxed{", "}", "{", "<answer>", "</answer>", "</think>", "The answer is ", "Answer: ", "#### ", "$", "\\(",
           "\\)", "**", "`", "```", "\\text{", "A", " or ", "yes", "no", "−3", "1e5", "1/0", "\n", "\\", "\\frac{1}{0}",
           "9" * 30, "٣", "²", "½", "\x00", "\ud800", ", ", "%"]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=5)), max_size=30).map("".join)


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_no_text_makes_a_reader_raise(text):
    extract_answer(text), extract_choice(text), extract_yes_no(text), math_answer(text)


@pytest.mark.thorough
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "piece", ["<answer>", "answer is ", "answer   ", "\\boxed{A} ", "A, ", "no wait ", "$ $", "**", "-1,", "(("]
)
@pytest.mark.parametrize("head", ["", "The answer is ", "\\boxed{"])
def test_a_million_characters_take_seconds(head, piece):
    text = head + piece * (10**6 // len(piece)) + "}"
    extract_answer(text), extract_choice(text), extract_yes_no(text), math_answer(text)
