"""The documentation site: every page is in its contents, its reference knows all of the code."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from tests.architecture.test_readme import blocks, fault

from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES
from medmoe.cli.main import VERBS
from medmoe.config.load import recipe_names
from medmoe.data.registry import READERS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CONTENTS = [
    page
    for tree in re.findall(
        r"^```{toctree}\n(.*?)^```", (DOCS / "index.md").read_text(), re.M | re.S
    )
    for page in tree.splitlines()
    if page and not page.startswith(":")
]


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    pages: dict[str, str] = loaded(ROOT / "scripts" / "docs_reference.py").pages()
    return pages


def test_every_page_stands_in_the_contents_once() -> None:
    pages = {p.relative_to(DOCS).with_suffix("").as_posix() for p in DOCS.rglob("*.md")}
    own = {page for page in pages if not page.startswith("_generated/")} - {"index"}
    assert {page for page in CONTENTS if not page.startswith("_generated/")} == own
    assert len(CONTENTS) == len(set(CONTENTS))


def test_what_is_written_stands_in_the_contents(written: dict[str, str]) -> None:
    named = {
        page.removeprefix("_generated/") for page in CONTENTS if page.startswith("_generated/")
    }
    assert {name.removesuffix(".md") for name in written} <= named


def test_reference_has_every_verb_recipe_backbone_and_set(written: dict[str, str]) -> None:
    for page, names in (
        ("command_line.md", [f"medmoe {verb}" for verb in VERBS]),
        ("recipes.md", [*recipe_names("experiments"), *LANGUAGE_BACKBONES, *VISION_BACKBONES]),
        ("data_sets.md", list(READERS)),
    ):
        assert [name for name in names if f"`{name}`" not in written[page]] == []


def test_rows_of_a_table_have_as_many_cells_as_its_head(written: dict[str, str]) -> None:
    for text in written.values():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            cells = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(cells) == 1, table


def test_cells_of_the_tutorial_are_commands_that_exist_or_python_that_compiles() -> None:
    cells = blocks((DOCS / "tutorial.md").read_text(), r"{code-cell} ipython3")
    assert len(cells) >= 5
    for cell in cells:
        code = re.sub(r"^:tags:.*\n\n", "", cell)
        if code.startswith("%%sh\n"):
            assert [fault(shlex.split(line)) for line in code.splitlines()[1:]] == [""]
        else:
            compile(code, "docs/tutorial.md", "exec")
