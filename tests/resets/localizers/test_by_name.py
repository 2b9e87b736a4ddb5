"""A localizer with a model of its own, made from the fields of the configuration, in the trainer that uses it."""

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from credit_trl import SRPOConfig, SRPOTrainer
from credit_trl.resets.localizers import ChatLocalizer, PRMLocalizer
from credit_trl.testbed import BASE_MODEL, answer_reward, make_dataset


@pytest.fixture(scope="module")
def prm(tmp_path_factory):
    """A process reward model that takes every step for wrong."""
    folder = tmp_path_factory.mktemp("prm")
    model = AutoModelForTokenClassification.from_pretrained(BASE_MODEL, num_labels=2)
    model.score.weight.data.zero_()
    model.score.bias.data.copy_(torch.tensor([5.0, -5.0]))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(folder)
    return str(folder)


def trainer_of(folder, **options):
    args = SRPOConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", num_generations=8, max_completion_length=40,
        per_device_train_batch_size=16, max_steps=1, logging_steps=1, **options,
    )  # fmt: skip
    return SRPOTrainer(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(8))


def test_a_process_reward_model_by_name_localizes_and_is_not_trained(tmp_path, prm):
    trainer = trainer_of(tmp_path, localizer="prm", localizer_model=prm, localizer_kwargs={"threshold": 0.4})
    localizer = trainer._localizer
    assert isinstance(localizer, PRMLocalizer) and localizer.threshold == 0.4
    before = {name: value.clone() for name, value in localizer.model.state_dict().items()}
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reset/parse_rate"] == 1 and log["reset/step"] == 1 and log["reset/localization_tokens"] == 0
    assert all(torch.equal(before[name], value) for name, value in localizer.model.state_dict().items())
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not trained & {id(parameter) for parameter in localizer.model.parameters()}


def test_its_steps_end_as_those_of_the_run(tmp_path, prm):
    trainer = trainer_of(tmp_path, localizer="prm", localizer_model=prm, step_delimiter="=")
    assert trainer._localizer.step_delimiters == ["="]


def test_a_judge_by_name_is_asked_in_the_words_of_the_configuration(tmp_path):
    pytest.importorskip("openai")
    template = "{problem} {steps} Which?"
    options = {"base_url": "http://localhost:1/v1", "concurrency": 3}
    trainer = trainer_of(
        tmp_path, localizer="chat", localizer_model="judge", localizer_kwargs=options, localization_template=template
    )
    judge = trainer._localizer
    assert isinstance(judge, ChatLocalizer)
    assert (judge.model, judge.template, judge.concurrency) == ("judge", template, 3)


@pytest.mark.parametrize(
    ("localizer", "options", "message"),
    [
        ("chat", {"api_key": "secret"}, "set the environment variable OPENAI_API_KEY"),
        ("chat", {"url": "http://localhost:1/v1"}, r"ChatLocalizer has no url, only base_url"),
        ("prm", {"treshold": 0.4}, "PRMLocalizer has no treshold, only threshold"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(tmp_path, prm, localizer, options, message):
    with pytest.raises(ValueError, match=f"localizer_kwargs: .*{message}") as caught:
        trainer_of(tmp_path, localizer=localizer, localizer_model=prm, localizer_kwargs=options)
    assert "secret" not in str(caught.value)
