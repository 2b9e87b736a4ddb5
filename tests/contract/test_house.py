"""What the package promises from outside: the mathematics does not need TRL, and the docs link to files that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["kernels", "metrics", "credit"])
def test_pure_modules_import_torch_math_and_each_other_only(module):
    folder = ROOT / "credit_trl" / "traces"
    source = (folder / f"{module}.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\S+)", source, flags=re.M))
    assert imported <= {"torch", "torch.nn.functional", "math", ".kernels"}
    # A package of the same folder without the `__init__` that imports the trainers.
    code = (
        "import importlib, sys, types; package = types.ModuleType('pure'); sys.modules['pure'] = package; "
        f"package.__path__ = [{str(folder)!r}]; importlib.import_module('pure.{module}'); "
        "sys.exit('trl' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
