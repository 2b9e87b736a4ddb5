"""The notebooks run offline from top to bottom, and are stored with outputs that a reader can trust."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from scripts import run_notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Appended to a notebook, which asserts the rest itself: what it found, read back from its last cell.
FOUND = {
    "01_quickstart": "dict(rewards=list(log['reward']), name=GRPOTrainer.__name__)",
    "02_eligibility_traces": "dict(shares=shares.to_dict('split'), wrong=errors[chosen], reward=rewards[chosen])",
    "03_reset_groups": "dict(before=before, after=after, reward=rewards[seed], by_model=by_model, by_oracle=by_oracle)",
    "04_which_method": "dict(settings={k: list(v['methods']) for k, v in settings.items()}, runs=len(pass_rates), "
    "rates=list(pass_rates.values()))",
}


def found(path: Path, tmp_path: Path, parameters: dict) -> dict:
    """What the notebook computes, run as a reader runs it."""
    notebook = nbformat.read(path, as_version=4)
    result = tmp_path / "found.json"
    code = f"import json, pathlib\npathlib.Path({str(result)!r}).write_text(json.dumps({FOUND[path.stem]}))"
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    copy = tmp_path / path.name
    nbformat.write(notebook, copy)
    run_notebooks.execute(copy, parameters)
    return json.loads(result.read_text())


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the kernel: the package of this checkout


@pytest.mark.thorough
def test_the_quickstart_trains(tmp_path):
    got = found(ROOT / "notebooks/01_quickstart.ipynb", tmp_path, {"OFFLINE": True})
    assert got["name"] == "STraceTrainer"
    assert sum(got["rewards"][-3:]) > sum(got["rewards"][:3]) + 0.2  # 192 completions each: a standard error of 0.15
    # Weights of 0.494 B parameters in float32 alone are 1.84 GiB.


@pytest.mark.thorough
def test_the_traces_share_out_the_blame_of_a_failure(tmp_path):
    got = found(ROOT / "notebooks/02_eligibility_traces.ipynb", tmp_path, {})
    shares = dict(zip(got["shares"]["index"], got["shares"]["data"], strict=True))
    assert got["reward"] == 0
    assert "*" in got["shares"]["columns"][got["wrong"] - 1]
    for name in ("P-trace", "GRPO-lambda, recent", "GRPO-lambda, both"):
        # Steps of the same number of tokens, without the answer: the earlier, the more.
        assert shares[name][:5] == sorted(shares[name][:5], reverse=True), name
    assert max(shares["GRPO"][:5]) == pytest.approx(min(shares["GRPO"][:5]))


@pytest.mark.thorough
def test_a_reset_is_learned_from(tmp_path):
    got = found(ROOT / "notebooks/03_reset_groups.ipynb", tmp_path, {})
    assert got["reward"] == 0
    assert got["by_oracle"] in (3, 4)
    assert got["by_model"] in (None, 1, 2, 3, 4, 5, 6)
    assert got["after"] > got["before"] + 0.1  # 512 samples: a standard error of 0.02


@pytest.mark.thorough
def test_the_stored_results_are_shown_and_methods_rerun(tmp_path):
    got = found(ROOT / "notebooks/04_which_method.ipynb", tmp_path, {"BATCHES": 3})
    stored = json.loads((ROOT / "benchmarks/learning_curves/learning_curves.json").read_text())["settings"]
    assert {name: set(methods) for name, methods in got["settings"].items()} == {
        name: set(one["methods"]) for name, one in stored.items()
    }
    assert got["runs"] == 6
    assert all(0.1 < rate < 0.9 for rate in got["rates"])


@BY_NAME
def test_outputs_are_stored_and_clean(path):
    assert path.stat().st_size < 500_000
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "text/html"}
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [
        text
        for output in outputs
        for text in (output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k != "image/png"))
    ]
    for text in texts:
        # A path of the machine, an address in its memory, a traceback, a warning, a bar of progress.
        assert not re.search(r"/(home|root|tmp|work|usr|opt|Users)/|0x[0-9a-f]{6}|Traceback|Warning|\d%\|", text), text


@BY_NAME
def test_the_badge_opens_this_notebook_and_the_same_repository_is_installed(path):
    first, *rest = nbformat.read(path, as_version=4).cells
    assert first.source == run_notebooks.badge(path.name)
    assert f"/blob/main/notebooks/{path.name})" in first.source
    assert [cell.source for cell in rest if "setup" in cell.metadata.get("tags", [])] == [run_notebooks.SETUP.strip()]
    for owner in re.findall(r"github\.com/(\w+/\w+)", run_notebooks.SETUP):
        assert owner == run_notebooks.REPOSITORY


@BY_NAME
def test_no_cell_defines_what_the_library_should(path):
    """Notebooks show the library's functions. Of their own they have at most one that formats."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code" or "setup" in cell.metadata.get("tags", []):
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert "torch" not in ast.unparse(node), node.name
            assert not isinstance(node, ast.ClassDef), node
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("backward", "autograd", "exp", "log", "log_softmax", "cumsum"), node.attr
            # Private names of the library are none of a reader's business.
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                assert not name.startswith("_"), name


def test_every_notebook_is_listed_in_the_readme():
    listed = re.findall(r"\]\(notebooks/(\S+?\.ipynb)\)", (ROOT / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]
