"""One fault in a training step: what TRL does, that ours is never worse, and that no other group's update changes.

The lines are those of `docs/reference/faults.md`, and every one is held by a test here.
"""

import errno
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.modeling_utils
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM

from credit_trl.resets.localization import FailedCompletion
from credit_trl.resets.localizers.chat import ChatLocalizer
from tests.helpers.chat_server import ChatServer, completion, error, slowly
from tests.helpers.comparing import same_weights
from tests.helpers.faults_run import GENERATIONS, OURS, TRAINERS, Fault, Step, one_step
from tests.helpers.training import QUIET_ON_CPU

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "reference" / "faults.md").read_text()
MESSAGES = {
    fault: message.removeprefix("none")
    for fault, *_, message in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", DOCS, flags=re.M)
    if fault != "fault"
}
HELD: set[str] = set()
HEALTHY = range(GENERATIONS, 2 * GENERATIONS)


def holds(*faults: str):
    def mark(test):
        HELD.update(faults)
        return test

    return mark


def message(fault: str) -> str:
    """The documented message of a fault as a regular expression."""
    parts = MESSAGES[fault].strip("`").split("…")
    assert any(parts), fault
    return ".*".join(map(re.escape, parts))


@pytest.fixture
def step(tiny_model, tmp_path, monkeypatch):
    def step(name, fault):
        with monkeypatch.context() as patch:
            return one_step(patch, tiny_model, tmp_path / "run", name, fault)

    return step


SOUND: dict[str, Step] = {}


@pytest.fixture
def sound(step):
    """The step of a trainer without a fault."""

    def sound(name, **options):
        key = name + repr(options)
        if key not in SOUND:
            SOUND[key] = step(name, Fault(**options))
        return SOUND[key]

    return sound


def only(rows, change):
    return lambda value, row: change(value) if row in rows else value


def group_of(name: str, row: int) -> range:
    size = 4 if name == "SRPO" else GENERATIONS
    return range(row // size * size, row // size * size + size)


def test_every_line_of_the_table_has_a_test_and_every_test_a_line():
    assert set(MESSAGES) == HELD


# --- rewards ---


@pytest.mark.thorough
@pytest.mark.parametrize("bad", [2, 5])
@pytest.mark.parametrize("fault", ["a reward is `None`", "a reward is NaN", "a reward is infinite"])
@holds("a reward is `None`", "a reward is NaN", "a reward is infinite")
def test_a_row_that_is_not_scored_leaves_its_group(step, sound, caplog, fault, bad):
    value = {"a reward is `None`": None, "a reward is NaN": math.nan, "a reward is infinite": (-1) ** bad * math.inf}
    for name in TRAINERS if "infinite" not in fault else OURS:
        caplog.clear()
        found, expected = step(name, Fault(reward=only([bad], lambda _: value[fault]))), sound(name)
        assert re.search(message(fault), caplog.text)
        assert found.finite
        group = group_of(name, bad)
        found.same_rows(expected, {*range(2 * GENERATIONS)} - {*range(GENERATIONS)} if name != "SRPO" else HEALTHY)
        if name == "SRPO" and bad == 5:
            found.same_rows(expected, range(4))  # the base group of the same prompt
        left = torch.tensor([float(row % 2) for row in group if row != bad])
        for row in group:
            by_hand = 0.0 if row == bad else (row % 2 - left.mean()) / (left.std() + 1e-4)
            assert found.advantages[row] == pytest.approx(float(by_hand), abs=1e-6)
        assert found.credit[bad].abs().max() == 0
        if name == "SRPO":
            # The base group of the faulty prompt has two right ones of four, that of the other prompt one.
            base, suffix = (7, 8) if bad == 2 else (8, 7)
            assert found.log["reset/base_pass_rate"] == pytest.approx(3 / base)
            assert found.log["reset/suffix_pass_rate"] == pytest.approx((2 + 1 - (bad == 5)) / suffix)


@pytest.mark.thorough
@holds("a reward is infinite")
def test_an_infinite_reward_ruins_the_batch_in_trl_and_not_in_ours(step, sound):
    for scale_rewards in ("batch", "none"):
        options = dict(options=dict(scale_rewards=scale_rewards))
        fault = Fault(reward=only([2], lambda _: -math.inf), **options)
        theirs = step("TRL", fault).advantages
        assert (theirs == 0).all() if scale_rewards == "batch" else theirs.max() > 1e38
        for name in OURS:
            found = step(name, fault)
            assert found.finite and 0 < found.log["grad_norm"] < 100
            if scale_rewards == "none":
                found.same_rows(sound(name, **options), HEALTHY)


def test_the_warning_of_an_infinite_reward_names_the_function_and_the_number(step, caplog):
    step("S-trace", Fault(reward=only([2, 5], lambda _: math.inf)))
    assert "'reward' returned an infinite reward for 2 completions" in caplog.text


class OutOfMemoryError(Exception):
    pass


def fail(*args):
    raise OutOfMemoryError("the fault's own")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("a reward function raises", Fault(rewards=fail)),
        ("a reward is text", Fault(reward=only([2], str))),
        ("the rewards are too few or too many", Fault(rewards=lambda rewards: rewards[1:])),
        ("the rewards are too few or too many", Fault(rewards=lambda rewards: [*rewards, 0.0])),
    ],
)
@holds("a reward function raises", "a reward is text", "the rewards are too few or too many")
def test_rewards_that_end_the_run_as_in_trl(step, fault, broken):
    for name in TRAINERS:
        text = message(fault) if MESSAGES[fault] else "^the fault's own$"
        if fault == "a reward is text" and name not in OURS:
            text = "must be real number, not str"
        with pytest.raises((OutOfMemoryError, TypeError, ValueError), match=text):
            step(name, broken)


@pytest.mark.thorough
@holds("two reward functions log the same column (`log_extra`)")
def test_of_a_column_that_is_logged_twice_the_last_values_are_kept(step, sound):
    twice = Fault(logged=lambda completions: [["first"] * len(completions), completions])
    for name in TRAINERS:
        found = step(name, twice)
        same_weights(found.weights, sound(name).weights)
        once = step(name, Fault(logged=lambda completions: [completions])).table["text"]
        assert found.table["text"] == once and len({*once} - {"first"}) > 8


@holds("a reward function logs too few values of a column")
def test_what_is_not_logged_is_none_under_reset_groups(step):
    few = Fault(logged=lambda completions: [completions[:-1]], options=dict(log_completions=True))
    for name in TRAINERS:
        if name == "SRPO":
            column = step(name, few).table["text"]
            assert [row for row, text in enumerate(column) if text is None] == [11, 15]  # the last of each phase
            continue
        with pytest.raises((IndexError, ValueError), match=r"deque index out of range|All arrays must be of the same"):
            step(name, few)  # the first where rich prints the table


# --- completions ---

FAILED = [0, 2]  # the failures of the faulty prompt's base group, of which SRPO cuts one


@pytest.mark.thorough
@pytest.mark.parametrize("bad", [2, 5])
@holds("the engine returns no token for a prompt", "the engine returns too few completions")
def test_an_engine_that_fails_is_named(step, bad):
    empty = Fault(completion=only([bad], lambda ids: []))
    fewer = Fault(generated=lambda completions: completions[1:])
    with pytest.raises(IndexError, match="list index out of range"):
        step("TRL", empty)
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        step("TRL", fewer)
    for name in OURS:
        count = 8 if name == "SRPO" else 16
        with pytest.raises(RuntimeError, match=message("the engine returns no token for a prompt")) as error:
            step(name, empty)
        assert f"asked for {count} completions and returned {count}, 1 of them" in str(error.value)
        with pytest.raises(RuntimeError, match=message("the engine returns too few completions")) as error:
            step(name, fewer)
        assert f"asked for {count} completions and returned {count - 1}, 0 of them" in str(error.value)


DEGENERATE = {
    "a completion is padding alone": lambda ids: [0, 0, 0],
    "a completion is EOS alone": lambda ids: ids[-1:],
    "a completion is one token": lambda ids: ids[:1],
    "a completion is cut off": lambda ids: ids[:3],
}


def last_step(failed):
    return [len(one.steps) for one in failed]


@pytest.mark.thorough
@pytest.mark.parametrize("fault", DEGENERATE)
@holds(*DEGENERATE)
def test_a_degenerate_completion_touches_no_other_row(step, sound, fault):
    change = DEGENERATE[fault]
    resets = dict(trainer_options=dict(localizer=last_step))
    for name in TRAINERS:
        found, expected = step(name, Fault(completion=only(FAILED, change), **resets)), sound(name, **resets)
        assert found.finite
        # Rewards are the same, so the others of the group are too; SRPO's continuations have another prefix.
        found.same_rows(expected, [1, 3, *(() if name == "SRPO" else range(4, GENERATIONS)), *HEALTHY])
        length = len(change(list(range(7))))
        assert [found.lengths[row] for row in FAILED] == [length] * 2
        assert found.credit[0].abs().max() > 0  # trained; the other one is clipped where it begins
        if name == "SRPO":
            assert found.advantages.tolist() == expected.advantages.tolist()
            # What is cut off has two steps, a sound completion three: what follows the delimiter is one.
            cut = 2 if "cut off" in fault else 1
            assert found.table["reset_step"][4:8] == [cut] * 4
            assert expected.table["reset_step"][4:8] == [3] * 4


@holds("a completion is cut off")
def test_a_cut_off_completion_can_be_left_out_as_in_trl(step):
    fault = Fault(completion=only(FAILED, lambda ids: ids[:3]), options=dict(mask_truncated_completions=True))
    for name in TRAINERS:
        found = step(name, fault)
        assert [len(found.credit[row]) for row in FAILED] == [0, 0] and found.finite


@holds("the engine returns fewer tokens than asked, and no log-probability for some")
def test_an_engine_that_stops_early(step, sound):
    def missing(logprob):
        return None

    short = Fault(completion=only(FAILED, lambda ids: ids[:3]), logprob=only(FAILED, missing), engine=True)
    for name in TRAINERS:
        found, expected = step(name, short), sound(name, engine=True)
        assert found.finite
        found.same_rows(expected, [1, 3, *HEALTHY])
        assert [found.lengths[row] for row in FAILED] == [3, 3]
        assert found.credit[0].abs().max() > 0  # trained; the other one is clipped where it begins
        assert math.isfinite(found.log["sampling/sampling_logp_difference/mean"])


# --- groups ---


@holds("all completions of a prompt are equal")
def test_a_group_of_equals_has_no_credit(step, sound):
    equal = Fault(reward=lambda value, row: 0.3, completion=lambda ids, row: [7, 1])
    for name in TRAINERS:
        found = step(name, equal)
        assert found.finite
        found.same_rows(sound(name), HEALTHY)
        # 0.3 is no float32, and the mean of its copies need not be it.
        assert found.advantages[:GENERATIONS].abs().max() < 1e-3
        assert all(found.credit[row].abs().max() < 1e-4 for row in range(GENERATIONS))


@holds("all completions of a batch failed")
def test_a_batch_of_failures_leaves_the_weights(step, tiny_model):
    failed = Fault(rewards=lambda rewards: [0.0] * len(rewards))
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    for name in TRAINERS:
        found = step(name, failed)
        assert found.advantages.abs().max() == 0 and found.log["grad_norm"] == 0
        same_weights(found.weights, before)
        if name == "SRPO":
            assert found.log["reset/seeded_fraction"] == 1


# --- log-probabilities ---


def at(value, *, row=2, tokens=slice(0, 1)):
    def change(logps, rows):
        added = torch.zeros_like(logps)
        added[rows == row, tokens] = value
        return logps + added

    return change


POLICY, OLD = "the policy's log-probability", "the old log-probability"
LOGPS = {
    f"{POLICY} of a token is NaN": (Fault(logps=at(math.nan)), []),
    f"{POLICY} of a token is -inf": (Fault(logps=at(-math.inf)), [*TRAINERS]),
    "the policy's log-probabilities of a row are NaN": (Fault(logps=at(math.nan, tokens=slice(None))), []),
    f"{OLD} of a token is NaN": (Fault(old_logps=at(math.nan)), ["S-trace", "GRPO-lambda"]),
    f"{OLD} of a token is -inf": (Fault(old_logps=at(-math.inf)), ["S-trace", "GRPO-lambda"]),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", LOGPS)
@holds(*LOGPS)
def test_a_log_probability_that_is_not_finite_touches_no_other_row(step, sound, fault):
    broken, finite = LOGPS[fault]
    for name in TRAINERS:
        found = step(name, broken)
        assert found.finite == (name in finite), name
        found.same_rows(sound(name), [row for row in range(2 * GENERATIONS) if row != 2])
        if "row" not in fault:
            assert torch.isfinite(found.credit[2][1:]).all()
        if name in ("S-trace", "GRPO-lambda"):
            assert found.log["trace/non_finite_count"] == (7 if "row" in fault else 1)
        if name in finite:
            assert found.credit[2][0] == 0


# --- the localizer ---


def localized(answer) -> Fault:
    return Fault(trainer_options=dict(localizer=answer))


@pytest.mark.parametrize("error", [TimeoutError("no answer in 60 s"), KeyError("solution")])
@holds("the localizer raises")
def test_a_localizer_that_raises_ends_the_run(step, error):
    def raising(failed):
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        step("SRPO", localized(raising))


@holds("the localizer names no step", "the localizer's answer ends at `localization_max_tokens`")
def test_a_localizer_without_an_answer_is_a_random_one(step, sound):
    """All rows are those of `localizer="random"` to the bit, and the fallbacks are counted."""
    wrong = [None, "2", 2.0, 4, 0, True, math.nan]
    faults = [localized(lambda failed, one=one: [one] * len(failed)) for one in wrong]
    faults.append(Fault(options=dict(localizer="self", localization_max_tokens=5)))
    for fault in faults:
        found = step("SRPO", fault)
        found.same_rows(sound("SRPO"), range(2 * GENERATIONS))
        same_weights(found.weights, sound("SRPO").weights)
        assert found.log["reset/parse_rate"] == 0 and found.log["reset/fallback_count"] == 2
    assert found.log["reset/localization_tokens"] == 10
    found = step("SRPO", localized(lambda failed: np.array([3] * len(failed))))
    assert found.log["reset/parse_rate"] == 1 and found.table["reset_step"][4:8] == [3] * 4


@holds("the localizer's answers are too few or too many", "the localizer returns no list")
def test_answers_that_cannot_be_told_apart_end_the_run(step):
    for answers, fault in [
        ([1], "the localizer's answers are too few or too many"),
        ([1, 1, 1], "the localizer's answers are too few or too many"),
        (2, "the localizer returns no list"),
        (None, "the localizer returns no list"),
    ]:
        with pytest.raises(ValueError, match=message(fault)):
            step("SRPO", localized(lambda failed, answers=answers: answers))


NO_SERVICE = "the judge's server is down, closes connections or answers 4xx or 5xx"
NO_ANSWER = "the judge's response is no chat completion, or names no step"
JUDGES = [
    (NO_SERVICE, "connection", "down", {}),
    (NO_SERVICE, "connection", None, {}),  # closes the connection
    (NO_SERVICE, "authentication", (401, error("no such key")), {}),
    (NO_SERVICE, "server_error", (500, error("out of memory")), {}),
    ("the judge is slower than `deadline`", "deadline", slowly(300.0, completion("\\boxed{2}")), dict(deadline=0.5)),
    (NO_ANSWER, "invalid_response", b"garbage", {}),
    (NO_ANSWER, "no_step", completion("The second one."), {}),
    ("`max_requests` is used up", "budget", completion("\\boxed{2}"), dict(max_requests=1)),
]


@pytest.mark.parametrize(("fault", "kind", "answer", "options"), JUDGES, ids=[kind for _, kind, *_ in JUDGES])
@holds(*(fault for fault, *_ in JUDGES))
def test_a_judge_without_an_answer_is_a_random_step(step, sound, monkeypatch, caplog, fault, kind, answer, options):
    """All rows are those of `localizer="random"` to the bit, the fallbacks are counted, and one warning is given."""
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = ChatServer(answer if callable(answer) else lambda body: answer)
    one = [FailedCompletion("1+2:", ("3\n\n", "#3"))]
    try:
        if answer == "down":
            server.close()
        judge = ChatLocalizer("judge", server.url, max_retries=0, **options)
        if kind == "budget":
            assert judge(one) == [2]
        found = step("SRPO", localized(judge))
        assert judge(one) == [None]
    finally:
        if answer != "down":
            server.close()
    found.same_rows(sound("SRPO"), range(2 * GENERATIONS))
    same_weights(found.weights, sound("SRPO").weights)
    assert found.log["reset/parse_rate"] == 0 and found.log["reset/fallback_count"] == 2
    assert judge.failures == {kind: 3}
    [said] = [record.getMessage() for record in caplog.records if "ChatLocalizer" in record.getMessage()]
    assert re.search(message(fault), said) and f"({kind})" in said


# --- data ---


def user(text):
    return [{"role": "user", "content": text}]


DATA = {
    "streamed data have no `prompt` column": ["no column"] * 2,
    "a prompt is None": ["1+2:", None],
    "plain and conversational prompts are mixed": ["1+2:", user("9*9:")],
    "a prompt is empty": ["1+2:", ""],
    "all prompts of a batch are empty": ["", ""],
    "a prompt is longer than the model's context": ["1+2:" * 40, "9*9:"],
}
TRAINED = {"a prompt is empty", "a prompt is longer than the model's context"}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", DATA)
@holds(*DATA)
def test_data_that_is_not_as_it_should_be(tiny_model, tmp_path, fault):
    outcomes = {}
    for name, (trainer_class, config_class, options) in TRAINERS.items():
        rows = [{"question" if "no column" in DATA[fault] else "prompt": prompt} for prompt in DATA[fault]]
        settings = dict(per_device_train_batch_size=16, num_generations=8, max_completion_length=8, max_steps=1)
        trainer = trainer_class(
            tiny_model,
            lambda completions, **kwargs: [float(row % 2) for row in range(len(completions))],
            args=config_class(str(tmp_path), **(QUIET_ON_CPU | options | settings)),
            # Arrow has one type for a column; a generator's rows are what they are.
            train_dataset=IterableDataset.from_generator(lambda rows: iter(rows), gen_kwargs={"rows": rows}),
        )
        if fault in TRAINED:
            trainer.train()
            assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())
            assert trainer.state.log_history[0]["grad_norm"] > 0
            continue
        with pytest.raises((KeyError, TypeError, IndexError)) as error:
            trainer.train()
        outcomes[name] = (error.type, str(error.value))
        if MESSAGES[fault]:
            assert re.search(message(fault), str(error.value))
    if fault not in TRAINED:
        assert len(outcomes) == len(TRAINERS) and len(set(outcomes.values())) == 1


@holds("a `Dataset` has no `prompt` column")
def test_a_dataset_without_prompts_is_refused_when_the_trainer_is_built(tiny_model, tmp_path):
    data = Dataset.from_dict({"question": ["1+2:", "9*9:"]})

    def built(name, data):
        trainer_class, config_class, options = TRAINERS[name]
        settings = dict(per_device_train_batch_size=16, num_generations=8, max_completion_length=8, max_steps=1)
        args = config_class(str(tmp_path), **(QUIET_ON_CPU | options | settings))
        return trainer_class(tiny_model, lambda prompts, **kwargs: [0.0] * len(prompts), args=args, train_dataset=data)

    with pytest.raises(KeyError, match=r"^'prompt'$"):
        built("TRL", data).train()
    for name in OURS:
        with pytest.raises(ValueError, match=message("a `Dataset` has no `prompt` column")) as error:
            built(name, data)
        assert "It has question:" in str(error.value)
        transformed = data.with_transform(lambda rows: rows)
        with pytest.raises(KeyError, match=r"^'prompt'$"):
            built(name, transformed).train()


# --- the machine ---


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRAINERS)
@holds("the disk is full while a checkpoint is saved")
def test_a_full_disk_ends_the_run_and_the_checkpoint_before_goes_on(run, tmp_path, monkeypatch, name):
    trainer_class, config_class, options = TRAINERS[name]
    options = options | dict(num_generations=8, max_steps=2, num_iterations=1, save_strategy="steps", save_steps=1)
    _, expected, _ = run(trainer_class, config_class, **options, output_dir=str(tmp_path / "whole"))
    write, written = transformers.modeling_utils.safe_save_file, []

    def full(tensors, filename, **kwargs):
        if len(written) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(filename)
        return write(tensors, filename, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.modeling_utils, "safe_save_file", full)
        with pytest.raises(OSError, match=message("the disk is full while a checkpoint is saved")):
            run(trainer_class, config_class, **options)
    _, resumed, _ = run(trainer_class, config_class, **options, resume=str(tmp_path / "run" / "checkpoint-1"))
    same_weights(resumed, expected)


SCRIPT = """
import os
import sys
from datasets import Dataset
from tests.helpers.faults_run import TRAINERS
from tests.helpers.training import QUIET_ON_CPU

name, model, folder = sys.argv[1:]
trainer_class, config_class, options = TRAINERS[name]
calls = []

def reward(completions, **kwargs):
    calls.append(completions)
    print("reward", len(calls), flush=True)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        os._exit(9)
    return [float(row % 2) for row in range(len(completions))]

options = QUIET_ON_CPU | options | dict(
    per_device_train_batch_size=8, num_generations=8, max_completion_length=8, max_steps=3
)
data = Dataset.from_dict({"prompt": ["1+2:", "9*9:"]})
trainer_class(model, reward, args=config_class(folder, **options), train_dataset=data).train()
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["SRPO", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINERS if name != "SRPO")]
)
@holds("a process dies")
def test_the_other_process_ends_with_an_error(tiny_model, tmp_path, name):
    """Without a launcher, which would end the other one itself."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = dict(MASTER_ADDR="localhost", MASTER_PORT=port, WORLD_SIZE="2", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    common |= dict(PYTHONPATH=str(ROOT), ACCELERATE_USE_CPU="true")
    command = [sys.executable, str(tmp_path / "script.py"), name, tiny_model, str(tmp_path / "run")]
    processes = []
    try:
        for rank in ("0", "1"):
            with (tmp_path / f"{rank}.txt").open("w") as log:
                variables = os.environ | common | {"RANK": rank, "LOCAL_RANK": rank}
                processes.append(subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT))
        assert processes[1].wait(timeout=300) == 9, (tmp_path / "1.txt").read_text()[-3000:]
        status = processes[0].wait(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    printed = (tmp_path / "0.txt").read_text()
    assert status == 1 and "RuntimeError" in printed and "reward 1" in printed, printed[-3000:]
