"""The quickstart's memory is measured on its own cells: the texts that are replaced are there, and a run ends."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from benchmarks.cost import quickstart_memory
from benchmarks.cost.quickstart_memory import DISPLAY, HUB_NAME, NO_DISPLAY, NOTEBOOK, OFFLINE, ROOT, STEPS, code_cells


def test_the_cells_differ_from_the_notebook_in_the_replaced_texts_alone():
    replaced = {STEPS: "max_steps=3", HUB_NAME: '"a folder"', OFFLINE: "OFFLINE = True", DISPLAY: NO_DISPLAY}
    install, *cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert "%pip" in install
    for cell, code in zip(cells, code_cells(NOTEBOOK, replaced), strict=True):
        for old, new in replaced.items():
            cell = cell.replace(old, new)
        assert cell == code
        compile(code, "cell", "exec")


@pytest.mark.parametrize("changed", [lambda text: "", lambda text: text + "\n" + text], ids=["gone", "twice"])
@pytest.mark.parametrize("text", [STEPS, HUB_NAME, OFFLINE, DISPLAY])
def test_a_text_that_is_not_there_once_is_an_error(text, changed, tmp_path):
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(text, changed(text))
    copy = tmp_path / NOTEBOOK.name
    nbformat.write(notebook, copy)
    with pytest.raises(ValueError, match=r"not once: adapt quickstart_memory\.py"):
        code_cells(copy, {text: "new"})


def test_a_gpu_under_the_limits_of_a_t4_sends_the_notebook_into_float32(monkeypatch):
    """With the calls of a GPU that has bfloat16; the notebook's own line asks for it."""
    fractions = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: type("H200", (), {"total_memory": 1000}))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    quickstart_memory.act_as_t4(100)
    assert fractions == [0.1]
    line = next(line for code in code_cells(NOTEBOOK, {}) for line in code.splitlines() if line.startswith("BF16 = "))
    namespace = {"GPU": True}
    exec(f"import torch\n{line}", namespace)
    assert namespace["BF16"] is False


@pytest.mark.thorough
def test_a_rehearsal_runs_every_cell(tmp_path):
    output = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.cost.quickstart_memory", "--rehearse", "--steps", "3"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", str(output)], cwd=ROOT, env=environment, check=True, timeout=300)
    found = json.loads(output.read_text())
    assert [row["cell"] for row in found["cells"]] == list(range(1, 8))
    training = found["training"]
    assert training["steps"] == 3 and training["weights"] == ["torch.float32"]
    assert training["largest_batch"]["rows"] == training["batch_size"] == 32
    assert 48 < training["largest_batch"]["tokens"] <= training["possible_tokens"]
