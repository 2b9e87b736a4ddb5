"""Run the notebooks offline, from top to bottom, and store them with their outputs: `make notebooks`.

    python scripts/run_notebooks.py                                    # all of notebooks/
    python scripts/run_notebooks.py notebooks/03_reset_groups.ipynb

Badges and install cells are written anew from `REPOSITORY`. Progress bars and warnings are not stored, and pictures
are stored small and on white, so that they can be read on a dark page too.
"""

import argparse
import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import NotebookNode
from PIL import Image
from tqdm.auto import tqdm

# A placeholder until the repository is public. No account of GitHub has an underscore in its name, so that until then
# nobody else's code can be installed from there.
REPOSITORY = "credit_trl/credit_trl"
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CLONED = "credit_trl_repository"  # another name than the package, which a folder of that name would hide

SETUP = f"""\
# Install credit_trl if it is missing: from this checkout, or on Colab from a clone of the repository.
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

if find_spec("credit_trl") is None:
    if not Path("../setup.cfg").exists():
        !git clone --quiet --depth 1 https://github.com/{REPOSITORY} {CLONED}
        %cd -q {CLONED}/notebooks
    %pip install --quiet "..[peft,reasoning]"
print("credit_trl", version("credit_trl"), "with TRL", version("trl"))
"""
TIMEOUT = 900  # seconds of a cell
COLORS = 64  # of a stored picture


def badge(name: str) -> str:
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def execute(path: Path, parameters: dict[str, Any]) -> NotebookNode:
    """Return the notebook as it ran with those `parameters` that it has. Raise papermill's error if a cell fails."""
    known = set(papermill.inspect_notebook(str(path)))
    with tempfile.NamedTemporaryFile(suffix=".ipynb") as output:
        return papermill.execute_notebook(
            str(path),
            output.name,
            parameters={name: value for name, value in parameters.items() if name in known},
            cwd=str(NOTEBOOKS),
            execution_timeout=TIMEOUT,
            progress_bar=False,
        )


def small(png: str) -> str:
    """Return a picture, PNG in base64, on white and with at most `COLORS` colors."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    stored = io.BytesIO()
    page.convert("RGB").quantize(COLORS).save(stored, "PNG", optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


def with_outputs(notebook: NotebookNode, ran: NotebookNode) -> NotebookNode:
    """Return `notebook` with the outputs of `ran`, which also has papermill's cell of parameters."""
    outputs = {cell["id"]: cell for cell in ran.cells if cell.cell_type == "code"}
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
        cell.outputs = [output for output in outputs[cell["id"]].outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "execute_result":
                output.execution_count = number
            if "image/png" in data:
                data["image/png"] = small(data["image/png"])
            if {"text/html", "image/png"} & data.keys():
                data.pop("text/plain", None)  # the object's address, or the picture once more
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(NOTEBOOKS.glob("*.ipynb")))
    for path in tqdm(parser.parse_args().notebooks, unit="notebook"):
        notebook = nbformat.read(path, as_version=4)
        _, _, text = notebook.cells[0].source.partition("\n\n")
        notebook.cells[0].source = f"{badge(path.name)}\n\n{text}"
        for cell in notebook.cells:
            if "setup" in cell.metadata.get("tags", []):
                cell.source = SETUP.strip()
        nbformat.write(notebook, path)
        nbformat.write(with_outputs(notebook, execute(path, {"OFFLINE": True})), path)


if __name__ == "__main__":
    main()
