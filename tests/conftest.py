"""A tiny random model on disk, and one way to train any trainer on it so that runs can be compared to the bit."""

from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from tests.helpers.scripted import make  # noqa: F401  # a fixture
from tests.helpers.training import QUIET_ON_CPU, digit_reward, save_random_model


@pytest.fixture
def offline(monkeypatch):
    """No hub, whatever the environment says: a name that is not there is refused at once and in the same words."""
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    """Tiny models are faster on one thread, and sums come out the same on machines with any number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Path of a random one-layer Qwen3 with the testbed's tokenizer; a reference model can be loaded from it."""
    path = str(tmp_path_factory.mktemp("models") / "tiny")
    return save_random_model(path, hidden_size=32, num_hidden_layers=1, head_dim=16, max_position_embeddings=64)


@pytest.fixture(scope="session")
def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": ["1+2:", "3*4-5:", "16-0+7:", "9*9:"]})


@pytest.fixture
def run(tiny_model, prompts, tmp_path) -> Callable:
    """Train `trainer_class` for a few off-policy steps and return its weights and its log.

    Learning rate and `num_iterations` are high enough for ratios to leave 1 and for clips to fire.
    """

    def run(trainer_class, config_class=GRPOConfig, *, trainer_options=None, resume=None, **options):
        settings = QUIET_ON_CPU | dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=12,
            num_iterations=3,
            max_steps=6,
            learning_rate=5e-3,
        )
        trainer = trainer_class(
            tiny_model,
            digit_reward,
            args=config_class(**(settings | options)),
            train_dataset=prompts,
            **(trainer_options or {}),
        )
        trainer.train(resume_from_checkpoint=resume)
        weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        return trainer, weights, trainer.state.log_history

    return run
