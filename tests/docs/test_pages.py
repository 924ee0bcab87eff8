"""Links and paths in the documentation lead somewhere, and every page is on the site."""

import re
import tomllib
from pathlib import Path

import pytest

import latentq

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benches/README.md", "benches/RESULTS.md")
]
PAGES += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")]

pytestmark = pytest.mark.skipif(
    not (ROOT / "rust").exists(), reason="there is no source tree next to the installed package"
)


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.read_text()), link


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_paths_that_are_named_exist(page):
    paths = re.findall(
        r"`((?:python|rust|tests|docs|examples|benches|\.github|\.ci)/[\w./-]+)`", (ROOT / page).read_text()
    )
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_tests_that_workflows_name_exist():
    workflows = "".join(file.read_text() for file in (ROOT / ".github" / "workflows").iterdir())
    paths = re.findall(r"\btests/[\w./-]+", workflows)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_layers_of_the_architecture_are_those_of_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert layers == contract["layers"]


def test_every_page_is_on_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    on_site = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    pages = {page.relative_to(ROOT).as_posix().removeprefix("docs/") for page in PAGES} - {"README.md"}
    assert on_site == pages


def test_every_public_name_is_in_the_api_reference():
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "api").iterdir())
    assert [name for name in latentq.__all__ if not re.search(rf"\b{name}\b", reference)] == ["__version__"]


def test_make_prints_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) == set(phony[1].split())
