"""What the package promises from outside: the mathematics does not need TRL, and the docs link to files that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["traces/kernels.py", "traces/metrics.py"])
def test_pure_modules_import_torch_and_the_standard_library_only(module):
    source = (ROOT / "credit_trl" / module).read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, flags=re.M))
    assert imported <= {"torch", "math"}
    code = f"import runpy, sys; runpy.run_path({str(ROOT / 'credit_trl' / module)!r}); sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
