"""The rules that the rooms of the package keep: who imports whom, how long a module is, what needs no TRL."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "credit_trl"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A room imports from rooms of an earlier line, never from its own line or a later one.
FLOORS = (
    {"base", "generation", "testbed"},
    {"traces", "resets", "data"},
    {"rewards", "visualization", "srpo_trace"},  # the last, a module, joins the methods of two rooms
    {"evaluation"},
    {"cli"},
)
BESIDE_THE_ROOMS = {"__init__.py", "py.typed", "srpo_trace.py"}
PURE = (
    "traces/kernels.py", "traces/recurrence.py", "traces/fused.py", "traces/fused_credit.py",
    "traces/credit.py", "traces/trust_region.py", "traces/metrics.py",
)  # fmt: skip
# Rooms and modules of mathematics, which know neither a model nor TRL.
NO_TRL = (
    *PURE,
    "resets/steps.py", "resets/groups.py", "resets/advantages.py", "resets/reset_step.py",
    "resets/localization.py", "resets/rollout.py",
    "resets/seeds.py", "resets/interface.py", "resets/records.py", "resets/metrics.py",
    "base/resume_state.py", "evaluation/estimators.py",
)  # fmt: skip


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports(path: Path, for_types: bool = True) -> set[tuple[str, ...]]:
    """Return the modules of the package that `path` imports, as parts below the package.

    `for_types`: also what it imports for the type checker alone.
    """
    own = path.relative_to(PACKAGE).with_suffix("").parts
    folder, found = own[:-1], set()
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [node for node in tree.body if ast.unparse(node).partition(":")[0] != "if TYPE_CHECKING"]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = folder[: len(folder) - node.level + 1]
                module = (*base, *(node.module or "").split(".")) if node.module else base
            elif (node.module or "").split(".")[0] == "credit_trl":
                module = tuple(node.module.split(".")[1:])
            else:
                continue
            for alias in node.names:  # `from . import module`
                inner = (*module, alias.name)
                found.add(inner if (PACKAGE / Path(*inner)).with_suffix(".py").is_file() else module)
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("credit_trl")}
    return found


def file_of(module: tuple[str, ...]) -> Path:
    path = PACKAGE / Path(*module)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_the_package_holds_rooms_alone():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set().union(*FLOORS) - {"srpo_trace"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == BESIDE_THE_ROOMS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        return  # what joins the rooms
    for module in imports(path):
        assert module and module[0] in set().union(*FLOORS), f"imports {module}, which belongs to no room"
        assert module[0] == parts[0] or floor_of(module[0]) < floor_of(parts[0]), f"imports {'.'.join(module)}"


def test_no_module_imports_itself_by_a_circle():
    graph = {path: {file_of(module) for module in imports(path)} for path in MODULES}
    done, path_so_far = set(), []

    def visit(node: Path) -> None:
        assert node not in path_so_far, [str(step.relative_to(PACKAGE)) for step in [*path_so_far, node]]
        if node not in done:
            path_so_far.append(node)
            for target in graph[node]:
                visit(target)
            path_so_far.pop()
            done.add(node)

    for node in graph:
        visit(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_read_in_one_sitting(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (200 if path.name == "trainer.py" else 250)


def test_the_scripts_are_short_enough_to_be_copied():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 200
    assert len((ROOT / "evaluate.py").read_text().splitlines()) <= 160


@pytest.mark.parametrize("module", PURE)
def test_traces_import_torch_and_the_standard_library_only(module):
    source = (PACKAGE / module).read_text()
    allowed = {"torch", "math", "typing", "importlib"} | ({"triton"} if "fused" in module else set())
    assert set(re.findall(r"^(?:import|from) ([a-zA-Z]\w*)", source, flags=re.M)) <= allowed


@pytest.mark.parametrize("module", NO_TRL)
def test_the_mathematics_knows_no_trl(module):
    """Neither by itself nor through a module of the package that it imports."""
    seen, left = set(), [PACKAGE / module]
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        found = re.findall(r"^(?:import|from) (trl|transformers|peft|vllm)\b", path.read_text(), flags=re.M)
        assert not found, f"{path.relative_to(PACKAGE)} imports {found}"
        left += [file_of(target) for target in imports(path, for_types=False)]


def test_the_kernels_run_without_the_package(tmp_path):
    for name in ("kernels.py", "recurrence.py", "fused.py"):
        (tmp_path / "copied").mkdir(exist_ok=True)
        (tmp_path / "copied" / name).write_text((PACKAGE / "traces" / name).read_text())
    code = "import sys, copied.kernels; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
