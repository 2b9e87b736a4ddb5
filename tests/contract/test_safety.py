"""What the package never does in the trainer's process, read from its source: unpickle, evaluate, trust remote code."""

import ast
import configparser
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from credit_trl import GRPOLambdaConfig, SRPOConfig, STraceConfig

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "credit_trl" / "rewards" / "sandbox"
# These two run inside of the sandbox, as programs of their own: nothing may import them.
INSIDE = {SANDBOX / "remote.py", SANDBOX / "launcher.py"}
SOURCES = sorted({ROOT / "train.py", ROOT / "evaluate.py", *(ROOT / "credit_trl").rglob("*.py")})

UNPICKLE = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
EVALUATE = {"eval", "exec", "compile", "__import__"}
UNSAFE_YAML = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}
EVALUATING_LIBRARIES = {"sympify", "parse_expr", "literal_eval", "read_pickle", "system", "popen"}


def findings(source: str) -> list[str]:
    """What is forbidden in `source`, one line each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"imports {one.name}" for one in node.names if one.name.split(".")[0] in UNPICKLE]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{one.name}" for one in node.names]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLE]
            found += [f"imports {name}" for name in names if name.split(".")[-1] in {"remote", "launcher"}]
            if (node.module or "").split(".")[-1] in {"remote", "launcher"}:
                found.append(f"imports {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name in EVALUATE | UNSAFE_YAML or name.split(".")[-1] in EVALUATING_LIBRARIES:
                found.append(f"calls {name}")
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append("calls torch.load without weights_only=True")
            for option in ("trust_remote_code", "allow_pickle", "shell"):
                if options.get(option) == "True":
                    found.append(f"passes {option}=True to {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated_in_our_process(path):
    found = findings(path.read_text())
    if path in INSIDE:
        found = [one for one in found if one not in ("calls exec", "calls compile", "calls __import__")]
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle.loads"),
        ("import dill as json", "imports dill"),
        ("def f(x):\n    return eval(x)", "calls eval"),
        ("exec(compile(x, '', 'exec'))", "calls exec"),
        ("torch.load(path)", "calls torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "calls torch.load without weights_only=True"),
        ("numpy.load(path, allow_pickle=True)", "passes allow_pickle=True to numpy.load"),
        ("A.from_pretrained(x, trust_remote_code=True)", "passes trust_remote_code=True to A.from_pretrained"),
        ("subprocess.run(x, shell=True)", "passes shell=True to subprocess.run"),
        ("yaml.load(x)", "calls yaml.load"),
        ("sympy.parse_expr(x)", "calls sympy.parse_expr"),
        ("os.system(x)", "calls os.system"),
        ("from .sandbox.remote import main", "imports sandbox.remote"),
        ("from .sandbox import remote", "imports sandbox.remote"),
    ],
)
def test_what_is_forbidden_is_found(source, expected):
    assert expected in findings(source)


def test_what_is_allowed_is_not_found():
    assert findings("import json\nmodel.eval()\nre.compile(x)\ntorch.load(x, weights_only=True)") == []


def test_remote_code_is_trusted_only_where_it_is_asked_for():
    for config in (STraceConfig, GRPOLambdaConfig, SRPOConfig, ModelConfig):
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        assert defaults.get("trust_remote_code", False) is False, config.__name__
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert "trust_remote_code" not in yaml.safe_load(path.read_text()), path.name


def test_the_table_of_licenses_is_of_the_versions_that_are_tested():
    table = (ROOT / "docs" / "guides" / "supply.md").read_text().split("## Licenses")[1]
    rows = re.findall(r"^\| ([\w.-]+) \| (\d[\w.+]*) \| ([^|]+) \|$", table, flags=re.M)
    versions = {name.lower().replace("_", "-"): version for name, version, _ in rows}
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    assert versions.pop("setuptools", None)  # torch asks for it, and pip pins none
    assert versions == {name: pinned[name] for name in versions}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [line for line in setup["options"]["install_requires"].split("\n") if line and not line.startswith("#")]
    assert {re.split(r"[~><=\[ ]", line)[0] for line in lines} <= set(versions)
    assert not [license for *_, license in rows if not license.strip() or "unknown" in license.lower()]
