"""Links between the pages lead to files that exist, in the repository and in the site made from it."""

import re
from pathlib import Path

import pytest
import yaml

from scripts import site_sources

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]


def links(page: Path) -> list[str]:
    text = page.read_text()
    found = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'\bsrc(?:set)?="([^"\s]+)"', text)]
    return [link for link in found if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in links(page):
        assert (page.parent / target).exists(), target


def test_the_site_has_what_its_pages_link_to_and_a_place_for_each_page(tmp_path):
    """The site's generator looks after links and anchors between pages, not after pictures, nor the table of pages."""
    site_sources.write_sources(tmp_path)
    pages = [page for page in tmp_path.rglob("*.md") if not page.is_relative_to(tmp_path / "repository")]
    for page in pages:
        for target in links(page):
            assert (page.parent / target).is_file(), (page, target)
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = re.findall(r"[\w/]+\.md", str(settings["nav"]))
    assert sorted(named) == sorted(page.relative_to(tmp_path).as_posix() for page in pages)
