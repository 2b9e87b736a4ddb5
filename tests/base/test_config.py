"""A user's configuration: its class and its later settings reach the trainer, and the object stays the user's."""

import copy
import dataclasses
import json
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTraceConfig,
    SRPOTraceTrainer,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
    TraceConfig,
    TraceTrainer,
)
from tests.helpers.training import QUIET_ON_CPU, digit_reward

TRAINERS = [TraceTrainer, STraceTrainer, GRPOLambdaTrainer, SRPOTrainer, SRPOTraceTrainer]


@dataclass
class UsersConfig(GRPOConfig):
    """What scripts do to `GRPOConfig`: other defaults, fields, properties, methods, derived values."""

    learning_rate: float = 5e-3
    loss_type: str = "dr_grpo"
    project: str = "sums"
    stages: list[str] = field(default_factory=lambda: ["warm up", "train"])

    def __post_init__(self):
        super().__post_init__()
        self.run_id = f"{self.project}-{self.seed}"

    @property
    def double(self) -> float:
        return 2 * self.learning_rate

    def is_stage(self, name: str) -> bool:
        return name in self.stages

    def to_dict(self):
        return super().to_dict() | {"run_id": self.run_id}


@dataclass
class WithAFieldOfOurs(GRPOConfig):
    trace_lambda: float = 0.5


class Undecorated(GRPOConfig):
    def half(self) -> float:
        return self.learning_rate / 2


def settings(folder, **options):
    sizes = dict(per_device_train_batch_size=8, num_generations=8, max_completion_length=12, max_steps=2)
    return QUIET_ON_CPU | dict(output_dir=str(folder)) | sizes | options


def make(trainer_class, args, model, prompts):
    return trainer_class(model, digit_reward, args=args, train_dataset=prompts)


def defaults_of(config) -> dict:
    return {declared.name: declared.default for declared in dataclasses.fields(config)}


def names(config) -> set[str]:
    return set(defaults_of(config))


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_users_class_keeps_working_beside_the_methods_fields(trainer_class, tiny_model, prompts, tmp_path):
    args = UsersConfig(**settings(tmp_path, save_strategy="steps", save_steps=2))
    trainer = make(trainer_class, args, tiny_model, prompts)
    trainer.train()
    config, method = trainer.args, trainer_class.config_class
    assert isinstance(config, UsersConfig) and isinstance(config, method)
    assert (config.double, config.is_stage("train"), config.run_id) == (1e-2, True, "sums-42")
    assert names(config) == names(UsersConfig) | names(method)
    # The user's defaults stay, and what the user's class lacks is the method's.
    assert (config.loss_type, config.project) == ("dr_grpo", "sums")
    assert type(config).__name__ == method.__name__  # refusals say in which class a field is to be set
    assert type(config).__qualname__ == f"{method.__name__}+UsersConfig"
    ours = names(method) - names(GRPOConfig)
    assert ours and all(getattr(config, name) == defaults_of(method)[name] for name in ours)
    assert defaults_of(config) == defaults_of(method) | defaults_of(UsersConfig)

    shown = config.to_dict()
    assert shown["run_id"] == "sums-42" and shown["stages"] == ["warm up", "train"]
    assert {*ours, "project"} <= shown.keys() and {*ours, "project", "run_id"} <= config.to_sanitized_dict().keys()
    assert json.loads(config.to_json_string())["project"] == "sums"
    assert all(name in str(config) for name in ("project", *ours))

    saved = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)
    for again in (saved, pickle.loads(pickle.dumps(config)), copy.copy(config), copy.deepcopy(config)):
        assert type(again) is type(config)
        assert again.to_dict() == shown and again.double == 1e-2
        assert ours <= vars(again).keys()  # a later version's defaults do not change what was saved
        again.learning_rate = 1.0
        assert config.learning_rate == 5e-3


def test_replacing_a_value_makes_an_instance_of_the_same_class(tmp_path):
    args = UsersConfig(**settings(tmp_path, use_cpu=True))
    config = STraceConfig.from_grpo_config(args)
    for given in (args, config):  # as in TRL: the constructor has derived one from the other
        with pytest.raises(ValueError, match=r"generation_batch_size.*steps_per_generation"):
            dataclasses.replace(given, learning_rate=1.0)
    changed = dataclasses.replace(config, learning_rate=1.0, trace_lambda=0.5, generation_batch_size=None)
    assert type(changed) is type(config)
    assert (changed.double, changed.trace_lambda, changed.run_id, config.double) == (2.0, 0.5, "sums-42", 1e-2)
    with pytest.raises(ValueError, match=r"^trace_lambda\b"):
        dataclasses.replace(config, trace_lambda=2.0, generation_batch_size=None)


def test_other_kinds_of_classes(tiny_model, prompts, tmp_path):
    trainer = make(STraceTrainer, WithAFieldOfOurs(**settings(tmp_path)), tiny_model, prompts)
    assert trainer.args.trace_lambda == type(trainer.args).trace_lambda == 0.5
    assert pickle.loads(pickle.dumps(trainer.args)).trace_lambda == 0.5
    trainer = make(STraceTrainer, Undecorated(**settings(tmp_path, learning_rate=4.0)), tiny_model, prompts)
    assert trainer.args.half() == 2.0
    assert type(pickle.loads(pickle.dumps(trainer.args))) is type(trainer.args)
    with pytest.raises(ValueError, match=r"^trace_lambda\b"):
        make(STraceTrainer, WithAFieldOfOurs(**settings(tmp_path), trace_lambda=2.0), tiny_model, prompts)


@pytest.mark.parametrize("config_class", [GRPOConfig, UsersConfig])
@pytest.mark.parametrize("trainer_class", [GRPOTrainer, *TRAINERS])
def test_what_is_set_after_construction_is_honored_as_in_trl(
    trainer_class, config_class, tiny_model, prompts, tmp_path
):
    args = config_class(**settings(tmp_path, max_steps=5, learning_rate=1e-2))
    trainer = make(trainer_class, args, tiny_model, prompts)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    args.max_steps, args.learning_rate, args.logging_steps = 2, 0.0, 2
    trainer.train()
    assert trainer.state.global_step == 2
    assert [entry["step"] for entry in trainer.state.log_history] == [2, 2]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    trainer.args.run_name = "set on the trainer's"
    assert args.run_name == "set on the trainer's"


def test_a_methods_field_that_is_set_after_construction_is_honored_and_checked(tiny_model, prompts, tmp_path):
    args = GRPOConfig(**settings(tmp_path))
    trainer = make(STraceTrainer, args, tiny_model, prompts)
    args.trace_lambda = 0.5
    assert trainer.args.trace_lambda == 0.5
    args.trace_lambda = 1.5
    with pytest.raises(ValueError, match=r"^trace_lambda\b"):
        trainer.train()


def test_one_object_makes_many_trainers_and_stays_the_users(tiny_model, prompts, tmp_path):
    args = UsersConfig(**settings(tmp_path))
    make(GRPOTrainer, args, tiny_model, prompts)
    held = set(vars(args))
    trainers = {trainer_class: make(trainer_class, args, tiny_model, prompts) for trainer_class in TRAINERS}
    assert type(args) is UsersConfig and set(vars(args)) == held
    fields = ("trace_normalize", "trust_region", "negative_advantage_floor")
    expected = {TraceTrainer: TraceConfig, STraceTrainer: STraceConfig, GRPOLambdaTrainer: GRPOLambdaConfig}
    for trainer_class, method in expected.items():
        found = [getattr(trainers[trainer_class].args, name) for name in fields]
        assert found == [getattr(method, name) for name in fields]
    assert not hasattr(trainers[SRPOTrainer].args, "trace_lambda")
    assert isinstance(trainers[SRPOTraceTrainer].args, SRPOTraceConfig)
    make(GRPOTrainer, args, tiny_model, prompts).train()


def test_a_method_config_is_used_itself_and_a_conversion_is_a_copy(tiny_model, prompts, tmp_path):
    args = SRPOConfig(**settings(tmp_path))
    assert make(SRPOTrainer, args, tiny_model, prompts).args is args
    plain = GRPOConfig(**settings(tmp_path))
    config = STraceConfig.from_grpo_config(plain)
    assert type(config) is STraceConfig
    config.learning_rate = 1.0
    assert plain.learning_rate != 1.0
