"""The pages of `docs/` say what the code does: every metric has its line, every message is the one that is shown."""

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from trl.trainer import grpo_trainer

from credit_trl import (
    GRPOLambdaConfig,
    GRPOLambdaTrainer,
    SRPOConfig,
    SRPOTrainer,
    STraceConfig,
    STraceTrainer,
)
from credit_trl.cli.arguments import parse
from credit_trl.testbed import BASE_MODEL, LOCALIZATION_TEMPLATE, make_dataset
from credit_trl.testbed.arithmetic import answer_reward
from credit_trl.traces import metrics
from scripts.memory_plan import __main__ as memory_plan
from tests.helpers.training import QUIET_ON_CPU
from train import TESTBED

DOCS = Path(__file__).parents[2] / "docs"
METRICS = set(re.findall(r"^\| `([^`]+)` \|", (DOCS / "reference" / "metrics.md").read_text(), flags=re.M))


def with_any_reward(names):
    return {re.sub(r"^rewards/[^/]+/", "rewards/<name>/", name) for name in names}


@pytest.mark.parametrize(
    ("trainer_class", "options"),
    [
        (STraceTrainer, dict(entropy_coef=0.1)),
        (GRPOLambdaTrainer, dict(trace_target="advantage", beta=0.1)),
        (SRPOTrainer, dict(localization_template=LOCALIZATION_TEMPLATE, localization_max_tokens=4)),
    ],
)
def test_every_logged_metric_has_its_line(trainer_class, options, tmp_path):
    settings = QUIET_ON_CPU | dict(per_device_train_batch_size=8, max_completion_length=24, max_steps=1) | options
    args = trainer_class.config_class(str(tmp_path), **settings)
    trainer = trainer_class(str(BASE_MODEL), answer_reward, args=args, train_dataset=make_dataset(8))
    trainer.train()
    logged = with_any_reward(set().union(*trainer.state.log_history))
    assert len(logged) > 30
    assert logged <= METRICS
    if trainer_class is SRPOTrainer:  # the run has failures, so that all of them are there
        assert {name for name in logged if name.startswith("reset/")} == {
            name for name in METRICS if name.startswith("reset/")
        }


def test_the_metrics_in_the_sources_are_those_of_the_page():
    ours = set(re.findall(r'"(trace/\w+)"', inspect.getsource(metrics)))
    assert ours == {name for name in METRICS if name.startswith("trace/")}
    of_trl = re.findall(r'_metrics\[(?:mode|"train")\]\[f?"([^"]+)"\]', inspect.getsource(grpo_trainer))
    assert len(of_trl) > 25
    page = (DOCS / "reference" / "metrics.md").read_text().split("## TRL's own")[1].split("\n## ")[0]
    lines = set(re.findall(r"^\| `([^`]+)` \|", page, flags=re.M))
    assert lines == with_any_reward(of_trl) | {"loss", "profiling/Time taken: <function>"}  # logged by other ways


@pytest.mark.parametrize(
    ("page", "config"), [("s_trace", STraceConfig), ("grpo_lambda", GRPOLambdaConfig), ("srpo", SRPOConfig)]
)
def test_the_guides_name_fields_that_exist(page, config):
    settings = (DOCS / "methods" / f"{page}.md").read_text().split("## Settings")[1].split("## ")[0]
    names = re.findall(r"^\| `(\w+)(?:=[^`]*)?`", settings, flags=re.M)
    assert len(names) > 3
    assert set(names) <= {field.name for field in fields(config)}


def commands_of_the_pages(script: str) -> list[list[str]]:
    """Return the arguments of `script` in every code block of the pages that calls it."""
    pages = [page.read_text().replace("\\\n", " ") for page in (DOCS.parent / "README.md", *DOCS.rglob("*.md"))]
    lines = re.findall(rf"^    (?:python|accelerate) .*?{re.escape(script)}(?!\S)(.*)", "\n".join(pages), flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_scripts_take_the_commands_of_the_pages(monkeypatch, capsys):
    training, planning = commands_of_the_pages("train.py"), commands_of_the_pages("scripts.memory_plan")
    assert len(training) > 10 and len(planning) > 1
    monkeypatch.chdir(DOCS.parent)
    for words in training:
        parse([*words, "--use_cpu", "true", "--bf16", "false"], TESTBED)

    def no_hub(name):
        raise OSError("the hub is not asked")

    monkeypatch.setattr(memory_plan, "load_config", no_hub)
    for words in planning:
        assert memory_plan.main(words) == 2
        assert "the hub is not asked" in capsys.readouterr().err
