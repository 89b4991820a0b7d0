"""README and docs: links that lead somewhere, commands that exist, and the promises of the front page."""

import dataclasses
import functools
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "models" / "README.md", *DOCS]
RESULTS = sorted((ROOT / "results" / "reference").glob("*/README.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """Returns the page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Returns the names that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: page.parent.name + "-" + page.stem)
def test_relative_links_lead_to_a_file_or_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if heading:
            assert heading in anchors(target), f"{page.name}: {link}"


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of each `python …` and `make …` that the page shows in a block or between backticks."""
    blocks = [block for language, block in FENCED.findall(page.read_text(encoding="utf-8")) if language == "sh"]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose(page))]:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if len(words) > 1 and words[0] in ("python", "make"):
            yield words


@functools.cache
def options_of(name: str) -> frozenset[str]:
    """Returns the options of a script or module: the fields of the dataclass whose command line it reads."""
    module = importlib.import_module(name)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    reader = re.search(r"(?:cli\.(?:run|command)\(main, |tyro\.cli\()(\w+)\)", source)
    assert reader, f"{name} reads no command line"
    settings = getattr(module, reader[1])
    hints = get_type_hints(settings, include_extras=True)
    options = {"--help"}
    for field in dataclasses.fields(settings):
        option = field.name.replace("_", "-")
        options |= {f"--{option}", f"--no-{option}"} | aliases(hints[field.name])
    return frozenset(options)


def imported_as(words: list[str]) -> str:
    """Returns the name under which what `python …` runs can be imported."""
    if words[1] == "-m":
        spec = importlib.util.find_spec(words[2])
        assert spec is not None, f"no module {words[2]}"
        return words[2] if spec.submodule_search_locations is None else f"{words[2]}.__main__"
    path = Path(words[1])
    assert (ROOT / path).is_file(), f"no file {path}"
    return path.stem if path.parts[0] == "benchmarks" else ".".join(path.with_suffix("").parts)


def aliases(hint: Any) -> set[str]:
    """Returns the other names that tyro is told of in a field's annotation."""
    return {alias for extra in getattr(hint, "__metadata__", ()) for alias in getattr(extra, "aliases", None) or ()}


@each_page
def test_commands_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        told = f"{page.name}: {' '.join(words)}"
        if words[0] == "make":
            assert words[1] in targets, told
            continue
        if words[1] == "-c":
            continue
        options = options_of(imported_as(words))
        for argument in words[2:]:
            assert not argument.startswith("--") or argument in options, told
            assert not argument.startswith("configs/") or (ROOT / argument).is_file(), told


def test_the_front_page_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert len(readme.split()) <= 1200
    headings = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    assert {"Install", "Quick start", "Experiments", "Results", "Extend", "Speed", "Contributing"} <= set(headings)
    assert set(re.findall(r"\]\((docs/\w+[\w-]*\.md)", readme)) == {f"docs/{page.name}" for page in DOCS}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_page_opens_with_what_it_answers(page: Path) -> None:
    title, first, *_ = page.read_text(encoding="utf-8").split("\n\n")
    assert title.startswith("# ")
    assert len(first.split()) > 15
    assert "?" in first or first.startswith("This page")


def test_both_lists_of_requirements_agree() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert listed == [*project["dependencies"], "-e ."]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["version"]
