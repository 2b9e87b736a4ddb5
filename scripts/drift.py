"""Print which exact limits hold under the newest releases of TRL and transformers, as a table.

    python scripts/drift.py                          # asks the package index which releases there are
    python scripts/drift.py --versions trl==1.15.0 transformers==5.24.0

By default the newest release of each package and the newest of the minor version before it. Each release is put into
`.drift/<package>-<version>`, in front of this environment's packages, with those of its own requirements that this
environment does not meet. What the tests printed is in `.drift/<package>-<version>.txt`. Ends with 1 if a release
breaks one of the claims.

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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
DRIFT = ROOT / ".drift"
PACKAGES = ("trl", "transformers")
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


@dataclass(frozen=True)
class Release:
    """A release of one of the two packages, and the folder that it is put into."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    @property
    def folder(self) -> Path:
        return DRIFT / f"{self.package}-{self.version}"

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".txt")


def newest_releases(package: str) -> list[Release]:
    """Ask pip for the package's newest release and for the newest one of an earlier minor version."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^Available versions: (.+)$", listing, flags=re.M)
    if found is None:
        raise SystemExit(f"pip names no versions of {package}. Is the package index reachable?\n{listing}")
    versions = sorted(map(Version, found[1].split(", ")), reverse=True)
    earlier = next(version for version in versions if version.release[:2] < versions[0].release[:2])
    return [Release(package, str(version)) for version in (versions[0], earlier)]


def put(folder: Path, *requirements: str) -> None:
    """Install the requirements alone, without theirs, into the folder."""
    command = ["install", "--quiet", "--no-deps", "--target", str(folder), *requirements]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)


def install(release: Release) -> None:
    """Put the release into its folder, if that is not there, with those of its requirements that are not met here."""
    if release.folder.is_dir():
        return
    put(release.folder, f"{release.package}=={release.version}")
    (distribution,) = metadata.distributions(name=release.package, path=[str(release.folder)])
    required = [Requirement(text) for text in distribution.requires or ()]
    required = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    unmet = [one for one in required if metadata.version(one.name) not in one.specifier]
    if unmet:
        put(release.folder, *(f"{one.name}{one.specifier}" for one in unmet))


def environment(release: Release) -> dict[str, str]:
    """Return the environment variables of a run under the release, after a look whether it is really imported."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [release.folder, ROOT]
    if release.package == "trl" and importlib.util.find_spec("triton") is None:
        if not (DRIFT / "triton").is_dir():
            put(DRIFT / "triton", "triton")
        paths.append(DRIFT / "triton")
        variables["TRITON_INTERPRET"] = "1"
    variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    ask = f"from importlib import util; print(util.find_spec('{release.package}').origin)"
    origin = subprocess.run([sys.executable, "-c", ask], env=variables, check=True, capture_output=True, text=True)
    if not origin.stdout.startswith(str(release.folder)):
        raise SystemExit(f"the tests would take {release} from {origin.stdout.strip()} instead of {release.folder}")
    return variables


def run_tests(release: Release) -> dict[str, list[bool]]:
    """Run the tests of the claims under the release and return their outcomes, by name without parameters."""
    results = release.folder.with_name(release.folder.name + ".xml")
    results.unlink(missing_ok=True)
    nodes = [*(node for nodes in CLAIMS.values() for node in nodes), OUTLINES]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={results}", *nodes]
    with release.log.open("w") as output:
        subprocess.run(command, cwd=ROOT, env=environment(release), stdout=output, stderr=subprocess.STDOUT)
    outcomes: dict[str, list[bool]] = {}
    if results.exists():
        for case in ElementTree.parse(results).iter("testcase"):
            file = case.get("classname", "").replace(".", "/") + ".py"
            name = f"{file}::{case.get('name', '').partition('[')[0]}"
            outcomes.setdefault(name, []).append(len(case) == 0)  # a child says that it failed or was skipped
    return outcomes


def verdict(outcomes: dict[str, list[bool]], nodes: list[str]) -> tuple[bool, str]:
    """Return whether all tests of `nodes` passed, and how many."""
    passed = [outcome for name, some in outcomes.items() for outcome in some if name.startswith(tuple(nodes))]
    if not passed:
        return False, "did not run"
    return all(passed), f"{'holds' if all(passed) else 'BROKEN'} ({sum(passed)} of {len(passed)})"


def parse_release(text: str) -> Release:
    package, _, version = text.partition("==")
    if package not in PACKAGES or not version:
        raise argparse.ArgumentTypeError(f"must be trl==VERSION or transformers==VERSION, got {text!r}")
    return Release(package, version)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--versions", nargs="+", type=parse_release, metavar="PACKAGE==VERSION", help="instead of the newest releases"
    )
    releases = parser.parse_args().versions or [one for package in PACKAGES for one in newest_releases(package)]
    outcomes = {}
    for release in tqdm(releases, desc="releases"):
        install(release)
        outcomes[release] = run_tests(release)

    width = max(map(len, CLAIMS))
    print("\n" + " " * width, *(f"{release!s:<24}" for release in releases))
    for claim, nodes in CLAIMS.items():
        print(f"{claim:<{width}}", *(f"{verdict(outcomes[release], nodes)[1]:<24}" for release in releases))
    for release in releases:
        same, _ = verdict(outcomes[release], [OUTLINES])
        log = release.log.relative_to(ROOT)
        print(f"{release} {'does what the snapshot says' if same else f'differs from the snapshot: see {log}'}")
    held = [verdict(found, nodes)[0] for found in outcomes.values() for nodes in CLAIMS.values()]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
