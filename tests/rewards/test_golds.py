"""Golds: whatever a data set holds as its right answer, read by one rule."""

import math

import pytest

from credit_trl.data.golds import choice_gold, gold_error, math_gold, yes_no_gold
from credit_trl.data.latex import boxed_spans, math_spans, number_value, plain_signs, unwrap


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        # bare LaTeX and text, as MATH-like data sets have them
        (r"2\sqrt{5}", r"2\sqrt{5}"),
        ("(3,5)", "(3,5)"),
        ("0,1", "0,1"),
        (r"\frac{3}{4}", r"\frac{3}{4}"),
        (r"\left\{x, y\right.", r"\left\{x, y\right."),
        ("[0, 1)", "[0, 1)"),
        (r"\emptyset", r"\emptyset"),
        (r"5\text{ cm}", r"5\text{ cm}"),
        ("90%", "90%"),
        ("x = −3", "x = -3"),
        ("$1$, $-1$", "1, -1"),
        (r"\[x+1\]", "x+1"),
        ("sqrt(5)", "sqrt(5)"),
        ("x=3 or x=-2", "x=3 or x=-2"),
        ("$5 and $10 make $15 in all", "15"),
        ("cannot be determined", r"\text{cannot be determined}"),
        # words are text: as LaTeX, "even" would be the product of its letters
        ("even", r"\text{even}"),
        (r"\text{no solution}", r"\text{no solution}"),
        ("yes", r"\text{yes}"),
        ("xy", "xy"),
        # money, thousands, signs
        (r"\$18.90", "18.90"),
        ("$18.90", "18.90"),
        ("5€", "5"),
        (r"\$1,234.50", "1,234.50"),
        (r"11,\! 110,\! 001", "11,110,001"),
        ("1{,}234", "1,234"),
        # whole solutions
        ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72"),
        ("so \\boxed{1}, no: $\\boxed{\\frac{1}{2}}$ ok", r"\frac{1}{2}"),
        ("The price is $5 and the answer is $\\frac{3}{4}$.", r"\frac{3}{4}"),
        ("The answer is 42. I hope it is right.", "42"),
        ("So x is equal to 12 apples", "12"),
        ("Because $x>2$, we conclude here that $x=5$ holds.", "x=5"),
        ("Total: 42", "42"),
        # numbers of JSON
        (2e-05, "0.00002"),
        ("2e-05", "0.00002"),
        ("1E3", "1000"),
        (1e22, "10000000000000000000000"),
        (3.0, "3"),
        (7, "7"),
        (math.inf, r"\infty"),
        (True, r"\text{True}"),
        # lists
        (["18"], "18"),
        (["1", 2], "1, 2"),
        (r'["\\frac{1}{2}", "3"]', r"\frac{1}{2}, 3"),
        # nothing that an answer could be compared with
        *((value, None) for value in ["", " ", "???", None, "N/A", "nan", math.nan, "None", [], [None], {"a": 1}]),
        ("It depends on what the reader likes", None),
        ("1" * 10_001, None),
    ],
)
def test_math_gold(value, gold):
    assert math_gold(value) == gold


ARC = {"text": ["ice", "fog", "1"], "label": ["1", "2", "3"]}


@pytest.mark.parametrize(
    ("value", "choices", "letter"),
    [
        *(
            (value, None, "B")
            for value in [
                "B",
                "b",
                "(B)",
                "(b)",
                "B.",
                "B) Paris",
                r"\boxed{B}",
                r"\text{B}",
                1,
                "Option B",
                "Answer: (B)",
                "so B\n#### B",
                ["B"],
            ]
        ),
        *((value, ["Rome", "Paris"], "B") for value in ["Paris", " paris ", "B", 1]),
        ("1", ARC, "A"),  # its label, and not the choice whose text is "1"
        ("fog", ARC, "B"),
        ("A", {"text": ["B", "A"], "label": ["A", "B"]}, "A"),
        ("2", ["1", "2"], "B"),
        *((value, None, None) for value in ["", None, "Bob", "1", True, -1, 26, 1.0, "B is wrong"]),
        *((value, ["Rome", "Paris"], None) for value in ["C", 2, "London"]),
        ("same", ["same", "Same"], None),
    ],
)
def test_choice_gold(value, choices, letter):
    assert choice_gold(value, choices) == letter


@pytest.mark.parametrize(
    ("value", "word"),
    [
        *(
            (value, "yes")
            for value in [
                True,
                1,
                "Yes",
                "true",
                "YES.",
                r"\boxed{yes}",
                r"\text{True}",
                "1",
                "The answer is yes.",
                "'yes'",
                "Sure.\n#### yes",
            ]
        ),
        *((value, "no") for value in [False, 0, "No", "False", "no.", "**no**"]),
        *((value, None) for value in [2, 1.0, None, "", "maybe", "yes or no"]),
    ],
)
def test_yes_no_gold(value, word):
    assert yes_no_gold(value) == word


def test_gold_error_names_reward_column_and_row():
    error = gold_error("choice_reward", "solution", 3, "B" * 200, "letter")
    assert "choice_reward: row 3 of column `solution` holds 'BBB" in str(error)
    assert len(str(error)) < 150


def test_boxes_with_escaped_braces_and_boxes_in_boxes():
    text = r"\boxed{\left\{x, y\right.} and \boxed{a\boxed{b}} and \boxed {c} and \\boxed{d} and \boxed{e"
    assert [text[slice(*span)] for span in boxed_spans(text)] == [
        r"\left\{x, y\right.", r"a\boxed{b}", "b", "c", "d"]  # fmt: skip


def test_math_spans_pair_delimiters_of_one_kind():
    text = r"a $x$ then $$y$$, \(z\) and \[w\] for \$5 or \[ never"
    assert [content for _, _, content in math_spans(text)] == ["x", "y", "z", "w"]
    assert text[slice(*math_spans(text)[1][:2])] == "$$y$$"


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{\text{5}}", "5"),
        (r"**$\boxed{x}$**", "x"),
        ("```json\n[1]\n```", "[1]"),
        (r"\text{a\_b}", "a_b"),
        (r"\text{a} + \text{b}", r"\text{a} + \text{b}"),
        ("$a$ and $b$", "$a$ and $b$"),
        ("**a** and **b**", "**a** and **b**"),
        ("**-2*x**3 + (x)**2**", "-2*x**3 + (x)**2"),
    ],
)
def test_unwrap(text, inside):
    assert unwrap(text) == inside


def test_unwrap_keeps_formulas_where_told():
    assert unwrap(r"\boxed{$\frac{1}{2}$}", math=False) == r"$\frac{1}{2}$"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("x = −3", "x = -3"),
        ("x = –3", "x = -3"),
        ("pages 3–5", "pages 3–5"),
        ("8−3", "8-3"),
    ],
)
def test_plain_signs(text, plain):
    assert plain_signs(text) == plain


def test_number_value():
    assert number_value("1,234.5") * 2 == 2469
    assert number_value("2e-05") * 50_000 == 1
    assert number_value(r"-\frac{3}{4}") * 4 == number_value("-3")
    assert [number_value(text) for text in ["1/0", "", ".", "-", "0,1", "12,34", "x", "1 2", "9" * 500]] == [None] * 9


@pytest.mark.thorough
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 150_000, "$" * 10**6, "\\(" * 500_000, "\\text{" * 160_000 + "}" * 160_000, "**" * 500_000,
     "9" * 10**6, "a-b" * 300_000, "answer is " * 100_000, " " * 10**6],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_a_million_characters_are_read_in_linear_time(text):
    math_gold(text), choice_gold(text), yes_no_gold(text), unwrap(text), plain_signs(text)
