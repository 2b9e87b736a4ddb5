"""Which exact limits hold under TRL's newest release and the last one before its minor version: a table.

    python scripts/trl_drift.py                      # asks the package index which releases there are
    python scripts/trl_drift.py --versions 1.15.0

Each release is put into `.drift/trl-<version>`, without its dependencies, in front of this environment's packages. What
the tests printed is in `.drift/trl-<version>.txt`. Ends with 1 if a release breaks one of the claims.

TRL 1.15 computes log-probabilities by Triton alone. Where torch comes without it, as on a CPU, Triton is put into
`.drift/triton` (1 GB) and its kernels are interpreted, which takes minutes.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
DRIFT = ROOT / ".drift"
CLAIMS = {
    "trace_lambda=0 is GRPO to the bit": ["tests/traces/test_trainer.py::test_lambda_zero_is_grpo_to_the_bit"],
    "trace_lambda=0 on the advantage is too": [
        "tests/traces/test_trainer.py::test_lambda_zero_on_the_advantage_is_grpo_to_the_bit"
    ],
    "SRPO without failures is GRPO to the bit": [
        "tests/resets/test_trainer.py::test_without_failures_srpo_is_grpo_to_the_bit"
    ],
    "the seams are where they were": ["tests/contract/test_seams.py"],
    "docs/reference/options.md knows TRL's fields": [
        "tests/contract/test_trace_options.py::test_the_table_and_this_test_know_every_field_of_trl"
    ],
}
# Not a claim: other releases do other things, and the report says what.
OUTLINES = "tests/contract/test_upstream.py::test_upstream_is_what_was_read"


def releases(listing: str) -> list[str]:
    """The newest release in what `pip index versions` prints, and the newest one of an earlier minor version."""
    found = re.search(r"^Available versions: (.+)$", listing, flags=re.M)
    if found is None:
        raise SystemExit(f"pip names no versions of trl. Is the package index reachable?\n{listing}")
    versions = sorted((Version(one) for one in found[1].split(", ")), reverse=True)
    newest = versions[0]
    earlier = next(one for one in versions if one.release[:2] < newest.release[:2])
    return [str(newest), str(earlier)]


def put(folder: Path, requirement: str) -> None:
    if not folder.is_dir():
        command = ["install", "--quiet", "--no-deps", "--target", str(folder), requirement]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)


def install(version: str) -> Path:
    """The folder of this release, which is made if it is not there. Its requirements must be met here."""
    folder = DRIFT / f"trl-{version}"
    put(folder, f"trl=={version}")
    (distribution,) = metadata.distributions(name="trl", path=[str(folder)])
    for requirement in map(Requirement, distribution.requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            here = metadata.version(requirement.name)
            if here not in requirement.specifier:
                raise SystemExit(f"trl {version} needs {requirement}, and this environment has {here}: upgrade it")
    return folder


def run_tests(folder: Path) -> dict[str, list[bool]]:
    """The outcomes of the tests under the release in `folder`, by the test's name without its parameters."""
    log, results = folder.with_name(folder.name + ".txt"), folder.with_name(folder.name + ".xml")
    results.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [folder, ROOT]
    if importlib.util.find_spec("triton") is None:
        put(DRIFT / "triton", "triton")
        paths.append(DRIFT / "triton")
        environment["TRITON_INTERPRET"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    ask = "from importlib import util; print(util.find_spec('trl').origin)"
    origin = subprocess.run([sys.executable, "-c", ask], env=environment, check=True, capture_output=True, text=True)
    if not origin.stdout.startswith(str(folder)):
        raise SystemExit(f"the tests would take TRL from {origin.stdout.strip()} instead of {folder}")
    nodes = [*(node for nodes in CLAIMS.values() for node in nodes), OUTLINES]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={results}", *nodes]
    with log.open("w") as output:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    outcomes: dict[str, list[bool]] = {}
    if results.exists():
        for case in ElementTree.parse(results).iter("testcase"):
            file = case.get("classname", "").replace(".", "/") + ".py"
            name = f"{file}::{case.get('name', '').partition('[')[0]}"
            outcomes.setdefault(name, []).append(len(case) == 0)  # a child says that it failed or was skipped
    return outcomes


def verdict(outcomes: dict[str, list[bool]], nodes: list[str]) -> tuple[bool, str]:
    """Whether all tests of `nodes` passed, and how many."""
    passed = [one for name, some in outcomes.items() for one in some if name.startswith(tuple(nodes))]
    if not passed:
        return False, "did not run"
    return all(passed), f"{'holds' if all(passed) else 'BROKEN'} ({sum(passed)} of {len(passed)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", help="releases of TRL, instead of the newest two minor versions'")
    versions = parser.parse_args().versions
    if versions is None:
        command = [sys.executable, "-m", "pip", "index", "versions", "trl"]
        versions = releases(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    outcomes = {version: run_tests(install(version)) for version in tqdm(versions, desc="releases of TRL")}

    width = max(map(len, CLAIMS))
    print("\n" + " " * width, *(f"trl {version:<20}" for version in versions))
    for claim, nodes in CLAIMS.items():
        print(f"{claim:<{width}}", *(f"{verdict(outcomes[version], nodes)[1]:<24}" for version in versions))
    for version in versions:
        same, _ = verdict(outcomes[version], [OUTLINES])
        news = "does what the snapshot says" if same else f"differs from the snapshot: see .drift/trl-{version}.txt"
        print(f"trl {version} {news}")
    held = [verdict(one, nodes)[0] for one in outcomes.values() for nodes in CLAIMS.values()]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
