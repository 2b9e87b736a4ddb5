"""The notebooks run offline from top to bottom, and are stored with outputs that a reader can trust."""

import ast
import base64
import io
import json
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from scripts import run_notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Appended to a notebook: what it computed, for the test to look at.
FOUND = {
    "01_quickstart": "dict(name=GRPOTrainer.__name__, before=before, after=after, steps=trainer.state.global_step, "
    "eligible=[log['trace/eligible_fraction'] for log in trainer.state.log_history if 'reward' in log], "
    "rewards=rewards, failed=failed, credit={name: values.tolist() for name, values in credit.items()})",
    "02_eligibility_traces": "dict(shares=shares.to_dict('split'), wrong=errors[chosen], reward=rewards[chosen])",
    "03_reset_groups": "dict(before=before, after=after, reward=rewards[seed], named=named, true=true, log=log)",
    "04_which_method": "dict(settings={name: list(setting['methods']) for name, setting in settings.items()}, "
    "again={label: [outcome['pass_at_1_minus_grpo'][0] for outcome in pair] for label, pair in again.items()})",
}
CURVES = ROOT / "benchmarks/learning_curves"


def found(path: Path, tmp_path: Path, parameters: dict) -> dict:
    """Return what the notebook computes when it runs as a reader runs it."""
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
def test_the_quickstart_trains_and_shows_where_the_credit_goes(tmp_path):
    got = found(ROOT / "notebooks/01_quickstart.ipynb", tmp_path, {"OFFLINE": True})
    assert got["name"] == "STraceTrainer"
    assert got["steps"] == 80
    assert got["after"] > got["before"] + 0.05  # 256 samples each: a standard error of 0.03
    assert 0.15 < sum(got["eligible"]) / len(got["eligible"]) < 0.25  # S-trace's default, from a plain GRPOConfig
    assert got["rewards"][got["failed"]] == 0
    grpo, before, after = got["credit"].values()
    assert max(grpo) == min(grpo) < 0
    for blame in (before, after):
        assert 0 < sum(value < 0 for value in blame) < len(blame) / 2
        assert max(blame) == 0
    assert before != after


@pytest.mark.thorough
def test_the_traces_share_out_the_blame_of_a_failure(tmp_path):
    got = found(ROOT / "notebooks/02_eligibility_traces.ipynb", tmp_path, {})
    shares = dict(zip(got["shares"]["index"], got["shares"]["data"], strict=True))
    assert got["reward"] == 0
    assert "*" in got["shares"]["columns"][got["wrong"] - 1]
    for share in shares.values():
        assert sum(share) == pytest.approx(1, abs=1e-4)
    for name in ("P-trace", "GRPO-lambda"):
        # Steps of the same number of tokens, without the answer: the earlier, the more.
        assert shares[name][:5] == sorted(shares[name][:5], reverse=True), name
    assert max(shares["GRPO"][:5]) == pytest.approx(min(shares["GRPO"][:5]))


@pytest.mark.thorough
def test_a_reset_is_learned_from(tmp_path):
    got = found(ROOT / "notebooks/03_reset_groups.ipynb", tmp_path, {})
    assert got["reward"] == 0
    assert got["true"] in (3, 4)
    assert got["named"] in (None, 1, 2, 3, 4, 5, 6)
    assert got["log"]["reset/seeded_fraction"] > 0
    assert got["after"] > got["before"] + 0.1  # 512 samples: a standard error of 0.02


@pytest.mark.thorough
def test_the_stored_results_are_shown(tmp_path):
    got = found(ROOT / "notebooks/04_which_method.ipynb", tmp_path, {})
    stored = json.loads((CURVES / "learning_curves.json").read_text())["settings"]
    assert got["settings"] == {name: list(setting["methods"]) for name, setting in stored.items()}
    expected = {}
    for path in CURVES.glob("fresh_seeds/*/learning_curves.json"):
        for name, fresh in json.loads(path.read_text())["settings"].items():
            for method, outcome in fresh["methods"].items():
                if method != "grpo" and method in stored[name]["methods"]:
                    pair = (stored[name]["methods"][method], outcome)
                    expected[f"{name}: {method}"] = [both["pass_at_1_minus_grpo"][0] for both in pair]
    assert got["again"] == expected


def test_the_quickstart_trains_within_nine_cells_and_asks_colab_for_a_t4():
    notebook = nbformat.read(ROOT / "notebooks/01_quickstart.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells]
    training = next(number for number, source in enumerate(sources) if "trainer.train()" in source)
    assert training <= 8  # cells before it
    assert "planner" not in "".join(sources) and "memory_plan" not in "".join(sources)
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["colab"]["gpuType"] == "T4"
    # torch says yes for a T4 too, which only emulates bfloat16.
    assert "is_bf16_supported(including_emulation=False)" in sources[training - 3]


@BY_NAME
def test_outputs_are_stored_and_clean(path):
    assert path.stat().st_size < 200_000
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
    for output in outputs:
        if "image/png" in output.get("data", {}):  # dark lines on nothing would be lost on a dark page
            picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
            assert "transparency" not in picture.info and picture.mode in ("P", "RGB")


@BY_NAME
def test_the_badge_opens_this_notebook_and_the_same_repository_is_installed(path):
    first, *rest = nbformat.read(path, as_version=4).cells
    assert first.source.startswith(f"{run_notebooks.badge(path.name)}\n\n# ")
    assert f"/blob/main/notebooks/{path.name})" in first.source
    assert [cell.source for cell in rest if "setup" in cell.metadata.get("tags", [])] == [run_notebooks.SETUP.strip()]
    for owner in re.findall(r"github\.com/(\w+/\w+)", run_notebooks.SETUP):
        assert owner == run_notebooks.REPOSITORY


@BY_NAME
def test_no_cell_defines_what_the_library_should(path):
    """Look for mathematics and private names: notebooks show the library's public functions."""
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
