"""What scripts, reward functions, subclasses and libraries of strangers do to a rollout: as in TRL, or refused."""

import sys

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from credit_trl import SRPOConfig, SRPOTraceTrainer, SRPOTrainer
from credit_trl.resets import group_advantages
from credit_trl.testbed import answer_reward, make_dataset
from tests.helpers.comparing import same_weights
from tests.helpers.scripted import BY_HAND, PREFIX, RIGHT_A, WRONG_A, A, B, Kept, Scripted, oracle
from tests.helpers.training import QUIET_ON_CPU, digit_reward


@pytest.fixture
def by_hand(make):
    """A trainer of the batch that was worked by hand, which has resets for A."""

    def by_hand(*mixins, reward=answer_reward, **options):
        data = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3], "nested": [[[1], [2]], [[3]]]})
        settings = dict(data=data, localizer=oracle, max_completion_length=40)
        trainer = make(Kept, *mixins, Scripted, reward=reward, **settings | options)
        trainer.script = BY_HAND
        return trainer

    return by_hand


def same_batch(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=0)


# --- configurations ---


@pytest.mark.parametrize(("num_generations", "split"), [(4, (2, 2)), (5, (3, 2)), (6, (3, 3)), (8, (4, 4))])
def test_a_plain_config_of_any_group_trains(tiny_model, tmp_path, num_generations, split):
    """No seed is drawn, since there is a base group, and localization is no longer than the run's own completions."""
    settings = QUIET_ON_CPU | dict(max_completion_length=16, max_steps=1, num_generations=num_generations)
    args = GRPOConfig(str(tmp_path), per_device_train_batch_size=2 * num_generations, **settings)
    asked = []

    class Watched(SRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *rest):
            asked.append((len(prompt_ids), self.generation_config.max_new_tokens))
            return super()._generate_single_turn(prompt_ids, *rest)

    trainer = Watched(tiny_model, digit_reward, args=args, train_dataset=make_dataset(4))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reset/seed_draws"] == 0 and log["reset/seeded_fraction"] > 0
    assert asked[0] == (2 * split[0], 16) and asked[-1][0] == 2 * split[1]
    assert len(asked) == 3 and asked[1][1] == 16
    roles = [record.role for record in trainer.rollout_records]
    assert roles.count("base") == 2 * split[0]


@pytest.mark.parametrize("num_generations", [2, 3])
def test_a_plain_config_of_a_tiny_group_continues_what_it_draws(tiny_model, tmp_path, caplog, num_generations):
    settings = QUIET_ON_CPU | dict(max_completion_length=16, max_steps=1, num_generations=num_generations)
    args = GRPOConfig(str(tmp_path), per_device_train_batch_size=2 * num_generations, **settings)
    trainer = SRPOTrainer(tiny_model, digit_reward, args=args, train_dataset=make_dataset(4))
    assert caplog.text.count(f"num_generations={num_generations} is too few for two groups") == 1
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reset/seed_draws"] >= 2 and log["reset/seeded_fraction"] > 0
    assert [record.role for record in trainer.rollout_records] == ["reset"] * 2 * num_generations
    for group in (trainer.rollout_records[:num_generations], trainer.rollout_records[num_generations:]):
        assert len({record.group for record in group}) == 1
        assert sum(record.advantage for record in group) == pytest.approx(0, abs=1e-4)
    trainer.evaluate(make_dataset(2))
    for options in (dict(localizer="random"), dict(seed_source="fresh"), dict(seed_selection="furthest")):
        args = SRPOConfig(str(tmp_path), per_device_train_batch_size=2 * num_generations, **settings | options)
        SRPOTrainer(tiny_model, digit_reward, args=args, train_dataset=make_dataset(4)).train()
    caplog.clear()
    args = GRPOConfig(str(tmp_path), per_device_train_batch_size=8, **settings | dict(num_generations=4))
    SRPOTrainer(tiny_model, digit_reward, args=args, train_dataset=make_dataset(4))
    assert "too few" not in caplog.text


# --- what reward functions do ---


def test_a_metric_is_averaged_over_trained_completions(make):
    """Two base completions with a mean of 1/2 and six continuations with 1/6: 1/4, as the mean of the reward."""

    def reward(completions, answer, completion_role, log_metric, **kwargs):
        rewards = answer_reward(completions, answer)
        log_metric("solved", sum(rewards) / len(rewards))
        if "reset" in completion_role:
            log_metric("of resets", 7.0)
        return rewards

    data = Dataset.from_dict({"prompt": [A], "answer": [9]})
    options = dict(reward=reward, data=data, localizer=oracle, max_completion_length=40, suffixes_per_prefix=6)
    rest = [suffix.removeprefix(PREFIX) for suffix in (RIGHT_A, *[WRONG_A] * 5)]
    trainer = make(Scripted, per_device_train_batch_size=8, **options)
    trainer.script = {A: [RIGHT_A, WRONG_A], A + PREFIX: rest}
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["solved"] == pytest.approx(0.25) == log["rewards/reward/mean"]
    assert log["of resets"] == 7

    drawn = make(Scripted, per_device_train_batch_size=8, **options | dict(suffixes_per_prefix=8))
    drawn.script = {A: [RIGHT_A] * 3 + [WRONG_A], A + PREFIX: [*rest, rest[0], rest[0]]}
    drawn.train()
    log = drawn.state.log_history[0]
    assert log["reset/seed_draws"] == 4
    assert log["solved"] == pytest.approx(3 / 8) == log["rewards/reward/mean"]


def vandal(prompts, completions, completion_ids, nested, answer, **kwargs):
    rewards = answer_reward([one if isinstance(one, str) else one[0]["content"] for one in completions], answer)
    for ids in completion_ids:
        ids.clear()
    for values in nested:
        values[0].append(9)
        values.clear()
    for prompt, completion in zip(prompts, completions, strict=True):
        if not isinstance(prompt, str):
            prompt.extend(completion)
            prompt[0]["content"] = "?"
    completions.clear(), answer.clear()  # `prompts` TRL itself counts
    return rewards


@pytest.mark.parametrize("conversational", [False, True])
def test_what_a_reward_function_does_in_place_changes_nothing(make, tiny_model, conversational):
    def tame(prompts, completions, answer, nested, **kwargs):
        assert len(prompts) == len(completions) and {str(values) for values in nested} == {"[[1], [2]]", "[[3]]"}
        return answer_reward([one if isinstance(one, str) else one[0]["content"] for one in completions], answer)

    def localizer(failed):
        assert [one.problem for one in failed] == [A] and failed[0].columns["nested"] == [[1], [2]]
        return oracle(failed)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    prompts = [[{"role": "user", "content": prompt}] if conversational else prompt for prompt in (A, B)]
    data = Dataset.from_dict({"prompt": prompts, "answer": [9, 3], "nested": [[[1], [2]], [[3]]]})
    found = {}
    for reward in (tame, vandal):
        options = dict(reward=reward, data=data, localizer=localizer, max_completion_length=40)
        trainer = make(Kept, Scripted, processing_class=tokenizer, **options)
        trainer.script = BY_HAND
        trainer.train()
        found[reward] = trainer
    same_batch(found[tame].outputs[0], found[vandal].outputs[0])
    same_weights(found[tame].model.state_dict(), found[vandal].model.state_dict())
    assert list(found[tame]._logs["prompt"]) == list(found[vandal]._logs["prompt"])
    assert list(found[tame]._logs["completion"]) == list(found[vandal]._logs["completion"])


def test_a_reward_function_that_groups_by_prompts_sees_groups_side_by_side(by_hand):
    seen = []

    def reward(prompts, completions, answer, **kwargs):
        seen.append(prompts)
        return answer_reward(completions, answer)

    by_hand(reward=reward).train()
    assert seen == [[A] * 4 + [B] * 4] * 2


def test_a_notice_says_what_differs_for_functions_that_slice(make, caplog):
    def ranked(completions, **kwargs):
        return [0.0] * len(completions)

    ranked.__module__ = "their_script"
    make(reward=[answer_reward, ranked])
    (record,) = [record for record in caplog.records if "num_generations=8" in record.message]
    assert "for 4 completions of each prompt" in record.message and "other 4. If ranked compares" in record.message
    assert "drawn" not in record.message
    for options, others in ((dict(suffixes_per_prefix=8), "8"), (dict(seed_source="fresh"), "the other 4")):
        caplog.clear()
        make(reward=ranked, max_seed_attempts=3, **options)
        (record,) = [record for record in caplog.records if "num_generations=8" in record.message]
        assert "for one drawn completion of each prompt, up to 3 times" in record.message
        assert f"after the resets for {others}. If ranked compares" in record.message
    caplog.clear()
    make(reward=answer_reward)  # this package's own look at one completion at a time
    assert not any("num_generations" in record.message for record in caplog.records)


def test_a_subclass_with_rewards_of_its_own_trains_them(by_hand):
    """Half a point off for long completions, given once, and A's and B's short ones fail by it."""
    calls = []

    class Shaped:
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            calls.append(len(prompts))
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            long = [len(ids) > 10 for ids in completion_ids_list]
            return rewards - 0.5 * torch.tensor(long).unsqueeze(1)

    plain = by_hand()
    plain.train()
    shaped = by_hand(Shaped, failure_threshold=0.5)
    shaped.train()
    assert calls == [8, 8]  # in each phase, and not again for TRL
    expected = [value - 0.5 * (row < 8) for row, value in enumerate(plain._logs["rewards"]["answer_reward"])]
    assert list(shaped._logs["rewards"]["answer_reward"]) == expected
    groups = torch.tensor([record.group for record in shaped.rollout_records])
    advantages = group_advantages(torch.tensor(expected).unsqueeze(1), torch.ones(1), groups)
    torch.testing.assert_close(shaped.outputs[0]["advantages"], advantages)
    assert "_calculate_rewards" not in vars(shaped)


def test_a_method_that_was_replaced_on_the_trainer_stays_and_is_what_is_trained(by_hand):
    trainer = by_hand()
    real = trainer._calculate_rewards

    def doubled(*arguments):
        return 2 * real(*arguments)

    trainer._calculate_rewards = doubled
    trainer.train()
    assert max(trainer._logs["rewards"]["answer_reward"]) == 2 and trainer._calculate_rewards is doubled


# --- columns of ours ---


def test_columns_of_ours_in_the_users_data_are_refused(make, tiny_model):
    mine = Dataset.from_dict({"prompt": [A, B], "answer": [9, 3], "completion_role": ["x", "y"]})
    message = r"^completion_role is a column that SRPOTrainer makes, and the data set has one too"
    with pytest.raises(ValueError, match=message):
        make(data=mine)
    unknown = IterableDataset.from_generator(lambda: iter(mine.to_list()))
    assert unknown.column_names is None
    with pytest.raises(ValueError, match=message):
        make(data=unknown).train()
    with pytest.raises(ValueError, match=message):
        make().evaluate(mine)

    class WithEvaluation:
        def __init__(self, *args, **keywords):
            super().__init__(*args, eval_dataset={"a": make_dataset(2), "b": mine}, **keywords)

    with pytest.raises(ValueError, match=message):
        make(WithEvaluation)


@pytest.mark.parametrize("name", ["completion_role", "reset_step"])
def test_a_reward_function_cannot_log_a_column_of_ours(by_hand, name):
    def reward(completions, answer, log_extra, **kwargs):
        log_extra(name, completions)
        return answer_reward(completions, answer)

    with pytest.raises(ValueError, match=f"^{name} is a column that SRPOTrainer makes, and log_extra of a reward"):
        by_hand(reward=reward).train()


# --- a rollout or a mask that is lost on the way ---


def patched(monkeypatch, name, replacement):
    monkeypatch.setattr(GRPOTrainer, name, replacement)


def generate_without_rollout(self, prompts):
    prompt_ids, *_ = self._tokenize_prompts(prompts)
    ids, _ = self._generate_single_turn(prompt_ids, None, {}, 8)
    return prompt_ids, ids, None, self._tokenizer.batch_decode(ids, skip_special_tokens=True), None, {}, None, []


def test_a_library_that_samples_by_itself_is_an_error(make, monkeypatch):
    patched(monkeypatch, "_generate", generate_without_rollout)
    trainer = make()
    with pytest.raises(
        RuntimeError,
        match=r"plain GRPO\. GRPOTrainer\._generate is not TRL's but comes from tests\.resets\.test_strangers\.",
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_library_that_makes_batches_by_itself_is_an_error(make, monkeypatch):
    def batch(self, inputs):
        ids = torch.ones(len(inputs), 4, dtype=torch.long)
        self._calculate_rewards(inputs, [row["prompt"] for row in inputs], ["1"] * len(inputs), ids.tolist())
        batch = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ids)
        return batch | {"advantages": torch.ones(len(inputs)), "num_items_in_batch": ids.sum()}

    patched(monkeypatch, "_generate_and_score_completions", batch)
    with pytest.raises(
        RuntimeError, match=r"GRPOTrainer\._generate_and_score_completions is not TRL's but comes from tests\.resets"
    ):
        make().train()


def test_a_subclass_that_samples_by_itself_is_an_error(make):
    class Own:
        _generate = generate_without_rollout

    with pytest.raises(RuntimeError, match="without calling the rollout with reset groups"):
        make(Own).train()


@pytest.mark.parametrize("lost", ["after the rollout", "before the loss"])
def test_a_batch_without_its_mask_is_an_error(by_hand, monkeypatch, lost):
    seam = {"after the rollout": "_generate_and_score_completions", "before the loss": "_compute_loss"}[lost]

    if lost == "after the rollout":
        theirs = GRPOTrainer._generate_and_score_completions

        def without(self, inputs):
            return {name: value for name, value in theirs(self, inputs).items() if name != "tool_mask"}

        monkeypatch.setattr(GRPOTrainer, seam, without)
        trainer = by_hand()
    else:

        class Without:
            def _compute_loss(self, model, inputs):
                return super()._compute_loss(model, {k: v for k, v in inputs.items() if k != "tool_mask"})

        trainer = by_hand(Without)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"^The batch came to the loss without 'tool_mask'"):
        trainer.train()
    same_weights(trainer.model.state_dict(), before)


def test_a_loss_that_goes_past_the_mask_is_an_error(by_hand, monkeypatch):
    def loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(inputs["completion_ids"]).logits.mean()

    patched(monkeypatch, "compute_loss", loss)
    trainer = by_hand()
    with pytest.raises(
        RuntimeError, match=r"without calling .*GRPOTrainer\.compute_loss is not TRL's but comes from tests"
    ):
        trainer.train()
    monkeypatch.setitem(sys.modules, "unsloth", None)
    trainer.counts.clear()
    with pytest.raises(RuntimeError, match="Unsloth is imported, and it replaces TRL's trainers"):
        trainer.train()


def ignoring(*names):
    """Return a loss of a library of its own, which reads TRL's inputs but for `names`."""

    def loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        length = inputs["completion_ids"].shape[1]
        logps, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, length, compute_entropy=True)
        advantages = 1.0 if "advantages" in names else inputs["advantages"].reshape(len(logps), -1)
        trained = inputs["completion_mask"] if "tool_mask" in names else inputs["completion_mask"] * inputs["tool_mask"]
        old = inputs.get("old_per_token_logps", logps.detach())
        return -((logps - old).exp() * advantages * trained).sum() / trained.sum()

    return loss


@pytest.mark.parametrize("trainer_class", [SRPOTrainer, SRPOTraceTrainer])
@pytest.mark.parametrize("names", [("tool_mask",), ("advantages",), ("advantages", "tool_mask")])
def test_a_loss_that_does_not_read_what_resets_give_it_is_an_error(by_hand, monkeypatch, trainer_class, names):
    """Like a library's that knows no masks: it would train the prefix without a word."""
    patched(monkeypatch, "_compute_loss", ignoring(*names))
    trainer = by_hand(trainer=trainer_class, config=trainer_class.config_class)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"^The loss did not read {' and '.join(names)}.*_compute_loss is"):
        trainer.train()
    same_weights(trainer.model.state_dict(), before)


def test_a_loss_that_reads_all_of_it_trains(by_hand, monkeypatch):
    patched(monkeypatch, "_compute_loss", ignoring())
    trainer = by_hand(max_steps=2)
    trainer.script = {prompt: texts * 2 for prompt, texts in BY_HAND.items()}
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_training_step_without_the_loss_is_an_error(by_hand, monkeypatch):
    def step(self, model, inputs, num_items_in_batch=None):
        model.train()
        return model(self._prepare_inputs(inputs)["completion_ids"]).logits.mean()

    patched(monkeypatch, "training_step", step)
    with pytest.raises(RuntimeError, match=r"GRPOTrainer\.training_step is not TRL's but comes from tests\.resets"):
        by_hand().train()


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("trainer_class", [SRPOTrainer, SRPOTraceTrainer])
def test_a_subclass_with_a_training_step_of_its_own_is_an_error(by_hand, trainer_class, evaluated):
    class Stepping(trainer_class):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = ignoring("tool_mask")(self, model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = by_hand(trainer=Stepping, config=trainer_class.config_class)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    if evaluated:  # whose losses are TRL's
        trainer.script = {prompt: texts * 20 for prompt, texts in BY_HAND.items()}
        trainer.evaluate(trainer.train_dataset)
    with pytest.raises(RuntimeError, match=r"without calling .*training_step is .*from tests\.resets"):
        trainer.train()
    same_weights(trainer.model.state_dict(), before)


def test_a_batch_with_another_mask_is_an_error(by_hand, monkeypatch):
    theirs = GRPOTrainer._generate_and_score_completions

    def all_trained(self, inputs):
        output = theirs(self, inputs)
        output["tool_mask"][4, 0] = 1
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", all_trained)
    with pytest.raises(RuntimeError, match=r"^The 'tool_mask' of the batch is not the one"):
        by_hand().train()
