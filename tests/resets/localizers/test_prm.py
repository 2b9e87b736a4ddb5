"""The localizer of a process reward model: what it reads, what it names, and what it refuses."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    Qwen2Config,
    Qwen2ForTokenClassification,
    Qwen3Config,
    Qwen3ForTokenClassification,
)
from transformers.modeling_outputs import TokenClassifierOutput

from benchmarks.localizers.prm import label_solutions, train_prm
from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.resets import FailedCompletion
from credit_trl.resets.localizers.prm import PRMLocalizer
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, answer_reward, make_dataset
from credit_trl.testbed.arithmetic import STEP_DELIMITER
from scripts.pretrain_testbed import build_tokenizer
from tests.helpers.training import QUIET_ON_CPU

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


def small(config_class, **sizes):
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    return config_class(**shape | dict(vocab_size=64, num_key_value_heads=1, pad_token_id=0, num_labels=2) | sizes)


class Scripted(Qwen3ForTokenClassification):
    """Takes a step for right unless it has the token `wrong`, and keeps what it was shown."""

    wrong = delimiter = seen = None

    def forward(self, input_ids, attention_mask):
        self.seen = [*(self.seen or []), (input_ids, attention_mask)]
        logits = torch.zeros(*input_ids.shape, 2)
        for row, ids in enumerate(input_ids.tolist()):
            wrong = False
            for column, token in enumerate(ids):
                wrong = wrong or token == self.wrong
                logits[row, column, 0 if wrong else 1] = 3.0
                wrong = wrong and token != self.delimiter
        return TokenClassifierOutput(logits=logits)


@pytest.fixture
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def scripted(tokenizer):
    model = Scripted(small(Qwen3Config))
    model.wrong, model.delimiter = tokenizer.convert_tokens_to_ids(["7", STEP_DELIMITER])
    return model


def failure(prompt, *steps):
    return FailedCompletion(prompt, steps)


FAILED = [
    failure("1+2:", "1+2=3\n\n", "3+3=7\n\n", "7+1=8\n\n", "#8"),
    failure("1+2:", "1+7=3\n\n", "#3"),
    failure([{"role": "user", "content": "1+2:"}], "1+2=3\n\n", "3+1=4\n\n", "4+1=5\n\n", "5+1=6\n\n", "#7"),
]


def test_the_first_step_below_the_threshold_is_named(scripted, tokenizer):
    localizer = PRMLocalizer(scripted, tokenizer, step_separator="\n\n", batch_size=2)
    assert localizer(FAILED) == [2, 1, 5]
    # The wrong steps of the first are 2 and 3, for 7 is in both, and no step but the last of the third is wrong.
    right = [[round(p, 2) for p in steps] for steps in localizer.step_probabilities(FAILED)]
    assert right == [[0.95, 0.05, 0.05, 0.95], [0.05, 0.95], [0.95, 0.95, 0.95, 0.95, 0.05]]
    assert PRMLocalizer(scripted, tokenizer, step_separator="\n\n", correct_label=0)(FAILED) == [1, 2, 1]
    assert localizer([]) == []


def test_ids_are_those_of_trls_trainer(scripted, tokenizer):
    """Prompt, then each step without its delimiter and with the separator; BOS before all where there is one."""
    localizer = PRMLocalizer(scripted, tokenizer, step_separator="=\n\n", step_delimiter=["8", "\n\n"])
    scripted.seen = None
    localizer([failure("1+2:", "1+2=3\n\n\n\n", "3+5=8")])
    ((ids, mask),) = scripted.seen
    assert tokenizer.decode(ids[0]) == "1+2:1+2=3=\n\n3+5==\n\n" and mask.all()
    tokenizer.bos_token = "#"
    localizer([failure("1+2:", "1+2=3")])
    assert tokenizer.decode(scripted.seen[-1][0][0]) == "#1+2:1+2=3=\n\n"


def test_batches_are_padded_on_the_right_and_hold_what_they_may(scripted, tokenizer):
    localizer = PRMLocalizer(scripted, tokenizer, step_separator="\n\n", batch_size=2)
    scripted.seen = None
    localizer(FAILED)
    assert [tuple(ids.shape) for ids, _ in scripted.seen] == [(2, 4 + 4 * 6 + 3), (1, 4 + 6 + 3)]
    ids, mask = scripted.seen[0]
    assert mask.sum(1).tolist() == [31, 25] and not mask[1, 25:].any() and mask[1, :25].all()
    assert (ids[1, 25:] == 0).all()


def test_without_a_step_below_the_threshold_the_least_likely_is_named(scripted, tokenizer):
    localizer = PRMLocalizer(scripted, tokenizer, step_separator="\n\n", threshold=0.01)
    assert localizer(FAILED) == [2, 1, 5]  # the earliest of equals


def test_what_does_not_fit_is_unknown_and_never_an_error(scripted, tokenizer, monkeypatch):
    """Four tokens of prompt and six for each step."""
    for max_length, named in ((15, 2), (16, 2), (9, None), (3, None), (1, None)):
        assert PRMLocalizer(scripted, tokenizer, step_separator="\n\n", max_length=max_length)(FAILED[:1]) == [named]
    localizer = PRMLocalizer(scripted, tokenizer, step_separator="\n\n", max_length=22)
    # Three steps are read, and found right: the first that was not read is next.
    assert localizer(FAILED[2:]) == [4] and [len(steps) for steps in localizer.step_probabilities(FAILED)] == [3, 2, 3]
    # The model's own limit holds where none is given; and a model without one reads everything.
    scripted.config.max_position_embeddings = 16
    limited = PRMLocalizer(scripted, tokenizer, step_separator="\n\n")
    assert [len(steps) for steps in limited.step_probabilities(FAILED)] == [2, 2, 2]
    assert limited([failure("1+2:"), failure("", ""), failure("?" * 99, "1"), failure("1:", " \n\n", "é<pad>")]) == [
        None,
        1,
        None,
        1,
    ]
    monkeypatch.setattr(Qwen3Config, "get_text_config", lambda self: SimpleNamespace())
    assert PRMLocalizer(scripted, tokenizer).max_length == float("inf")


@pytest.fixture(scope="module")
def prm():
    """A real one, trained for a minute's fraction on what `benchmarks.localizers.prm` trains on."""
    return train_prm(label_solutions(100), steps=100)


@pytest.fixture(scope="module")
def labelled():
    return label_solutions(60, seed=5)


def test_a_trained_model_tells_right_steps_from_wrong_ones(prm, labelled):
    localizer = PRMLocalizer(prm, build_tokenizer(), step_separator=STEP_DELIMITER)
    found = localizer.step_probabilities([FailedCompletion(problem.prompt, steps) for problem, steps, _ in labelled])
    right, truth = np.concatenate(found), np.concatenate([truths for *_, truths in labelled])
    assert len(right) == len(truth) and right[truth].mean() > right[~truth].mean() + 0.4
    failed = [
        (FailedCompletion(problem.prompt, steps), truths.index(False) + 1)
        for problem, steps, truths in labelled
        if False in truths
    ]
    named = localizer([completion for completion, _ in failed])
    assert np.mean([step == error for step, (_, error) in zip(named, failed, strict=True)]) > 0.5


def test_batches_name_what_single_completions_name(prm, labelled):
    """Also in any order, and again."""
    failed = [FailedCompletion(problem.prompt, steps) for problem, steps, _ in labelled]
    single = PRMLocalizer(prm, build_tokenizer(), step_separator=STEP_DELIMITER, batch_size=1)
    batches = PRMLocalizer(prm, build_tokenizer(), step_separator=STEP_DELIMITER, batch_size=16)
    for found, expected in zip(batches.step_probabilities(failed), single.step_probabilities(failed), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert batches(failed) == single(failed) == batches(failed[::-1])[::-1]
    assert batches.step_probabilities(failed) == batches.step_probabilities(failed)


def test_random_states_stay_and_nothing_is_trained_or_cached(prm, tmp_path):
    prm.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    localizer = PRMLocalizer(str(tmp_path), step_separator=STEP_DELIMITER, device="cpu", dtype=torch.float32)
    localizer.model.train().eval()
    assert localizer(FAILED) == PRMLocalizer(prm, build_tokenizer(), step_separator=STEP_DELIMITER)(FAILED)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1:] == (
        random.getstate(),
        str(np.random.get_state()),
    )
    assert not localizer.model.training and not any(p.requires_grad for p in localizer.model.parameters())
    assert localizer.model.config.use_cache is False
    bfloat16 = PRMLocalizer(str(tmp_path), step_separator=STEP_DELIMITER, dtype="bfloat16")
    assert bfloat16.model.dtype == torch.bfloat16 and bfloat16(FAILED)


# --- Qwen2.5-Math-PRM ---


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>", "<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["user", "assistant", "\n"])
    tokenizer.chat_template = CHAT
    return tokenizer


def test_qwens_layout_is_a_chat_with_a_mark_after_each_step(scripted, chat_tokenizer):
    localizer = PRMLocalizer(scripted, chat_tokenizer)
    scripted.seen = None
    localizer(FAILED[1:2])
    ((ids, _),) = scripted.seen
    text = "<|im_start|>user\n1+2:<|im_end|>\n<|im_start|>assistant\n1+7=3<extra_0>#3<extra_0>"
    assert chat_tokenizer.decode(ids[0]) == text
    # The ids are those of the whole text, which is how the model was trained.
    assert ids[0].tolist() == chat_tokenizer(text, add_special_tokens=False)["input_ids"]
    # What a policy writes cannot pass for the end of a step.
    assert len(localizer.step_probabilities([failure("1+2:", "1<extra_0>7", "#<|im_end|>3")])[0]) == 2


def test_qwens_head_loads_by_name_without_code_from_the_hub(chat_tokenizer, tmp_path):
    """From a checkpoint with the names of theirs: a body `model.` and the layers `score.0` and `score.2`."""
    torch.manual_seed(0)
    body = Qwen2ForTokenClassification(small(Qwen2Config))
    body.score = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    body.save_pretrained(tmp_path)
    names = dict(
        AutoConfig="configuration_qwen2_rm.Qwen2RMConfig", AutoModel="modeling_qwen2_rm.Qwen2ForProcessRewardModel"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config |= dict(architectures=["Qwen2ForProcessRewardModel"], auto_map=names)
    (tmp_path / "config.json").write_text(json.dumps(config))
    chat_tokenizer.save_pretrained(tmp_path)
    localizer = PRMLocalizer(str(tmp_path))
    ids = torch.tensor([chat_tokenizer("<extra_0>1+2<extra_0>")["input_ids"]])
    torch.testing.assert_close(localizer.model(input_ids=ids).logits, body.eval()(input_ids=ids).logits)
    assert localizer.chat_template and localizer(FAILED) == PRMLocalizer(body, chat_tokenizer)(FAILED)


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold is a probability"),
        ({"threshold": 1.0}, "threshold is a probability"),
        ({"threshold": "0.5"}, "threshold must be a number"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"max_length": 0}, "max_length must be an integer of at least 1"),
        ({"correct_label": 2}, "correct_label must be 0 or 1"),
        ({"tokenizer": None}, "needs the tokenizer"),
        ({"step_separator": ""}, "step_separator=''"),
        ({"chat_template": True}, "and this one has none"),
    ],
)
def test_options_that_cannot_work_are_refused(scripted, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        PRMLocalizer(scripted, **{"tokenizer": tokenizer} | options)


def test_a_template_without_the_assistants_turn_is_refused(scripted, chat_tokenizer):
    chat_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="writes the assistant's turn"):
        PRMLocalizer(scripted, chat_tokenizer)


def test_models_without_a_two_class_head_are_refused(tiny_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM returns \(1, 1, 32\) for 1 token"):
        PRMLocalizer(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer, step_separator="\n\n")
    three = AutoModelForTokenClassification.from_config(small(Qwen3Config, num_labels=3))
    with pytest.raises(ValueError, match=r"returns \(1, 1, 3\)"):
        PRMLocalizer(three, tokenizer, step_separator="\n\n")
    with pytest.raises(
        ValueError, match=r"is no token-classification model: its checkpoint lacks score\.bias, score\.w"
    ):
        PRMLocalizer(tiny_model)  # a causal language model by name would get a random head


def test_partitioned_parameters_are_refused(scripted, tokenizer):
    scripted.score.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="are partitioned"):
        PRMLocalizer(scripted, tokenizer)


# --- in the trainer ---


def test_a_run_resets_to_the_steps_that_it_names(tmp_path, prm):
    localizer = PRMLocalizer(prm, build_tokenizer(), step_separator=STEP_DELIMITER)
    weights = {name: value.clone() for name, value in prm.state_dict().items()}
    asked = []

    def kept(failed):
        asked.extend(zip(failed, localizer(failed), strict=True))
        return [step for _, step in asked[-len(failed) :]]

    args = SRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=44,
        max_steps=2,
        localization_template=LOCALIZATION_TEMPLATE,
        **QUIET_ON_CPU,
    )
    trainer = SRPOTrainer(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(8), localizer=kept)
    trainer.train()
    assert asked and all(1 <= step <= len(completion.steps) for completion, step in asked)
    seeds = [record.seed for record in trainer.rollout_records if record.seed is not None]
    named = {completion.steps: step for completion, step in asked}
    assert seeds and all(seed.first_error == seed.reset.step == named[seed.steps] for seed in seeds)
    assert all(torch.equal(value, weights[name]) for name, value in prm.state_dict().items())
