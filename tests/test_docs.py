"""Links, files and programs that the documentation names exist; the diagram of the packages is the code's."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.test_imports import ORDER, imports, part, trees

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, spelled as code hosts spell them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if not link.startswith("http")]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_files_and_programs_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    files = re.findall(r"\b(?:metarun|scripts|tests|configs)/[\w/]+\.(?:py|yaml)\b", text)
    programs = [f"scripts/{name}.py" for name in re.findall(r"-m scripts\.(\w+)", text)]
    assert [name for name in files + programs if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_imports_of_examples_resolve(page: str) -> None:
    for module, names in re.findall(r"^from (metarun[\w.]*) import (.+)$", (ROOT / page).read_text(), re.MULTILINE):
        assert [name for name in names.split(", ") if not hasattr(importlib.import_module(module), name)] == []


def test_the_diagram_of_the_packages_is_that_of_the_code() -> None:
    """Each arrow is an import, and each import is an arrow or a path of arrows."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    arrows: dict[str, set[str]] = {name: set() for name in ORDER}
    for source, target in re.findall(r"^    (\w+)(?:\[.*?\])? --> (\w+)", text, re.MULTILINE):
        arrows[source].add(target)
    imported: dict[str, set[str]] = {name: set() for name in ORDER}
    for name, tree in trees().items():
        used = {part(other) for other in imports(tree) if other.startswith("metarun.")}
        imported[name.split(".")[0]] |= used & set(ORDER) - {name.split(".")[0]}
    reached: dict[str, set[str]] = {}
    for name in ORDER:  # those that a package imports come before it
        reached[name] = arrows[name].union(*(reached[target] for target in arrows[name]))
    del imported["__main__"]
    for name, used in imported.items():
        assert arrows[name] <= used, f"{name} does not import {arrows[name] - used}"
        assert used <= reached[name], f"the diagram lacks {name} --> {used - reached[name]}"
