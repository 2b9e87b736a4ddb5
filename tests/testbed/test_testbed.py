"""The testbed's arithmetic and the truth that it knows of every step."""

import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from credit_trl.evaluation.run import pass_rate
from credit_trl.resets.localization import FailedCompletion, format_localization_prompt, parse_localization
from credit_trl.testbed import (
    BASE_MODEL,
    LOCALIZATION_TEMPLATE,
    Problem,
    answer_reward,
    first_error,
    make_dataset,
    step_truths,
)
from credit_trl.testbed.arithmetic import MODULUS, apply_operation
from credit_trl.testbed.facts import blind_facts, looks_wrong, sample_solution, shaky_facts
from scripts.pretrain_testbed import EOS, build_tokenizer, pretrain, sample_localizations, sample_solutions

# 5 + 12 = 17 = 0; 0 * 3 = 0; 0 - 8 = -8 = 9 (modulo 17)
PROBLEM = Problem(5, (("+", 12), ("*", 3), ("-", 8)))
SOLUTION = "5+12=0\n\n0*3=0\n\n0-8=9\n\n#9"


def test_a_problem_and_its_solution_by_hand():
    assert PROBLEM.prompt == "5+12*3-8:"
    assert PROBLEM.answer == 9
    assert PROBLEM.solution() == SOLUTION
    assert Problem.parse("5+12*3-8:") == PROBLEM


@given(st.integers(0, 2**32), st.integers(1, 16))
def test_exact_solutions_are_right_in_every_step_and_parse_back(seed, num_steps):
    problem = Problem.sample(random.Random(seed), num_steps)
    assert Problem.parse(problem.prompt) == problem
    assert step_truths(problem, problem.solution()) == [True] * (num_steps + 1)
    assert first_error(problem, problem.solution()) is None
    assert answer_reward([problem.solution()], [problem.answer]) == [1.0]


@given(st.integers(0, 2**32), st.integers(1, 16), st.data())
def test_one_wrong_step_makes_the_answer_wrong_and_is_found(seed, num_steps, data):
    """Every operation is a bijection, so an error that is carried on exactly cannot vanish."""
    problem = Problem.sample(random.Random(seed), num_steps)
    wrong = data.draw(st.integers(0, num_steps - 1))
    value, results = problem.start, []
    for index, (operator, operand) in enumerate(problem.operations):
        value = apply_operation(value, operator, operand)
        if index == wrong:
            value = (value + data.draw(st.integers(1, MODULUS - 1))) % MODULUS
        results.append(value)
    completion = problem.solution(results)
    assert answer_reward([completion], [problem.answer]) == [0.0]
    assert first_error(problem, completion) == wrong + 1
    assert step_truths(problem, completion) == [index != wrong for index in range(num_steps + 1)]


@pytest.mark.parametrize(
    ("completion", "truths", "error"),
    [
        ("5+12=1\n\n1*3=3\n\n3-8=12\n\n#12", [False, True, True, True], 1),  # a slip in a fact
        ("5+12=0\n\n0*4=0\n\n0-8=9\n\n#9", [True, False, True, True], 2),  # not the problem's operation
        ("5+12=0\n\n1*3=3\n\n3-8=12\n\n#12", [True, False, True, True], 2),  # does not take up the result
        ("5+12=0\n\n0*3=0\n\n0-8=9\n\n#8", [True, True, True, False], 4),  # does not repeat it
        ("5+12=0\n\n0*3=0", [True, True], 3),  # cut off: the missing step is the first wrong one
        ("5+12=0\n\n0*3=0\n\n0-8=9", [True, True, True], 4),  # no answer line
        ("nonsense", [False], 1),
        ("", [False], 1),
        (SOLUTION + "\n\n#9", [True, True, True, True, False], 5),  # goes on after the answer
    ],
)
def test_step_truths_by_hand(completion, truths, error):
    assert step_truths(PROBLEM, completion) == truths
    assert first_error(PROBLEM, completion) == error


def test_the_reward_wants_the_answer_line_itself():
    completions = [SOLUTION, "#9", "9", "0-8=9", SOLUTION + " ", "#19"]
    assert answer_reward(completions, [9] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_the_tokenizer_gives_back_every_text():
    tokenizer = build_tokenizer()
    text = PROBLEM.prompt + SOLUTION
    ids = tokenizer(text + EOS)["input_ids"]
    assert len(ids) == 8 + 3 * 6 + 2 + 1  # prompt; steps with their delimiter; answer; end
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_labels_cover_the_completion_and_only_it():
    tokenizer = build_tokenizer()
    input_ids, labels = sample_solutions(tokenizer, {}, random.Random(0))
    for row, row_labels in zip(input_ids, labels, strict=True):
        prompt, _, completion = tokenizer.decode(row).partition(":")
        assert tokenizer.decode(row_labels[row_labels != -100]) == completion
        assert Problem.parse(prompt + ":").solution() + EOS == completion


# 5 + 12 came out as 1 and 1 * 3 as 4: two errors, of which a blind spot hides the first.
TWO_ERRORS = "5+12=1\n\n1*3=4\n\n4-8=13\n\n#13"


@pytest.mark.parametrize(
    ("blind", "seen"),
    [
        (set(), [True, True, False]),
        ({(5, "+", 12)}, [False, True, False]),
        ({(0, "*", 3)}, [True, True, False]),  # the fact of the exact solution, not the one that was used
        ({(5, "+", 12), (1, "*", 3), (4, "-", 8)}, [False, False, False]),
    ],
)
def test_wrong_steps_look_wrong_except_in_the_blind_spots(blind, seen):
    assert looks_wrong(PROBLEM, TWO_ERRORS, blind) == seen


def test_localizations_are_taught_as_srpo_asks_and_with_the_verdicts_in_their_places():
    tokenizer, shaky = build_tokenizer(), shaky_facts(seed=0)
    blind = blind_facts(shaky, seed=0)
    input_ids, labels = sample_localizations(tokenizer, shaky, blind, random.Random(3))
    hidden = 0
    for row, row_labels in zip(input_ids, labels, strict=True):
        question, _, answer = tokenizer.decode(row).partition("?")
        problem = Problem.parse(question.partition("Step ")[0])
        steps = re.findall(r"Step \d+: (.*?)(?:\n\n|$)", question)
        assert len(steps) == len(problem.operations) + 1
        assert question + "?" == format_localization_prompt(
            FailedCompletion(problem.prompt, tuple(steps)), LOCALIZATION_TEMPLATE
        )
        solution = "\n\n".join(steps)
        seen = looks_wrong(problem, solution, blind)
        named = parse_localization(answer.removesuffix(EOS), len(seen))
        assert answer == f"\\boxed{{{named}}}{EOS}"
        assert first_error(problem, solution) is not None
        assert named == seen.index(True) + 1 if True in seen else named in range(1, len(seen) + 1)
        hidden += named != first_error(problem, solution)
        verdicts = tokenizer.convert_ids_to_tokens(row_labels[row_labels != -100].tolist())
        assert verdicts == [str(h) if wrong else "\n\n" for h, wrong in enumerate(seen, start=1)] + [
            "\\boxed{",
            str(named),
            "}",
            EOS,
        ]
        # A verdict is given where the step's result has just been read.
        before = tokenizer.convert_ids_to_tokens(row[:-1][row_labels[1:] != -100].tolist())
        assert before[: len(seen)] == [step.partition("=")[2] for step in steps[:-1]]
    assert hidden  # some of the first errors are overlooked


def test_shaky_facts_slip_as_often_as_they_are_said_to():
    shaky = shaky_facts(seed=0)
    assert len(shaky) / 850 == pytest.approx(0.3, abs=0.05)
    assert all(wrong != apply_operation(*fact) for fact, wrong in shaky.items())
    (fact, wrong), rng = next(iter(shaky.items())), random.Random(0)
    problem = Problem(fact[0], (fact[1:],))
    slips = sum(sample_solution(problem, shaky, rng).endswith(f"#{wrong}") for _ in range(2000))
    assert slips / 2000 == pytest.approx(0.55, abs=0.04)


def test_data_sets_are_reproducible_and_keep_their_lengths():
    first, again, other = make_dataset(50, seed=1), make_dataset(50, seed=1), make_dataset(50, seed=2)
    assert first["prompt"] == again["prompt"] != other["prompt"]
    lengths = {len(Problem.parse(prompt).operations) for prompt in first["prompt"]}
    assert lengths == {4, 5, 6}
    assert [Problem.parse(prompt).answer for prompt in first["prompt"]] == list(first["answer"])


@pytest.mark.parametrize(("min_steps", "max_steps"), [(0, 3), (5, 4), (1, 17)])
def test_step_counts_outside_the_base_models_are_refused(min_steps, max_steps):
    with pytest.raises(ValueError, match="need 1 <= min_steps <= max_steps <= 16"):
        make_dataset(1, min_steps=min_steps, max_steps=max_steps)


def test_a_text_that_is_no_problem_is_refused():
    with pytest.raises(ValueError, match="not a testbed problem: '5:'"):
        Problem.parse("5:")


def test_the_base_model_is_small_and_fails_where_it_was_taught_to():
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    assert model.num_parameters() < 1_000_000
    assert sum(file.stat().st_size for file in BASE_MODEL.iterdir()) < 2_000_000
    rate = pass_rate(model, tokenizer, make_dataset(128, seed=7), answer_reward, max_completion_length=48)
    assert 0.3 < rate < 0.5
    # It knows the procedure: what goes wrong are the facts that were made shaky, and nothing else.
    shaky, wrong = shaky_facts(seed=0), []
    problems = [Problem.parse(prompt) for prompt in make_dataset(128, seed=8)["prompt"]]

    def collect(completions, prompts, **kwargs):
        for problem, completion in zip(map(Problem.parse, prompts), completions, strict=True):
            truths = step_truths(problem, completion)
            value = problem.start
            for (operator, operand), true, line in zip(
                problem.operations, truths, completion.split("\n\n"), strict=False
            ):
                if not true:
                    wrong.append((value, operator, operand) in shaky)
                if re.fullmatch(r"\d+[-+*]\d+=\d+", line) is None:  # about one completion in 250
                    break
                value = int(line.rpartition("=")[2])
        return [0.0] * len(completions)

    data = make_dataset(128, seed=8)
    pass_rate(model, tokenizer, data, collect, num_samples=1, max_completion_length=48)
    assert len(wrong) > 0.1 * sum(len(problem.operations) for problem in problems)
    assert sum(wrong) / len(wrong) > 0.9


def test_the_base_model_names_its_first_errors_better_than_chance_and_worse_than_an_oracle():
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    failed, truths = [], []

    def collect(completions, prompts, answer, **kwargs):
        rewards = answer_reward(completions, answer)
        for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
            if reward == 0:
                failed.append(FailedCompletion(prompt, tuple(completion.split("\n\n"))))
                truths.append(first_error(Problem.parse(prompt), completion))
        return rewards

    torch.manual_seed(0)
    pass_rate(model, tokenizer, make_dataset(256, seed=9), collect, num_samples=2, max_completion_length=48)
    prompts = [format_localization_prompt(one, LOCALIZATION_TEMPLATE) for one in failed]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**inputs, do_sample=True, temperature=0.3, max_new_tokens=4)
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    named = [parse_localization(text, len(one.steps)) for text, one in zip(answers, failed, strict=True)]
    assert sum(step is not None for step in named) > 0.99 * len(failed)
    hit_rate = sum(step == truth for step, truth in zip(named, truths, strict=True)) / len(failed)
    chance = sum(1 / len(one.steps) for one in failed) / len(failed)
    assert 0.15 < chance < 0.2
    assert 2 * chance < hit_rate < 0.95


@pytest.mark.thorough
def test_pretraining_saves_a_model_that_loads_and_has_learned(tmp_path):
    first = pretrain(tmp_path / "one", num_steps=1)
    last = pretrain(tmp_path / "some", num_steps=12)
    assert last < first
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "some")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "some")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
