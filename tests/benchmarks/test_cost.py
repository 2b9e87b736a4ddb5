"""What an update costs a GPU beside GRPO's: operations, and waits for what it has computed."""

import json
from functools import cache
from pathlib import Path

import pytest

from benchmarks.cost import operations
from benchmarks.cost.operations import step_operations

STORED = json.loads((Path(operations.__file__).parent / "operations.json").read_text())


@pytest.fixture(scope="module")
def update(tmp_path_factory):
    """The operations of a method's update, of which each is counted once."""
    return cache(lambda method: step_operations(method, str(tmp_path_factory.mktemp("run"))))


@pytest.mark.parametrize(
    ("method", "trls"),
    [
        ("p_trace", "grpo"),
        ("s_trace", "grpo top entropy"),  # TRL's own function finds the threshold, and waits
        ("grpo_lambda both", "grpo"),
        ("grpo_lambda advantage", "grpo"),
        ("srpo 1x4", "grpo"),
    ],
)
def test_nothing_more_is_pulled_off_the_device_between_two_logs(update, method, trls):
    """A log after every second update, of which this is one without: figures for it stay on the device."""
    assert update(trls).waits > 0  # TRL logs every loss: the count would show a wait
    assert update(method).waits == update(trls).waits


@pytest.mark.parametrize("row", STORED["steps"][1:], ids=lambda row: row["method"])
def test_a_trace_adds_few_operations_to_an_update(update, row):
    assert 0 < update(row["method"]).count - update("grpo").count <= row["added"]
