"""Write the sources of the site: `make docs` builds them. The pages are written for a reader of the repository.

For the site README.md becomes the first page, the other pages of the top folder become pages, and whatever else a page
links to (a picture, a result, a source file) lies under `repository/`, Markdown as a page and the rest as it is. The
site's generator knows nothing of this: it gets a folder of Markdown.
"""

import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# A link or picture of Markdown, or a picture in HTML.
LINK = re.compile(r"""(?<=\]\()(?!https?:|#)[^)#\s]+|(?<=\bsrc=")[^"\s]+|(?<=\bsrcset=")[^"\s]+""")


def place(link: str, folder: Path) -> str:
    """Return where the file that a page of `folder` links to lies in the site."""
    target = (folder / link).resolve().relative_to(ROOT)
    if target.parts[0] == "docs":
        return target.relative_to("docs").as_posix()
    return TOP_PAGES.get(target.as_posix(), f"repository/{target.as_posix()}")


def turned(text: str, folder: Path, here: str) -> str:
    """Return the text of a page of `folder` with the links that it needs in the folder `here` of the site."""
    return LINK.sub(lambda match: os.path.relpath(place(match[0], folder), here), text)


def write_sources(output: Path) -> None:
    """Write every page to the folder `output` with its links turned, and copy what the pages link to."""
    shutil.rmtree(output, ignore_errors=True)
    pages = {ROOT / name: page for name, page in TOP_PAGES.items()}
    pages |= {path: path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    waiting = list(pages.items())
    for source, page in waiting:  # which grows: Markdown that a page links to is a page, too
        text = source.read_text(encoding="utf-8")
        for link in LINK.findall(text):
            target, copy = (source.parent / link).resolve(), place(link, source.parent)
            if target in pages or not target.is_file():
                continue
            if target.suffix == ".md":
                pages[target] = copy
                waiting.append((target, copy))
            else:
                (output / copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target, output / copy)
        (output / page).parent.mkdir(parents=True, exist_ok=True)
        (output / page).write_text(turned(text, source.parent, os.path.dirname(page)), encoding="utf-8")


if __name__ == "__main__":
    write_sources(ROOT / "build" / "docs")
