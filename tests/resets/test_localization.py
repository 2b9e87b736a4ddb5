"""What a localizer is shown, how its answers are read, and what counts as an answer."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from credit_trl.resets.localization import (
    DEFAULT_TEMPLATE,
    FailedCompletion,
    call_localizer,
    check_localizer,
    check_template,
    format_localization_prompt,
    most_voted,
    parse_localization,
)

STEPS = ("Add: 4 + 5 = 9.\n\n", "Double: 2 * 9 = 19.\n\n", "The answer is \\boxed{19}.")
PLAIN = FailedCompletion("Add 4 and 5, then double.", STEPS, {"solution": "18"})


def chat(*messages: tuple[str, object]) -> FailedCompletion:
    return FailedCompletion([{"role": role, "content": content} for role, content in messages], STEPS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Step 2 is wrong: \\boxed{2}", 2),
        ("\\boxed{ 3\n}", 3),
        ("\\boxed {3}", 3),
        ("\\boxed{1}, no: \\boxed{2}.", 2),
        ("\\boxed{2} since \\boxed{2 * 9} is 18, not \\boxed{", 2),  # the last that is well-formed
        ("\\boxed{2}, or rather \\boxed{9}", None),  # its answer is out of range: not the one before
        ("\\boxed{0}", None),
        ("\\boxed{-1}", None),
        ("\\boxed{2.0}", None),
        ("\\boxed{\\text{2}}", 2),
        ("\\boxed{" + "9" * 5000 + "}", None),  # more digits than Python reads
        ("boxed{2}", None),
        ("step 2", None),
        ("", None),
    ],
)
def test_parse(text, expected):
    assert parse_localization(text, num_steps=3) == expected


NAMES_2 = (
    *(
        "2",
        " 2 ",
        "2.",
        "(2)",
        "[2]",
        "#2",
        "\\#2",
        "**2**",
        "$2$",
        "\\(2\\)",
        "{2}",
        "\\{2\\}",
        "2:",
        "2)",
        "No. 2",
        "2!",
        "02",
    ),
    *(
        "Step 2",
        "step 2",
        "STEP 2",
        "Step2",
        "step_2",
        "step\\_2",
        "Step-2",
        "Step~2",
        "Step: 2",
        "Step #2",
        "Step (2)",
    ),
    *(
        "\\text{Step } 2",
        "\\text{Step 2}",
        "\\text{Step } \\mathbf{2}",
        "\\textbf{2}",
        "\\mathbf{2}",
        "\\mathrm{Step\\ 2}",
    ),
    *(
        "\\boldsymbol{2}",
        "\\textbf{Step 2}",
        "\\underline{2}",
        "\\displaystyle 2",
        "\\large 2",
        "\\left(2\\right)",
        "\\boxed{2}",
    ),
    *(
        "h = 2",
        "h=2",
        "h: 2",
        "\\text{h} = 2",
        "\\text{first error} = 2",
        "\\text{error in } 2",
        "Step = 2",
        "h=\\text{2}",
        "h^* = 2",
        "h^{*}=2",
        "h^\\ast = 2",
    ),
    *(
        "2nd",
        "2^{nd}",
        "2^\\text{nd} step",
        "the 2nd step",
        "Step 2: 2 * 9 = 19",
        "step 2 of 3",
        "2 is wrong",
        "Step 2 (a sign)",
    ),
    *("Steps 2 and 3", "第2步", "Schritt 2", "étape 2", "2\\,", "\\ 2", "2\n", "step 2, step 2"),
)
WORDS = (
    *(
        "none",
        "None",
        "\\text{none}",
        "no error",
        "\\text{No error}",
        "all steps are correct",
        "I do not know",
        "unknown",
    ),
    *("cannot tell", "N/A", "n/a", "\\textbf{none}", "step", "无", "a step", "no mistake, I think"),
)
MATHEMATICS = (
    *(
        "2 * 9",
        "2*9",
        "9 + 1",
        "9 - 1",
        "18",
        "x = 5",
        "x=2",
        "k = 2",
        "a = 2",
        "2x",
        "x_2",
        "x^2",
        "2^3",
        "\\frac{1}{2}",
        "2/3",
    ),
    *(
        "1, 2",
        "(1, 2)",
        "2.5",
        "2.0",
        "1,000",
        "\\sqrt{2}",
        "2\\pi",
        "x > 2",
        "20\\%",
        "\\$2",
        "h",
        "x",
        "",
        " ",
        "?",
        "2 \\times 9",
    ),
)


@pytest.mark.parametrize("content", NAMES_2)
def test_a_number_names_a_step_with_or_without_words_around_it(content):
    box = f"\\boxed{{{content}}}"
    assert parse_localization(box, 3) == 2
    assert parse_localization(f"It claims \\boxed{{3}}. So {box}, that is all.", 3) == 2
    for later in MATHEMATICS:
        if later != "18":
            assert parse_localization(f"{box} since it is \\boxed{{{later}}}.", 3) == 2, later


@pytest.mark.parametrize("content", WORDS)
def test_words_alone_withdraw_what_came_before(content):
    assert parse_localization(f"They wrote \\boxed{{3}}; I cannot tell: \\boxed{{{content}}}", 3) is None
    assert parse_localization(f"\\boxed{{{content}}} at first, but \\boxed{{Step 2}}", 3) == 2


@pytest.mark.parametrize("content", MATHEMATICS)
def test_mathematics_alone_names_no_step(content):
    assert parse_localization(f"\\boxed{{{content}}}", 3) is None


@pytest.mark.parametrize("content", ["9", "Step 9", "h = 9", "0", "-1", "h = -1", "Step 0"])
def test_a_step_that_does_not_exist_is_an_answer_too(content):
    assert parse_localization(f"\\boxed{{2}}, or rather \\boxed{{{content}}}", 3) is None


def test_a_number_outside_of_a_box_names_nothing():
    assert parse_localization("Step 2 is wrong.", 3) is None
    assert parse_localization("Step 2 is wrong: \\boxed{2", 3) is None


def test_boxes_within_boxes_and_boxes_that_do_not_end():
    assert parse_localization("\\boxed{\\text{Step } \\boxed{2}}", 3) == 2
    assert parse_localization("\\boxed{2} and \\boxed{" + "{" * 5000, 3) == 2
    assert parse_localization("\\boxed{" * 2000 + "2}", 3) == 2


@given(st.text(alphabet="\\boxed{} 0123456789-\n", max_size=40), st.integers(0, 12))
def test_any_text_parses_to_a_step_or_to_none(text, num_steps):
    assert parse_localization(text, num_steps) in {None, *range(1, num_steps + 1)}


@given(st.text(max_size=30), st.integers(1, 30))
def test_a_final_answer_is_read_after_any_text(text, first_error):
    assert parse_localization(f"{text} \\boxed{{{first_error}}}", num_steps=30) == first_error


def test_a_plain_prompt_gives_a_plain_question():
    question = format_localization_prompt(PLAIN)
    assert isinstance(question, str)
    assert "Problem:\nAdd 4 and 5, then double.\n" in question
    assert (
        "Solution:\nStep 1: Add: 4 + 5 = 9.\n\nStep 2: Double: 2 * 9 = 19.\n\nStep 3: The answer is \\boxed{19}.\n"
    ) in question
    assert "final answer of the solution is wrong" in question and "in 3 numbered steps" in question
    assert "Judge the steps in order" in question  # before one is named
    assert question.endswith("1 to 3, on a last line of its own as \\boxed{h}.")
    assert parse_localization(question, num_steps=3) is None  # the question, echoed, is no answer: 19 is out of range


def test_a_plain_prompt_gives_a_message_where_the_model_chats():
    assert format_localization_prompt(PLAIN, chat=True) == [
        {"role": "user", "content": format_localization_prompt(PLAIN)}
    ]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([2], 2), ([3, 2, 2], 2), ([3, 2], 2), ([None, 3, None], 3), ([None], None), ([], None), ([4, 4, 1, 1, 9], 1)],
)
def test_votes(steps, expected):
    assert most_voted(steps) == expected


@given(st.lists(st.none() | st.integers(1, 5), max_size=9))
def test_no_step_has_more_votes_than_the_winner(steps):
    winner = most_voted(steps)
    named = [step for step in steps if step is not None]
    assert (winner is None) == (not named)
    assert all(steps.count(step) < steps.count(winner) or step >= winner for step in named if winner is not None)
    assert all(steps.count(step) <= steps.count(winner) for step in named)


def test_a_conversation_gives_one_user_message():
    failed = chat(("system", "Be brief."), ("user", "Add 4 and 5, then double."))
    assert format_localization_prompt(failed) == [{"role": "user", "content": format_localization_prompt(PLAIN)}]


def test_several_turns_keep_their_roles_and_parts_their_text():
    failed = chat(
        ("user", [{"type": "text", "text": "Hi."}, {"type": "image"}]), ("assistant", "Yes?"), ("user", "4+5")
    )
    assert failed.problem == "User: Hi.\n\nAssistant: Yes?\n\nUser: 4+5"


def test_keys_that_a_data_set_fills_up_with_none_are_no_text():
    """As `datasets` gives an image the text None and a call of a tool the content None."""
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Read it."}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "tool", "content": [{"type": "text", "text": "4"}]},
    ]
    failed = FailedCompletion(Dataset.from_dict({"prompt": [messages]})[0]["prompt"], STEPS)
    assert failed.problem == "User: Read it.\n\nAssistant: \n\nTool: 4"
    [asked] = format_localization_prompt(failed, "{problem}{steps}")
    assert [part["type"] for part in asked["content"]] == ["image", "text"]


def test_a_template_of_ones_own():
    """The completion as it was written, for a model that knows no other form; what is filled in is not filled again."""
    tricky = FailedCompletion("{steps} {0} {", STEPS)
    assert (
        format_localization_prompt(tricky, "{problem}|{completion}|{num_steps}|\\boxed{h}{}")
        == "{steps} {0} {|" + "".join(STEPS) + "|3|\\boxed{h}{}"
    )


@pytest.mark.parametrize("template", ["", "{problem}", "{steps} \\boxed{h}"])
def test_a_template_without_problem_or_solution_is_refused(template):
    for use in (check_template, lambda template: format_localization_prompt(PLAIN, template)):
        with pytest.raises(ValueError, match="template must have the fields"):
            use(template)
    assert check_template(DEFAULT_TEMPLATE) == DEFAULT_TEMPLATE


def test_localizers_are_self_random_or_callable():
    for localizer in ("self", "random", max):
        assert check_localizer(localizer) is localizer
    for localizer in ("oracle", None, ["self"]):
        with pytest.raises(ValueError, match="localizer must be 'self', 'random' or a callable"):
            check_localizer(localizer)


def test_a_callable_sees_the_completions_and_answers_in_order():
    seen = []

    def localizer(failed):
        seen.extend(failed)
        return [1 + next(h for h, step in enumerate(one.steps) if "19" in step) for one in failed]

    other = FailedCompletion("4+5", ("19",))
    assert call_localizer(localizer, [PLAIN, other]) == [2, 1]
    assert seen == [PLAIN, other]
    assert seen[0].completion == "Add: 4 + 5 = 9.\n\nDouble: 2 * 9 = 19.\n\nThe answer is \\boxed{19}."
    assert seen[0].columns == {"solution": "18"}


@pytest.mark.parametrize("answer", [None, 0, 4, -1, 2.0, "2", True, float("nan"), [2]])
def test_what_names_no_step_is_none(answer):
    assert call_localizer(lambda failed: [answer, 3], [PLAIN, PLAIN]) == [None, 3]


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, iter])
def test_integers_of_any_kind_are_integers(make):
    answers = call_localizer(lambda failed: make([1, 3]), [PLAIN, PLAIN])
    assert answers == [1, 3] and all(type(answer) is int for answer in answers)


@pytest.mark.parametrize("answers", [[], [1], (1, 2, 3), torch.tensor([1])])
def test_a_wrong_number_of_answers_is_refused(answers):
    with pytest.raises(ValueError, match=f"localizer returned {len(answers)} answers for 2 failed completions"):
        call_localizer(lambda failed: answers, [PLAIN, PLAIN])


@pytest.mark.parametrize("answers", [None, 2])
def test_what_is_no_list_is_refused(answers):
    with pytest.raises(ValueError, match=f"localizer must return a list of 2 integers, got {answers}"):
        call_localizer(lambda failed: answers, [PLAIN, PLAIN])


def test_nothing_to_localize_calls_nobody():
    assert call_localizer(max, []) == []
