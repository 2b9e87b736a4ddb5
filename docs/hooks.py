"""MkDocs hook: the pages are written for a reader of the repository, whose links lead out of `docs/` too.

For the site, README.md becomes its first page, the other pages of the top folder become pages, and whatever else a page
links to (a picture, a result, a source file) is served from `repository/`, as it is.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
TOP_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _place(link: str, folder: Path) -> str:
    """Where the file that a page of `folder` links to lies in the site."""
    target = (folder / link).resolve().relative_to(ROOT)
    if target.parts[0] == "docs":
        return target.relative_to("docs").as_posix()
    return TOP_PAGES.get(target.as_posix(), f"repository/{target.as_posix()}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    sources = [ROOT / name for name in TOP_PAGES]
    for source in sources:
        files.append(File.generated(config, TOP_PAGES[source.name], content=source.read_text(encoding="utf-8")))
    for source in [*sources, *(ROOT / "docs").rglob("*.md")]:
        for link in _LINK.findall(source.read_text(encoding="utf-8")):
            place, target = _place(link, source.parent), source.parent / link
            if target.is_file() and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(target.resolve())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = ROOT if page.file.src_uri in TOP_PAGES.values() else (ROOT / "docs" / page.file.src_uri).parent
    here = os.path.dirname(page.file.src_uri)
    return _LINK.sub(lambda match: f"]({os.path.relpath(_place(match[1], folder), here)}", markdown)
