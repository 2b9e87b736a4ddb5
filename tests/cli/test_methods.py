"""The table of methods: what follows from it, and that a line in it is all that `train.py` needs of a new method."""

import json
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from trl import GRPOConfig, GRPOTrainer

import credit_trl
import train
from credit_trl.cli import METHODS, Method

ROOT = Path(__file__).parents[2]


def readme_row(name: str) -> str:
    method = METHODS[name]
    options = "".join(f", `{option}={value!r}`" for option, value in method.options.items() if len(method.options) == 1)
    options = options.replace("'", '"')
    paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})"
    return f"| `{name}` | {method.title} ({paper}) | `{method.trainer.__name__}`{options} | {method.description} |"


def test_the_readme_has_the_table():
    rows = re.findall(r"^\| `\w+` \|.*$", (ROOT / "README.md").read_text(), flags=re.M)
    assert rows == [readme_row(name) for name in METHODS]


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


@dataclass
class LengthConfig(GRPOConfig):
    """A method that exists in this test alone."""

    length_power: float = field(default=1.0, metadata={"help": "Power of a completion's share of the longest length."})


class LengthTrainer(GRPOTrainer):
    def _compute_loss(self, model, inputs):
        lengths = inputs["completion_mask"].sum(1)
        shares = (lengths / self.max_completion_length) ** self.args.length_power
        self._metrics["train"]["length/share"].append(shares.mean().item())
        return super()._compute_loss(model, inputs | {"advantages": inputs["advantages"] * shares})


def test_a_line_in_the_table_is_all_that_train_needs(tmp_path, monkeypatch, capsys):
    line = Method("Length", LengthTrainer, LengthConfig, "0000.00000", "its share", options={"length_power": 2.0})
    monkeypatch.setitem(METHODS, "length", line)
    quick = (
        "--max_steps", "1", "--per_device_train_batch_size", "8", "--steps_per_generation", "1", "--dataset_size", "8",
        "--eval_pass_rate", "false", "--disable_tqdm", "true", "--use_cpu", "true", "--output_dir", str(tmp_path),
    )  # fmt: skip

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", "--method", "length", *arguments, *quick])
        train.main()
        history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
        return history[0]["length/share"], history[0]["loss"]

    share, _ = run()
    plain, _ = run("--length_power", "0")
    assert 0 < share < 1 and plain == 1  # its own option is read, and its default is the table's
    assert (tmp_path / "learning_curve.png").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"the method \(Length\): --length_power VALUE Power of .*? \(default: 2\.0\)", shown)
    monkeypatch.setattr(sys, "argv", ["train.py", "--method", "grpo", "--length_power", "1", *quick])
    with pytest.raises(SystemExit, match=r"it belongs to length$"):
        train.main()
