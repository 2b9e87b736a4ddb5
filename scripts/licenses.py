"""The licenses of what `pip install .` brings, as the table of docs/guides/supply.md: read from the installed packages.

    python scripts/licenses.py

The license is the SPDX expression of the package's metadata, or else its classifiers or its short text.
"""

import re
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def runtime(package: str) -> set[str]:
    """The names of everything that `package` needs here to run, without its extras."""
    found: set[str] = set()
    todo = {(package, "")}
    seen = set()
    while todo:
        name, extra = one = todo.pop()
        seen.add(one)
        found.add(name)
        for requirement in map(Requirement, metadata.requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                todo |= {(needed, wanted) for wanted in ("", *requirement.extras)} - seen
    return found - {canonicalize_name(package)}


def license(name: str) -> str:
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [
        one.split(" :: ")[-1] for one in about.get_all("Classifier", []) if one.startswith("License :: OSI A")
    ]
    if classifiers := [one for one in classifiers if one != "OSI Approved"]:
        return ", ".join(classifiers)
    first_line = (about.get("License") or "").strip().split("\n")[0]
    return re.sub(r"\s+", " ", first_line) or "unknown"


def main() -> None:
    print("| package | version | license |\n|---|---|---|")
    for name in sorted(runtime("credit-trl")):
        version = metadata.version(name).partition("+")[0]  # of torch: which devices it was built for
        print(f"| {name} | {version} | {license(name)} |")


if __name__ == "__main__":
    main()
