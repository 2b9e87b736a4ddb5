"""Write the tables of the pages, from the stored results and from the code, so that no figure is copied by hand.

    python -m scripts.docs_tables            # `make docs-tables`: write every table anew

A page gives each table a place between two comments, the first of which names the function that makes the table, with
its arguments behind the name:

    <!-- table: learning_curve rare -->
    <!-- end of table -->

`results.py` and `cost.py` read the JSON under `benchmarks/`, `reference.py` reads the code. A test holds that a page is
what this writes. Figures within sentences are written by hand; `tests/docs/test_figures.py` compares them.
"""

import inspect
import re
from pathlib import Path

from . import cost, reference, results

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TABLES = {
    name: function
    for module in (cost, reference, results)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}
PLACE = re.compile(r"<!-- table: (?P<call>[^\n]+) -->\n.*?<!-- end of table -->", flags=re.S)


def filled(text: str) -> str:
    """Return the text of a page with every table made anew.

    Raises:
        KeyError: a place names no function of `TABLES`.
    """

    def fill(place: re.Match) -> str:
        name, *arguments = place["call"].split()
        return f"<!-- table: {place['call']} -->\n\n{TABLES[name](*arguments)}\n\n<!-- end of table -->"

    return PLACE.sub(fill, text)
