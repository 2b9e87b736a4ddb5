"""The phases of a rollout on a scripted engine, and the drawing of seeds: no model, no trainer."""

import inspect
from collections import Counter, defaultdict

import pytest
import torch

from credit_trl import SRPOConfig
from credit_trl.generation.samples import Sample
from credit_trl.resets import checks, interface, records, rollout, seeds
from credit_trl.resets.interface import Scores
from credit_trl.resets.metrics import reset_metrics
from credit_trl.resets.records import CompletionRecord, Localized, SeedRecord
from credit_trl.resets.reset_step import Reset
from credit_trl.resets.rollout import Rollout
from credit_trl.resets.seeds import draw_seeds
from credit_trl.resets.steps import Step

END = 0


class Engine:
    """A token is a character; `script` has the completions of a text in order, each with its end."""

    end_ids = frozenset({END})
    has_chat_template = False

    def __init__(self, script):
        self.script, self.asked, self.counts = script, [], Counter()

    def token_ids(self, prompts):
        return [list(map(ord, prompt)) for prompt in prompts]

    def complete(self, asked, prompt_ids, max_tokens, temperature=None):
        prompts = [self.exact_text(ids) for ids in prompt_ids]
        self.asked.append((prompts, max_tokens, temperature))
        samples = []
        for prompt in prompts:
            answers = self.script[prompt] if prompt in self.script else self.script["?"]
            ids = [*map(ord, answers[self.counts[prompt]]), END][:max_tokens]
            self.counts[prompt] += 1
            samples.append(Sample(ids, [-float(len(self.asked))] * len(ids)))
        return samples

    def exact_text(self, ids):
        return "".join(map(chr, ids)).replace(chr(END), "")

    plain_text = exact_text


class Scorer:
    """1 where a completion ends in "+", 0 in "-", not scored in "?"; logs its calls, a column and a metric."""

    def __init__(self, engine):
        self.engine, self.calls = engine, []

    def __call__(self, inputs, prompt_ids, ids):
        texts = [self.engine.exact_text(tokens) for tokens in ids]
        self.calls.append([(row["completion_role"], text) for row, text in zip(inputs, texts, strict=True)])
        values = [{"+": 1.0, "-": 0.0}.get(text[-1:], torch.nan) for text in texts]
        rewards = torch.tensor([[value, 2.0] for value in values])
        return Scores(rewards, {"length": list(map(len, ids))}, {"share": [sum(values) / len(values)], "rows": [1, 3]})


def roll(script, prompts, localizer="random", engine=Engine, **options):
    settings = dict(num_generations=4, max_completion_length=9, step_delimiter="|", seed=3)
    args = SRPOConfig("unused", use_cpu=True, bf16=False, report_to="none", **settings | options)
    engine = engine(script)
    scorer = Scorer(engine)
    inputs = [{"prompt": prompt, "answer": [number]} for number, prompt in enumerate(prompts) for _ in range(4)]
    made = Rollout(engine, scorer, args, 4, 9, inputs, localizer, "|")
    made.run([row["prompt"] for row in inputs])
    return made, engine, scorer


SCRIPT = {"p": ["a|b|c+", "a|x|d-"], "pa|": ["y+", "z-"], "q": ["e+", "f+", "g-", "h?"]}


def second(failed):
    return [2 for _ in failed]


def test_every_phase_asks_for_its_rows_and_keeps_what_came():
    made, engine, scorer = roll(SCRIPT, ["p", "q"], second)
    assert engine.asked == [(["p", "p", "q", "q"], 9, None), (["pa|", "pa|", "q", "q"], 9, None)]
    assert scorer.calls == [
        [("base", "a|b|c+"), ("base", "a|x|d-"), ("base", "e+"), ("base", "f+")],
        [("reset", "a|y+"), ("reset", "a|z-"), ("fresh", "g-"), ("fresh", "h?")],
    ]
    seed = SeedRecord(("a|", "x|", "d-"), 2, Reset(2, fallback=False))
    expected = [
        (0, 0, "base", "a|b|c+", 0, 1.0, True, None),
        (0, 0, "base", "a|x|d-", 0, 0.0, False, None),
        (0, 1, "reset", "a|y+", 2, 1.0, True, seed),
        (0, 1, "reset", "a|z-", 2, 0.0, False, seed),
        (1, 4, "base", "e+", 0, 1.0, True, None),
        (1, 4, "base", "f+", 0, 1.0, True, None),
        (1, 4, "fresh", "g-", 0, 0.0, False, None),
    ]
    found = [
        (each.prompt, each.group, each.role, engine.exact_text(each.ids), each.prefix_length, *each[6:9])
        for each in made.records
    ]
    assert found[:7] == expected and found[7][:5] == (1, 4, "fresh", "h?", 0)
    assert found[7][6] is None and found[7][5] != found[7][5]  # not scored, and so neither right nor wrong
    assert [engine.exact_text(each.prompt_ids) for each in made.records] == ["p"] * 4 + ["q"] * 4
    assert made.records[2].loss_mask == [0, 0, 1, 1, 1]  # "a|", then "y+" and its end
    assert made.rewards[:, 0].nan_to_num(9).tolist() == [1, 0, 1, 0, 1, 1, 0, 9] and (made.rewards[:, 1] == 2).all()
    assert made.columns["completion_role"] == ["base", "base", "reset", "reset", "base", "base", "fresh", "fresh"]
    assert made.columns["reset_step"] == [None, None, 2, 2, None, None, None, None]
    assert made.columns["length"] == [7, 7, 5, 5, 3, 3, 3, 3]


def test_log_probabilities_of_a_prefix_are_the_seeds():
    made, *_ = roll(SCRIPT, ["p", "q"], second)
    assert made.samples[2].logprobs == [-1.0, -1.0, -2.0, -2.0, -2.0]
    assert made.samples[0].logprobs == [-1.0] * 7


def test_a_continuation_gets_what_its_prefix_leaves():
    """Prefixes of 2 and 4 tokens, of 9: both are asked for 7 more, and the second keeps 5 of them."""
    script = {"p": ["a|b|c+", "a|x|d-"], "pa|": ["1234567"] * 2, "r": ["a|b|c-"] * 2, "ra|b|": ["1234567"] * 2}
    made, engine, _ = roll(script, ["p", "r"], lambda failed: [2 if one.prompt == "p" else 3 for one in failed])
    assert [asked[1] for asked in engine.asked] == [9, 7]
    assert [len(each.ids) for each in made.records] == [7, 7, 9, 9, 7, 7, 9, 9]
    assert engine.exact_text(made.records[6].ids) == "a|b|12345"


def test_what_is_logged_is_an_average_over_trained_completions():
    """2 base completions with a mean of 1/2 and 6 others with 1/6 make 1/4."""
    script = {"p": ["a|-", "b+", *["c-"] * 5, "d+"], "?": ["c-"] * 5 + ["d+"]}
    engine = Engine(script)
    scorer = Scorer(engine)
    args = SRPOConfig(
        "unused", use_cpu=True, bf16=False, report_to="none", num_generations=8, suffixes_per_prefix=6,
        max_completion_length=9, step_delimiter="|",
    )  # fmt: skip
    made = Rollout(engine, scorer, args, 8, 9, [{"prompt": "p"}] * 8, "random", "|")
    made.run(["p"] * 8)
    assert [len(call) for call in scorer.calls] == [2, 6]
    assert len(made.logged["share"]) == 8
    assert sum(made.logged["share"]) / 8 == pytest.approx(0.25)
    assert made.logged["rows"] == [2.0] * 8  # several values of a call are one mean of it


def test_drawn_seeds_are_neither_trained_nor_counted():
    script = {"p": ["s+", "s+", "a|s-", *["t+"] * 4], "pa|": ["t+"] * 4}
    options = dict(suffixes_per_prefix=4, max_seed_attempts=5)
    made, _, scorer = roll(script, ["p"], lambda failed: [2], **options)
    assert [[role for role, _ in call] for call in scorer.calls] == [["seed"]] * 3 + [["reset"] * 4]
    assert made.logged["share"] == [1.0] * 4 and made.columns["length"] == [5] * 4
    assert made.metrics["reset/seed_draws"] == 3 and made.metrics["reset/generated_tokens"] == 3 + 3 + 5 + 4 * 3


def test_the_policy_is_asked_and_its_answer_is_read():
    script = SCRIPT | {"?": ["It is \\boxed{2}"]}
    made, engine, _ = roll(script, ["p", "q"], "self", localization_max_tokens=15, localization_temperature=0.4)
    (questions, max_tokens, temperature) = engine.asked[1]
    assert len(questions) == 1 and "Problem:\np\n" in questions[0] and "Step 2: x|" in questions[0]
    assert (max_tokens, temperature) == (15, 0.4)
    assert made.metrics["reset/parse_rate"] == 1 and made.metrics["reset/localization_tokens"] == 15
    assert made.columns["reset_step"][2:4] == [2, 2]


def test_votes_are_asked_side_by_side_and_the_most_frequent_step_wins():
    answers = ["\\boxed{3}", "\\boxed{2}", "none", "\\boxed{2}", "\\boxed{3}"]  # of equals, the earlier one
    made, engine, _ = roll(SCRIPT | {"?": answers, "pa|": ["y+"] * 2}, ["p", "q"], "self", localization_votes=5)
    questions, *_ = engine.asked[1]
    assert len(questions) == 5 and len(set(questions)) == 1
    assert made.columns["reset_step"][2:4] == [2, 2] and made.metrics["reset/parse_rate"] == 1
    assert made.metrics["reset/localization_tokens"] == sum(min(len(answer) + 1, 9) for answer in answers)


def test_votes_of_several_failures_stay_with_their_own():
    """Two failures, whose answers come in the order of the failures."""
    script = {"p": ["a|b|c-", "d+"], "q": ["e|f|g-", "h+"], "pa|b|": ["1+", "2-"], "qe|": ["1+", "2-"]}
    steps = {"p": ["3", "3", "1"], "q": ["1", "2", "2"]}

    class Asked(Engine):
        def complete(self, asked, prompt_ids, max_tokens, temperature=None):
            texts = [self.exact_text(ids) for ids in prompt_ids]
            for problem in ("p", "q"):
                questions = [text for text in texts if f"Problem:\n{problem}\n" in text]
                self.script |= {text: [f"\\boxed{{{h}}}" for h in steps[problem]] for text in questions}
            return super().complete(asked, prompt_ids, max_tokens, temperature)

    made, *_ = roll(script, ["p", "q"], "self", engine=Asked, localization_votes=3, localization_max_tokens=20)
    assert made.columns["reset_step"] == [None, None, 3, 3, None, None, 2, 2]


def test_a_model_with_a_chat_template_is_asked_in_a_message():
    class Chat(Engine):
        has_chat_template = True

        def token_ids(self, prompts):
            texts = [prompt if isinstance(prompt, str) else f"<{prompt[0]['content']}>" for prompt in prompts]
            return super().token_ids(texts)

    _, engine, _ = roll(SCRIPT | {"?": ["\\boxed{2}"]}, ["p", "q"], "self", engine=Chat)
    (question,) = engine.asked[1][0]
    assert question.startswith("<Below are a problem") and question.endswith("\\boxed{h}.>")
    assert engine.asked[0][0] == ["p", "p", "q", "q"]  # the prompts themselves stay as they are


def test_a_failure_without_a_named_step_is_reset_to_its_first_one_where_asked_for():
    options = dict(localization_fallback="first")
    made, *_ = roll(SCRIPT | {"p": [*SCRIPT["p"], "y+", "z-"]}, ["p", "q"], lambda failed: [None], **options)
    assert made.columns["reset_step"][2:4] == [1, 1] and made.metrics["reset/fallback_count"] == 1


def test_a_prefix_is_trained_where_asked_for():
    made, *_ = roll(SCRIPT, ["p", "q"], second, train_prefix=True)
    assert made.records[2].prefix_length == 2 and made.records[2].loss_mask == [1] * 5


def test_a_localization_is_as_long_as_a_completion_unless_told_otherwise():
    script = SCRIPT | {"?": ["\\boxed{2} and so on"], "pa|": ["y+"] * 2}
    made, engine, _ = roll(script, ["p", "q"], "self")
    assert engine.asked[1][1] == 9 and made.metrics["reset/parse_rate"] == 1


def test_a_localizer_may_change_what_it_is_shown():
    def vandal(failed):
        for completion in failed:
            completion.columns["answer"].clear()
        return [2] * len(failed)

    made, *_ = roll(SCRIPT, ["p", "q"], vandal)
    assert [row["answer"] for row in made.inputs] == [[0]] * 4 + [[1]] * 4


def test_a_rollout_knows_no_trainer():
    for module in (rollout, records, seeds, interface):
        source = inspect.getsource(module)
        assert "import trl" not in source and "from trl" not in source and "Trainer(" not in source
    assert "trl" in inspect.getsource(checks)  # that is where it would be seen


def test_a_seed_is_cut_before_its_reset_step():
    steps = [Step(0, 2, "a|"), Step(2, 4, "x|"), Step(4, 6, "d-")]
    sample = Sample([1, 2, 3, 4, 5, 6])
    record, prefix = Localized(sample, steps, 3).cut(0.0, 1, "random")
    assert record == SeedRecord(("a|", "x|", "d-"), 3, Reset(2, False)) and prefix.ids == [1, 2]
    record, prefix = Localized(sample, steps, None).cut(0.7, 1, "first")
    assert record.reset == Reset(1, True) and prefix.ids == []
    record, prefix = Localized(sample, steps, None).cut(0.7, 1, "random")
    assert record.reset == Reset(3, True) and prefix.ids == [1, 2, 3, 4]
    assert Localized(Sample([]), [], None).cut(0.7, 0, "random")[1].ids == []


# --- metrics ---


def completion(prompt, group, role, passed, seed=None):
    return CompletionRecord(prompt, group, role, [], [], 0, 0.0, passed, seed)


def test_metrics_by_hand():
    first = SeedRecord(("a", "b", "c", "d"), 3, Reset(3, False))
    other = SeedRecord(("a", "b"), None, Reset(1, True))
    made = [
        *[completion(0, 0, "base", passed) for passed in (True, False, None)],
        *[completion(0, 1, "reset", passed, first) for passed in (False, True)],
        *[completion(1, 5, "base", passed) for passed in (False, False, False)],
        *[completion(1, 6, "reset", passed, other) for passed in (False, None)],
        *[completion(2, 10, "base", True)] * 3,
        *[completion(2, 10, "fresh", False)] * 2,
    ]
    assert reset_metrics(made, [True, False, True]) == {
        "reset/seeded_fraction": pytest.approx(2 / 3),
        "reset/step": 2.0,
        "reset/kept_fraction": 1 / 4,
        "reset/parse_rate": pytest.approx(2 / 3),
        "reset/base_pass_rate": 4 / 8,
        "reset/suffix_pass_rate": 1 / 3,
        "reset/corrected_fraction": 1 / 2,
        "reset/fallback_count": 1.0,
    }
    nobody_asked = reset_metrics(made, None)
    assert "reset/parse_rate" not in nobody_asked and "reset/fallback_count" not in nobody_asked
    nothing_failed = reset_metrics([completion(0, 0, "base", True)] * 2, [])
    assert nothing_failed == {
        "reset/seeded_fraction": 0.0,
        "reset/base_pass_rate": 1.0,
        "reset/fallback_count": 0.0,
    }


# --- drawing seeds ---


def test_two_processes_draw_in_lockstep_what_one_draws():
    """Which draws fail: prompt 0 its first, 1 its third, 2 never, 3 its second."""
    fails = {0: [True], 1: [False, False, True], 2: [False] * 9, 3: [False, True]}
    outcome = lambda prompt, k: fails[prompt][min(k, len(fails[prompt]) - 1)]  # noqa: E731

    def draw_alone(counts, asked, offset=0):
        def draw(prompts):
            asked.append(list(prompts))
            outcomes = []
            for prompt in prompts:
                outcomes.append(outcome(prompt + offset, counts[prompt + offset]))
                counts[prompt + offset] += 1
            samples = [Sample([prompt + offset, counts[prompt + offset]]) for prompt in prompts]
            return samples, [outcomes]

        return draw

    asked = []
    alone, failed = draw_seeds(draw_alone(defaultdict(int), asked), num_prompts=4, wanted=1, max_attempts=4)
    assert failed == [[True], [False, False, True], [False] * 4, [False, True]]
    assert asked == [[0, 1, 2, 3], [1, 2, 3], [1, 2], [2]]
    assert [[sample.ids[1] for sample in samples] for samples in alone] == [[1], [1, 2, 3], [1, 2, 3, 4], [1, 2]]

    # Both processes are played one after the other, so that each is told what the other one will have drawn.
    outcomes_of = [[[True, False], [False, False]], [[False], [False, True]], [[True], [False]], [[], []]]
    outcomes_of[1] = [[False, True], [False, True]]  # the first draws for prompt 0 again, which nobody counts
    outcomes_of[3] = [[False], [False]]
    for rank, expected in ((0, [[0, 1], [1, 0], [1], [0]]), (1, [[0, 1], [0, 1], [0], [0]])):
        asked, rounds = [], iter(outcomes_of)

        def draw(prompts, asked=asked, rounds=rounds):
            asked.append(list(prompts))
            return [Sample([prompt]) for prompt in prompts], next(rounds)

        candidates, both = draw_seeds(draw, num_prompts=2, wanted=1, max_attempts=4, rank=rank, processes=2)
        assert both == failed and asked == expected
        assert [len(samples) for samples in candidates] == [len(each) for each in failed[2 * rank : 2 * rank + 2]]
