"""What every trainer does around TRL's: its constructor, exact resume that can be left out, checked rewards."""

import asyncio
import inspect
import re

import numpy
import pytest
import torch
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from credit_trl import STraceConfig, STraceTrainer, TraceTrainer
from credit_trl.base import ExactResumeMixin, takes_trl_arguments
from credit_trl.traces.trainer import TraceCredit
from tests.helpers.comparing import same_log, same_weights
from tests.helpers.training import QUIET_ON_CPU, digit_reward


class Bare(TraceCredit):
    """S-trace without exact resume."""

    config_class = STraceConfig
    _name = "S-trace"


def config(folder, **options):
    sizes = dict(per_device_train_batch_size=8, num_generations=4, max_completion_length=12, max_steps=1)
    return GRPOConfig(**(QUIET_ON_CPU | dict(output_dir=str(folder)) | sizes | options))


# --- exact resume is a mixin ---


def test_a_trainer_without_exact_resume_trains_alike_and_resumes_as_trl_does(run, tmp_path):
    assert not issubclass(Bare, ExactResumeMixin) and issubclass(TraceTrainer, ExactResumeMixin)
    options = dict(save_strategy="steps", save_steps=1, max_steps=4, num_iterations=2)
    _, whole, log = run(Bare, STraceConfig, output_dir=str(tmp_path / "bare"), **options)
    _, with_mixin, its_log = run(STraceTrainer, STraceConfig, output_dir=str(tmp_path / "mixed"), **options)
    same_weights(whole, with_mixin)
    same_log(its_log, log)
    assert not list((tmp_path / "bare").glob("*/in_flight*")) and list((tmp_path / "mixed").glob("*/in_flight*"))
    # Step 1 is in the middle of a cycle, step 2 at its end: there TRL's own resume is exact.
    for step, same in ((1, False), (2, True)):
        for folder, trainer_class, exact in (("bare", Bare, same), ("mixed", STraceTrainer, True)):
            checkpoint = str(tmp_path / folder / f"checkpoint-{step}")
            again = str(tmp_path / f"again {folder} {step}")
            _, resumed, _ = run(trainer_class, STraceConfig, output_dir=again, resume=checkpoint, **options)
            assert all(torch.equal(resumed[name], whole[name]) for name in whole) == exact


# --- constructors ---


class Seen(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


class WithMore(STraceTrainer):
    @takes_trl_arguments
    def __init__(self, model, reward_funcs=None, args=None, *, note=None, **keywords):
        self.note, self.names = note, set(keywords)
        super().__init__(model, reward_funcs, args, **keywords)


@pytest.mark.parametrize("trainer_class", [GRPOTrainer, STraceTrainer, WithMore])
def test_arguments_by_position_come_in_trls_order(trainer_class, tiny_model, prompts, tmp_path):
    tokenizer, seen = AutoTokenizer.from_pretrained(tiny_model), Seen()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    trainer = trainer_class(
        tiny_model, [digit_reward], config(tmp_path), prompts, prompts, tokenizer, None, [seen], (optimizer, None)
    )
    trainer.train()
    assert trainer.processing_class is tokenizer and seen.steps == 1
    assert trainer.train_dataset is not None and trainer.eval_dataset is not None
    assert trainer.optimizer.optimizer is optimizer


def test_a_trainer_gets_arguments_by_position_as_keywords(tiny_model, prompts, tmp_path):
    trainer = WithMore(tiny_model, digit_reward, config(tmp_path), prompts, note="its own", callbacks=[])
    assert (trainer.note, trainer.names) == ("its own", {"train_dataset", "callbacks"})


def test_wrong_arguments_are_refused_as_by_python(tiny_model, prompts, tmp_path):
    args = config(tmp_path)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'train_dataset'"):
        STraceTrainer(tiny_model, digit_reward, args, prompts, train_dataset=prompts)
    with pytest.raises(TypeError, match="too many positional arguments"):
        STraceTrainer(tiny_model, digit_reward, args, *[None] * 20)
    with pytest.raises(TypeError, match="'model'"):
        STraceTrainer(reward_funcs=digit_reward, args=args)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dataset'"):
        STraceTrainer(tiny_model, digit_reward, args, dataset=prompts)


def test_editors_show_trls_parameters_and_a_trainers_own():
    trl = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert list(inspect.signature(STraceTrainer.__init__).parameters) == trl
    assert list(inspect.signature(WithMore.__init__).parameters) == [*trl, "note"]


# --- rewards ---


def reward_of(values):
    def spelling(completions, **kwargs):
        return values(len(completions))

    return spelling


def reward_later(values):
    async def spelling(completions, **kwargs):
        await asyncio.sleep(0)
        return values(len(completions))

    return spelling


BAD = {
    "a string among numbers": (
        lambda n: [0.5, 1, "0.7"] + [0.0] * (n - 3),
        "returned str '0.7' for completion 2 of the 8",
    ),
    "a list in place of a number": (lambda n: [[0.5, 1.0]] * n, r"returned list [0.5, 1.0] for completion 0 of the 8"),
    "a dict in place of a number": (
        lambda n: [None] * (n - 1) + [{"score": 1}],
        "returned dict {'score': 1} for completion 7 of the 8",
    ),
    "a tensor of two numbers": (lambda n: torch.ones(n, 2), "returned Tensor tensor([1., 1.]) for completion 0"),
    "one number": (lambda n: 1.0, "returned float 1.0. It must return a list"),
    "nothing": (lambda n: None, "returned NoneType None. It must return a list"),
    "a text": (lambda n: "1" * n, "returned str '11111111'. It must return a list"),
}


@pytest.mark.parametrize("kind", [reward_of, reward_later], ids=["called", "awaited"])
@pytest.mark.parametrize("case", BAD)
def test_a_reward_that_is_no_number_is_named_with_its_completion(run, case, kind):
    values, message = BAD[case]
    options = dict(trainer_options=None, max_steps=1)

    class Rewarded(STraceTrainer):
        def __init__(self, model, reward_funcs, **keywords):
            super().__init__(model, [digit_reward, kind(values)], **keywords)

    with pytest.raises(TypeError, match=f"The reward function 'spelling' {re.escape(message)}"):
        run(Rewarded, STraceConfig, **options)


def test_the_number_of_rewards_is_named_by_trl(run):
    class Rewarded(STraceTrainer):
        def __init__(self, model, reward_funcs, **keywords):
            super().__init__(model, reward_of(lambda n: [1.0] * (n - 1)), **keywords)

    with pytest.raises(ValueError, match="'spelling' returned 7 rewards, but 8 were expected"):
        run(Rewarded, STraceConfig, max_steps=1)


@pytest.mark.parametrize("kind", [reward_of, reward_later], ids=["called", "awaited"])
def test_whatever_trl_takes_for_a_number_is_taken(run, kind):
    odd = [numpy.float64(0.5), numpy.int64(1), numpy.bool_(True), torch.tensor(0.25), torch.tensor([2]), True, None, 3]
    forms = [lambda n: odd, lambda n: tuple(odd), lambda n: iter(odd), lambda n: torch.arange(n), numpy.arange]
    rewards = []

    def of(trainer_class):
        class Rewarded(trainer_class):
            def __init__(self, model, reward_funcs, **keywords):
                super().__init__(model, [kind(values) for values in forms], **keywords)

            def _calculate_rewards(self, *positional):
                found = super()._calculate_rewards(*positional)
                rewards.append(found)
                assert self.reward_funcs[0].__name__ == "spelling"  # the functions are the user's again
                return found

        return run(Rewarded, GRPOConfig, max_steps=1)[1]

    same_weights(of(STraceTrainer), of(STraceTrainer))
    of(GRPOTrainer)
    ours, _, trls = rewards
    assert torch.equal(ours.nan_to_num(-1.0), trls.nan_to_num(-1.0))


def test_an_error_of_the_reward_function_is_its_own(run):
    def broken(completions, **kwargs):
        raise KeyError("answer")

    class Rewarded(STraceTrainer):
        def __init__(self, model, reward_funcs, **keywords):
            super().__init__(model, broken, **keywords)

    with pytest.raises(KeyError, match="answer"):
        run(Rewarded, STraceConfig, max_steps=1)
