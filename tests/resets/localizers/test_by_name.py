"""A localizer with a model of its own, made from the fields of the configuration, in the trainer that uses it."""

import re

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


def trainer_of(folder, given=None, delimiter=None, **options):
    args = SRPOConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", num_generations=8, max_completion_length=40,
        per_device_train_batch_size=16, max_steps=1, logging_steps=1, **options,
    )  # fmt: skip
    functions = dict(localizer=given, step_delimiter=delimiter)
    return SRPOTrainer(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(8), **functions)


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


@pytest.mark.parametrize("name", ["/nowhere", "no such name"])
def test_a_model_that_is_not_there_is_named_with_its_field(tmp_path, name):
    with pytest.raises(ValueError, match=f"^localizer_model='{name}' cannot be loaded.* SRPOConfig"):
        trainer_of(tmp_path, localizer="prm", localizer_model=name)


def test_a_judge_without_a_key_says_how_a_configuration_names_a_server(tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r'localizer_kwargs=\{"base_url": \.\.\.\}'):
        trainer_of(tmp_path, localizer="chat", localizer_model="judge")


def test_its_steps_end_as_those_of_the_run(tmp_path, prm):
    trainer = trainer_of(tmp_path, localizer="prm", localizer_model=prm, step_delimiter="=")
    assert trainer._localizer.step_delimiters == ["="]


def test_a_function_that_ends_steps_replaces_the_delimiter(tmp_path, prm):
    """The PRM then reads the steps as the function cut them, but for white space: there is no mark to take off."""

    def halves(text):
        return [len(text) // 2]

    options = dict(localizer="prm", localizer_model=prm)
    localizer = trainer_of(tmp_path, delimiter=halves, **options)._localizer
    assert [localizer._bare(step) for step in ("1+2=\n\n", " 3#")] == ["1+2=", "3#"]
    marked = trainer_of(tmp_path, delimiter=halves, localizer_kwargs={"step_delimiter": "#"}, **options)._localizer
    assert marked._bare(" 3#") == "3"
    with pytest.raises(ValueError, match=r"^step_delimiter='#' would not be used, .* SRPOTrainer\(step_delimiter="):
        trainer_of(tmp_path, delimiter=halves, step_delimiter="#", **options)


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
    ("localizer", "pair", "message"),
    [
        ("chat", {"template": "{problem} {steps} Which?"}, "'template' .* localization_template"),
        ("prm", {"step_delimiter": "="}, "'step_delimiter' .* step_delimiter"),
    ],
)
def test_what_is_given_twice_is_refused(tmp_path, localizer, pair, message):
    """Which of the two holds cannot be known. One of them alone works, whichever it is."""
    fields = dict(localizer=localizer, localizer_model="judge", localizer_kwargs=pair)
    SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **fields)
    twice = dict(localization_template="{problem}{completion}", step_delimiter="#")
    with pytest.raises(ValueError, match=f"^localizer_kwargs has {message}.* SRPOConfig"):
        SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **fields, **twice)


@pytest.mark.parametrize(
    ("localizer", "unread"),
    [
        ("self", []),
        ("random", ["template", "temperature", "max_tokens"]),
        ("prm", ["template", "temperature", "max_tokens"]),
        ("chat", ["temperature", "max_tokens"]),
        (lambda failed: [1] * len(failed), ["template", "temperature", "max_tokens"]),
    ],
)
def test_fields_that_a_localizer_does_not_read_are_named(tmp_path, prm, caplog, localizer, unread):
    options = dict(localization_template="{problem}{steps}", localization_temperature=0.7, localization_max_tokens=9)
    if localizer == "chat":
        pytest.importorskip("openai")
        options["localizer_kwargs"] = {"base_url": "http://localhost:1/v1"}
    given = localizer if callable(localizer) else None
    options |= {} if given else dict(localizer=localizer)
    options |= dict(localizer_model=prm) if localizer in ("prm", "chat") else {}
    trainer_of(tmp_path, given, **options)
    said = [record.getMessage() for record in caplog.records if "localization_" in record.getMessage()]
    assert len(said) == bool(unread)
    assert set(re.findall(r"localization_(\w+)", " ".join(said))) == set(unread)
    assert ("localizer_kwargs" in " ".join(said)) == (localizer == "chat")  # where a judge's own are set
    caplog.clear()
    trainer_of(tmp_path, given, **{name: options[name] for name in options if not name.startswith("localization")})
    assert not any("localization_" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(localizer="random", reset_offset=1), "names no step"),
        (dict(given=lambda failed: [1] * len(failed), localizer="random"), "takes its place"),
        (dict(max_seed_attempts=3), "no completions are drawn"),
    ],
)
def test_fields_without_a_part_in_a_rollout_are_named(tmp_path, caplog, options, reason):
    def notices(**further):
        caplog.clear()
        trainer_of(tmp_path, **options | further)
        return [record.getMessage() for record in caplog.records if "will not read" in record.getMessage()]

    (said,) = notices()
    assert reason in said and [*options][-1] in said
    assert notices(localizer="self", seed_source="fresh") == []  # where each of them has a part


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
