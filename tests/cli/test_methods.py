"""The table of methods: what follows from it, and that a line in it is all that `train.py` needs of a new method."""

import json
import re
import sys
import textwrap
import types
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

import credit_trl
import train
from credit_trl.cli import METHODS, Method

ROOT = Path(__file__).parents[2]


def test_the_page_of_methods_names_every_paper():
    page = (ROOT / "docs" / "methods" / "index.md").read_text()
    for method in METHODS.values():
        assert f"https://arxiv.org/abs/{method.paper}" in page, method.title


@pytest.mark.parametrize("name", METHODS)
def test_the_values_of_a_method_are_fields_of_its_config(name):
    method = METHODS[name]
    assert issubclass(method.trainer, GRPOTrainer) and issubclass(method.config, GRPOConfig)
    known = {spec.name for spec in fields(method.config)}
    assert {*method.options, *method.defaults, *method.testbed} <= known
    if method.trainer is not GRPOTrainer:  # what the command line trains with is what a script imports
        assert method.trainer.config_class is method.config
        assert {method.trainer.__name__, method.config.__name__} <= set(credit_trl.__all__)


EXAMPLE, LINE = (
    textwrap.dedent(block)
    for block in re.findall(r"^    ```python\n(.*?)^    ```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M | re.S)
)


@pytest.fixture
def discount(monkeypatch):
    """The module that CONTRIBUTING.md writes, with its line in the table."""
    module = types.ModuleType("discount")
    monkeypatch.setitem(sys.modules, "discount", module)  # where checkpoints look for the config's class
    exec(EXAMPLE, vars(module))
    for name, method in eval(f"{{{LINE}}}", vars(module) | {"Method": Method}).items():
        monkeypatch.setitem(METHODS, name, method)
    return module


def test_the_example_of_contributing_is_what_it_says(discount):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    got = discount.discounted(torch.tensor([2.0, -1.0]), mask, 0.5)
    assert (got * mask).tolist() == [[0.5, 1.0, 2.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\], got 2"):
        discount.DiscountConfig("out", discount=2, use_cpu=True, bf16=False)


def test_a_line_in_the_table_is_all_that_train_needs(discount, tmp_path, monkeypatch, capsys):
    quick = (
        "--max_steps", "2", "--per_device_train_batch_size", "8", "--steps_per_generation", "1", "--dataset_size", "8",
        "--eval_pass_rate", "false", "--disable_tqdm", "true", "--use_cpu", "true", "--output_dir", str(tmp_path),
    )  # fmt: skip

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *quick])
        train.main()
        history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
        return [(entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]

    plain = run("--method", "grpo")
    assert min(norm for _, norm in plain) > 0
    assert run("--method", "discount", "--discount", "1") == plain
    assert run("--method", "discount") != plain
    assert (tmp_path / "learning_curve.png").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("--method", "discount", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "discount Discounted GRPO (arXiv 1506.02438)" in shown
    assert re.search(r"the method \(Discounted GRPO\): --discount VALUE .*? \(default: 0\.99\)", shown)
    for arguments, message in (
        (
            ("--method", "grpo", "--discount", "0.5"),
            "there is no option 'discount' with --method grpo; it belongs to discount",
        ),
        (("--method", "discount", "--discount", "2"), "discount must be in [0, 1], got 2.0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == f"train.py: error: {message}"
