"""The reward `accuracy`: right and wrong answers, golds of every kind, bounds on time."""

import logging
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import rewards as trl_rewards

from credit_trl.rewards import equality, mathematics
from credit_trl.rewards.mathematics import accuracy_reward, compare_answers
from tests.rewards.test_statements import TEXTS

CASES = [
    (r"2\sqrt{5}", r"\boxed{2\sqrt{5}}", 1),
    (r"2\sqrt{5}", r"\boxed{2}", 0),
    ("(3,5)", r"\boxed{(3,5)}", 1),
    ("(3,5)", r"\boxed{(5,3)}", 0),
    ("0,1", r"\boxed{0,1}", 1),
    ("0,1", r"\boxed{0.1}", 0),
    (2e-05, r"\boxed{0.00002}", 1),
    (2e-05, r"\boxed{2}", 0),
    (2e-05, r"\boxed{2 \times 10^{-5}}", 1),
    (2e-05, r"\boxed{2e-5}", 1),
    (2e-07, r"\boxed{0}", 0),
    (2e-07, r"\boxed{3\times 10^{-7}}", 0),
    (2e-07, r"\boxed{2\times 10^{-7}}", 1),
    (r"\$18.90", r"\boxed{18.90}", 1),
    (r"\$18.90", r"\boxed{\$18.90}", 1),
    ("18.9", r"\boxed{18.91}", 0),
    ("???", r"\boxed{1}", None),
    ("", r"\boxed{1}", None),
    (None, r"\boxed{1}", None),
    ("N/A", r"\boxed{1}", None),
    ("nan", r"\boxed{1}", None),
    ("x\n#### 72", r"\boxed{72}", 1),
    (r"so \boxed{5}", r"\boxed{5}", 1),
    (r"\frac{3}{4}", r"\boxed{0.75}", 1),
    (r"\frac{3}{4}", r"\boxed{3/4}", 1),
    ("7", r"\boxed{7.0}", 1),
    ("5", r"The final answer is: $\boxed{5}$. I hope it is correct.", 1),
    ("5", "The final answer is $5$. I hope it is correct.", 1),
    ("5", "Final Answer: The final answer is $5$. I hope it is correct.", 1),
    ("5", "<think>maybe \\boxed{4}</think>\n\nSo \\boxed{5}", 1),
    ("4", "<think>maybe \\boxed{4}</think>\n\nSo \\boxed{5}", 0),
    ("5", "<answer>5</answer>", 1),
    ("5", r"<answer>\boxed{5}</answer>", 1),
    ("5", "<answer>**5**</answer>", 1),
    ("5", "<answer> The answer is $5$ </answer>", 1),
    ("5", "**Final Answer**\n\\[ \\boxed{5} \\]", 1),
    ("5", "The answer is:\n\\[\n5\n\\]", 1),
    ("5", "**Answer:** $5$", 1),
    ("5", "The answer is 5.", 1),
    ("5", "half", 0),
    ("5", "5", 0),
    ("5", r"\boxed{5 \text{ or } 6}", 0),
    ("5", r"\boxed{5, 6}", 0),
    ("5", r"\boxed{5} or \boxed{6}", 0),
    ("6", r"\boxed{5} or \boxed{6}", 0),
    ("5,6", r"\boxed{5} or \boxed{6}", 1),
    ("5,6", r"$\boxed{5}$ and $\boxed{6}$", 1),
    ("x=3", r"\boxed{3}", 1),
    ("3", r"\boxed{x = 3}", 1),
    ("even", r"\boxed{\text{even}}", 1),
    ("even", r"\boxed{even}", 1),
    ("even", r"\boxed{nevE}", 0),
    (r"\text{(B)}", r"\boxed{B}", 1),
    (r"\text{(B)}", r"\boxed{C}", 0),
    (r"12.5\%", r"\boxed{12.5}", 1),
    (r"12.5\%", r"\boxed{12.5\%}", 1),
    (r"12.5\%", r"\boxed{0.125}", 1),
    (r"12.5\%", r"\boxed{0.12}", 0),
    (r"0.\overline{3}", r"\boxed{1/3}", 1),
    (r"0.\overline{3}", r"\boxed{0.3}", 0),
    ("pi/2", r"\boxed{\frac{\pi}{2}}", 1),
    ("[0,1)", r"\boxed{[0,1)}", 1),
    ("[0,1)", r"\boxed{[0,1]}", 0),
    ("[0,1)", r"\boxed{(0,1)}", 0),
    (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
    (r"5\text{ cm}", r"\boxed{5\,\mathrm{cm}}", 1),
    ("1,234", r"\boxed{1234}", 1),
    ("1234", r"\boxed{1,\!234}", 1),
    ("10000", r"$\boxed{10{,}000}$", 1),
    ("-3", r"\boxed{−3}", 1),
    ("3", r"\boxed{−3}", 0),
    (r"\left\{x, y\right.", r"\boxed{\left\{x, y\right.}", 1),
    (True, r"\boxed{True}", 1),
    (False, r"\boxed{True}", 0),
    (r"90^\circ", r"\boxed{90}", 1),
    ("90", r"\boxed{90^{\circ}}", 1),
    ("x^2-1", r"\boxed{(x-1)(x+1)}", 1),
    ("3", "\\boxed{3}\n\nWait, no. \\boxed{4}", 0),
    ("4", "\\boxed{3}\n\nWait, no. \\boxed{4}", 1),
    (r"\frac{1}{2}", r"\boxed{\dfrac12}", 1),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{bmatrix}1\\2\end{bmatrix}}", 1),
    (r"3\pm\sqrt{2}", r"\boxed{3+\sqrt{2}, 3-\sqrt{2}}", 1),
    ("5 square units", r"\boxed{5}", 1),
    ("5 apples", r"\boxed{5}", 1),
    ("5", r"\boxed{5 \text{ apples}}", 1),
    ("5", "The answer is $4+1=5$.", 1),
    ("1.5", r"\boxed{1\frac{1}{2}}", 1),
    ("16", r"\boxed{2^4}", 1),
    ("no solution", r"\boxed{\text{No solution}}", 1),
    (r"\text{no solution}", r"\boxed{no solutions}", 0),
    ("3:30", r"\boxed{3:30}", 1),
    ("3", r"\boxed{\text{three}}", 0),
    (["1", "2"], r"\boxed{2,1}", 1),
    ("5", r"\(\boxed{5}\)", 1),
    ("5", "$$\n\\boxed{5}\n$$", 1),
    ("5", r"$\boxed{5}", 1),
    ("5", "#### 5", 1),
    ("5", "so the answer to the problem is clearly $5$", 1),
    ("(1,2)", r"\boxed{(1, 2)}", 1),
    ("(1,2)", r"\boxed{\left(1,2\right)}", 1),
    (r"x \in (-\infty, 3)", r"\boxed{(-\infty,3)}", 1),
    (r"\sqrt{2}", r"\boxed{1.41421356}", 1),
    ("5", r"\fbox{5}", 1),
    # bold type that begins before the head of the sentence or with it, and money that is no formula
    ("34", "**Answer: 34**", 1),
    ("34", "Therefore, the answer is: **34**", 1),
    ("34", "The answer is **34**, since **x** is 4.", 1),
    ("34", "The answer is therefore 34.", 1),
    ("34", "**Final Answer:** The sum is 34", 1),
    ("34", "Answer: the sum is not 34", 0),
    ("34", "The answer is 34? No, 35.", 0),
    ("34", "The answer is 34. Let me check: 30 + 4 = 34, so the answer is correct.", 1),
    ("34", "Answer: 34 (since 2 * 17 = 34)", 1),
    ("34", "Answer: 34; 35", 0),
    ("34", "####34", 1),
    ("34", "The answer is exactly 34, I think.", 1),
    ("34", "The answer is 34, not 35.", 1),
    ("1000", "The answer is $1,000 since $500 + $500 = $1000.", 1),
    ("18.90", "The answer is **$18.90**.", 1),
    # symbols of Unicode, looks, boxes without braces
    (r"90^\circ", r"\boxed{90°}", 1),
    (r"\sqrt{13}", r"\boxed{√13}", 1),
    ("x^{12}", r"\boxed{x¹²}", 1),
    ("[3, \\infty)", r"\boxed{[3, ∞)}", 1),
    (r"\{1,2\}", r"\boxed{\big\lbrace 1,2 \big\rbrace}", 1),
    ("6-5i", r"\boxed{6 - 5\mathrm{i}}", 1),
    (r"\log 2", r"\boxed{log 2}", 1),
    ("7", r"\boxed{\approx 7}", 1),
    (r"so $\boxed 7$", r"\boxed{7}", 1),
    ("1000000", r"\boxed{1 000 000}", 1),
    # a factorial is no exclamation
    ("7", r"\boxed{7!}", 0),
    ("7!", r"\boxed{5040}", 1),
    ("7!", r"\boxed{7}", 0),
    # numbers with words
    ("18.90 dollars", r"\boxed{18.90}", 1),
    ("7", r"\boxed{7 people}", 1),
    ("7", r"\boxed{7 (seven)}", 1),
    ("7", r"\boxed{7 or more}", 0),
    ("7", r"\boxed{7 halves}", 0),
    ("7", r"\boxed{7 x}", 0),
    ("20 m/s", r"\boxed{20}", 1),
    ("3 million", r"\boxed{3,000,000}", 1),
    ("3 million", r"\boxed{3}", 0),
    (r"1.36 \text{ trillion}", r"\boxed{1.36\text{ trillion}}", 1),
    ("September 2", r"\boxed{\text{September } 2}", 1),
    ("September 2", r"\boxed{2}", 1),
    ("September 2", r"\boxed{October 2}", 0),
    ("None of the above", r"\boxed{\text{None of the above}}", 1),
    ("None of the above", r"\boxed{\text{All of the above}}", 0),
    # choices: the letter, the text or both
    (r"\textbf{(B)}\ 42", r"\boxed{42}", 1),
    (r"\textbf{(B)}\ 42", r"\boxed{B}", 1),
    (r"\textbf{(B)}\ 42", r"\boxed{(B) 42}", 1),
    (r"\textbf{(B)}\ 42", r"\boxed{(A) 42}", 0),
    (r"\textbf{(B)}\ 42", r"\boxed{(A) 42, (B) 42}", 0),
    ("B", r"\boxed{\textbf{(B) }5}", 1),
    ("B", r"\boxed{B. 5}", 1),
    ("A", r"\boxed{A. 3, B. 5}", 0),
    ("A", r"\boxed{(A) + 1}", 0),
    # fractions are exact, also where their first six decimals are the same; a space between digits means something
    (r"\frac{2023}{2024}", r"\boxed{\frac{2022}{2023}}", 0),
    ("2023/2024", r"\boxed{0.999506}", 1),
    ("11/2", r"\boxed{1 1/2}", 0),
    ("1 1/2", r"\boxed{1.5}", 1),
    ("123", r"\boxed{1 2 3}", 0),
    # small numbers that are no decimals, and powers of ten
    (r"\frac{1}{2^{99}}", r"\boxed{\frac{1}{2^{98}}}", 0),
    (r"\frac{1}{2^{99}}", r"\boxed{2^{-99}}", 1),
    (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\boxed{\frac{1}{3 \cdot 2^{2006}}}", 0),
    (r"1.6 \times 10^{-19}", r"\boxed{1.7 \times 10^{-19}}", 0),
    (r"1.6 \times 10^{-19}", r"\boxed{1.6e-19}", 1),
    ("6.02e23", r"\boxed{6.02 \times 10^{23}}", 1),
    ("6.02e23", r"\boxed{6.02 \cdot 10^{22}}", 0),
    # equations without an unknown
    ("f(2023) = 2024", r"\boxed{f(2023) = 2023}", 0),
    ("f(2023) = 2024", r"\boxed{f(2023) = 2024}", 1),
    ("f(2023) = 2024", r"\boxed{2024}", 1),
    ("f(0)=1, f(1)=2", r"\boxed{f(0)=2, f(1)=3}", 0),
    # an approximation beside the answer
    ("12", r"\boxed{x \approx 12}", 1),
    (r"\frac{22}{7}", r"\boxed{\frac{22}{7} ≈ 3.14}", 1),
    (r"2\sqrt{3}", r"\boxed{2\sqrt{3} \approx 3.46}", 1),
    ("3", r"\boxed{\frac{22}{7} \approx 3.14}", 0),
    # units as scanned problems and Chinese ones have them; several of them; the half of the day
    (r"60 \text { km/h }", r"\boxed{60}", 1),
    ("20", r"\boxed{20~\text{cm}}", 1),
    (r"60^{\circ} \text { or } 120^{\circ}", r"\boxed{60^\circ, 120^\circ}", 1),
    ("5元", r"\boxed{5}", 1),
    ("5", r"\boxed{5厘米}", 1),
    ("5万", r"\boxed{5}", 0),
    (r"5 \text{ hours } 15 \text{ minutes}", r"\boxed{5 \text{ hours } 20 \text{ minutes}}", 0),
    (r"5 \text{ hours } 15 \text{ minutes}", r"\boxed{5 \text{ hours and } 15 \text{ minutes}}", 1),
    ("5", r"\boxed{5 \text{ hours } 15 \text{ minutes}}", 0),
    ("5", r"\boxed{5 \text{ hours } 5 \text{ minutes}}", 0),
    (r"1 \text{ hour } 30 \text{ minutes}", r"\boxed{30 \text{ hours } 1 \text{ minute}}", 0),
    (r"1 \text{ hour } 30 \text{ minutes}", r"\boxed{1 \text{ minute } 30 \text{ seconds}}", 0),
    (r"1 \text{ or } 2", r"\boxed{2, 1}", 1),
    # chains of equations, and an equation the other way round
    ("5", r"\boxed{f(2)=1+4=5}", 1),
    ("12", r"\boxed{3 \cdot 4 = 2 \cdot 6 = 12}", 1),
    ("9", r"\boxed{9 = f(3)}", 1),
    # a thin space, between the parts of a mixed number and between thousands
    ("11/2", r"\boxed{1\, 1/2}", 0),
    ("1000", r"\boxed{1\,000}", 1),
    (r"7:30 \text{ p.m.}", r"\boxed{7:30 \text{ a.m.}}", 0),
    (r"7:30 \text{ p.m.}", r"\boxed{7:30\text{ PM}}", 1),
    # a heading below the answer is no answer
    ("72", "The answer is 72.\n\n#### Explanation\nWe add.", 1),
    # boxes of a gold that are given together are one answer of several
    (r"We get $\boxed{2}$ and $\boxed{5}$.", r"\boxed{2, 5}", 1),
    (r"We get $\boxed{2}$ and $\boxed{5}$.", r"\boxed{5}", 0),
]


def test_right_and_wrong_answers():
    golds, completions, _ = zip(*CASES, strict=True)
    given = accuracy_reward(list(completions), solution=list(golds))
    wrong = [(case, reward) for case, reward in zip(CASES, given, strict=True) if reward != case[2]]
    assert not wrong


def test_agrees_with_trl_where_trl_is_right():
    golds, completions, rewards = zip(*CASES, strict=True)
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    trl = trl_rewards.accuracy_reward(chats, [str(gold) for gold in golds])
    ours = accuracy_reward(chats, solution=list(golds))
    assert sum(reward == right for reward, right in zip(trl, rewards, strict=True)) > 40
    assert all(own == theirs for own, theirs, right in zip(ours, trl, rewards, strict=True) if theirs == right)


def test_logs_the_columns_of_trl_and_one_vote_for_one_value():
    logged = {}
    completions = [r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{0.5\text{ cm}}", "none", r"\boxed{1}"]
    accuracy_reward(completions, solution=[r"\frac{1}{2}"] * 4 + ["???"], log_extra=logged.__setitem__)
    assert list(logged) == ["solution", "gold_parsed", "answer_parsed"]
    assert {text.rpartition(", '")[0] for text in logged["answer_parsed"][:3]} == {"[1/2"}
    assert logged["answer_parsed"][3:] == ["[unparseable]", "[skipped]"]
    assert logged["gold_parsed"][4] == "[unparseable]"


def test_a_length_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        accuracy_reward(["1"], solution=["1", "2"])


HOSTILE = [
    "9^{9^{9^{9}}}", "(9!)!!",
    r"\binom{10^{9}}{5\cdot 10^{8}}", r"\sum_{n=1}^{10^{11}} n^{n}", r"\prod_{n=1}^{10^{12}} n",
    "(" * 3000 + "1" + ")" * 3000, r"\sqrt{" * 500 + "2" + "}" * 500, "(x+y+z+w)^{1900}", "9" * 10**6, "x+" * 10**6,
    r"\int \sin(\cos(x^{9})) e^{x^2} dx", "{" * 10**6,
    r"\begin{pmatrix}" + "&".join(["x"] * 400) + r"\end{pmatrix}^{9}",
]  # fmt: skip


@pytest.mark.timeout(300)
def test_hostile_answers_cost_seconds_and_spare_the_others(caplog):
    completions = [rf"\boxed{{{text}}}" for text in HOSTILE] + [rf"\boxed{{{number}\pi}}" for number in range(60)]
    golds = ["42 + x^2 + y^2"] * len(HOSTILE) + [rf"{number}\pi" for number in range(60)]
    accuracy_reward([r"\boxed{x}"], solution=["x+1"])  # starts a process
    start = time.monotonic()
    with caplog.at_level(logging.INFO, logger="credit_trl"):
        rewards = accuracy_reward(completions, solution=golds)
    assert rewards == [0.0] * len(HOSTILE) + [1.0] * 60
    assert time.monotonic() - start < 60  # seconds on a free machine, where it would be hours without the bounds
    assert "could not be compared in time" in caplog.text


@pytest.mark.timeout(120)
def test_a_hostile_gold_is_equal_to_its_own_text():
    assert accuracy_reward([r"\boxed{9^{9^{9^9}}}", r"\boxed{9^{9^{9^8}}}"], solution=["9^{9^{9^9}}"] * 2) == [1.0, 0.0]


@pytest.mark.thorough
@pytest.mark.timeout(120)
def test_threads_are_bounded_and_get_their_own_results():
    results = {}

    def score(name, number):
        texts = [rf"\boxed{{{number}\pi}}", r"\boxed{\int \sin(\cos(x^{9})) e^{x^2} dx}"]
        results[name] = accuracy_reward(texts, solution=[r"3\pi"] * 2)

    threads = [threading.Thread(target=score, args=(name, number)) for name, number in [("a", 3), ("b", 4), ("c", 3)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {"a": [1.0, 0.0], "b": [0.0, 0.0], "c": [1.0, 0.0]}


def test_equal_pairs_are_compared_once(monkeypatch):
    seen = []
    monkeypatch.setattr(mathematics, "compare", lambda pairs: seen.extend(pairs) or [(True, "", "")] * len(pairs))
    accuracy_reward([r"\boxed{2\pi}"] * 8 + [r"\boxed{7}"], solution=[r"\pi + \pi"] * 8 + ["7"])
    assert seen == [(r"\pi + \pi", r"2\pi")]  # numbers are compared without a process


def test_numbers_in_process_and_out_of_it_agree():
    pairs = [(gold, text) for gold in ("0.5", "1/3", "0.0000002", "1,234", "2") for text in
             ("0.5", "0.333333", "0.33", "0", "0.0000003", "1234", "2.0000001", "2.00001", "-2")]  # fmt: skip
    told = compare_answers(pairs)
    for gold, text in pairs:
        assert told[gold, text][0] == equality.equal(gold, text), (gold, text)


@given(st.lists(TEXTS, min_size=1, max_size=8), TEXTS)
@settings(max_examples=25, deadline=None)
def test_no_text_makes_the_reward_raise(texts, gold):
    for golds in (["3"] * len(texts), [r"\frac{1}{2}x"] * len(texts), [gold] * len(texts)):
        assert all(reward in (0.0, 1.0, None) for reward in accuracy_reward(texts, solution=golds))
