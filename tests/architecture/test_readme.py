"""The README tells the truth: its commands exist, its tree is the tree, and it stays short."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from medmoe.cli.main import parser_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/add_a_backbone.md"]
MAX_LINES = 150
FIRST_COMMAND_BEFORE = 40
DATA_SUFFIXES = {".yaml", ".j2", ".csv", ".css", ".gz"}
TARGETS = set(
    re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)


def blocks(text: str, language: str) -> list[str]:
    """Return the contents of the code fences of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """Return every command of a document's shell fences, split into words."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def fault(words: list[str]) -> str:
    """Return why a command cannot be run as it stands, or an empty string."""
    program, *rest = words
    if program == "make":
        unknown = [word for word in rest if "=" not in word and word not in TARGETS]
        return f"no such target: {unknown}" if unknown else ""
    if Path(program).name == "medmoe":
        parser_of(rest[0]).parse_strictly(rest[1:])
        return ""
    return "" if Path(program).name in {"pip", "python", "pre-commit"} else f"what is {program!r}?"


def tree_of(text: str) -> dict[str, str]:
    """Return the paths that a tree of one line per file names, folders with a slash, and texts."""
    (block,) = (block for block in blocks(text, "text") if block.startswith("src/medmoe/"))
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines()[1:]:
        name, _, about = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        assert depth <= len(folders), f"{line!r} stands under no folder"
        folders[depth:] = [name.rstrip("/")]
        found["/".join(folders) + ("/" if name.endswith("/") else "")] = about.strip()
    return found


def folders_in_readme() -> dict[str, str]:
    """Return what the README says of each folder of the package."""
    return {name: about for name, about in tree_of(README).items() if name.endswith("/")}


def modules() -> set[str]:
    """Return the modules there are, by path below the package."""
    source = ROOT / "src" / "medmoe"
    paths = {path for path in source.rglob("*.py") if path.name != "__init__.py"}
    return {path.relative_to(source).as_posix() for path in paths}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_the_document_exists(document: str) -> None:
    found = commands(document)
    assert found
    faults = {" ".join(words): why for words in found if (why := fault(words))}
    assert not faults


def test_targets_that_are_promised_exist() -> None:
    assert {"demo", "test", "check", "fix", "stress", "bench", "bench-quick", "help"} <= TARGETS


def test_python_of_the_readme_compiles_and_uses_names_that_exist() -> None:
    import medmoe

    for block in blocks(README, "python"):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "medmoe"
            ):
                assert hasattr(medmoe, node.attr)
    assert "medmoe.MedMoe.load(" in README
    assert callable(medmoe.MedMoe.load)
    assert callable(medmoe.MedMoe.answer)


def test_readme_is_short_and_runs_something_early() -> None:
    lines = README.splitlines()
    assert len(lines) <= MAX_LINES
    assert lines.index("```bash") + 1 < FIRST_COMMAND_BEFORE


def test_readme_says_of_every_folder_of_modules_what_it_is() -> None:
    source = ROOT / "src" / "medmoe"
    packages = {path.parent.relative_to(source) for path in source.rglob("__init__.py")}
    folders = {f"{package.as_posix()}/" for package in packages - {Path()}}
    said = folders_in_readme()
    assert set(said) == folders, "run `make tree`"
    assert all(said.values())


def test_tree_of_one_line_per_file_is_the_tree() -> None:
    source = ROOT / "src" / "medmoe"
    real = modules()
    for path in source.rglob("*"):
        if path.is_file() and (path.suffix == ".py" or path.suffix in DATA_SUFFIXES):
            parents = path.relative_to(source).parents
            real |= {parent.as_posix() + "/" for parent in parents if parent != Path()}
    assert set(tree_of(FILES)) == real, "run `make tree`"


def test_tree_names_recipes_and_templates_on_the_line_of_their_folder() -> None:
    tree = tree_of(FILES)
    source = ROOT / "src" / "medmoe"
    data = [path for path in source.rglob("*") if path.suffix in DATA_SUFFIXES]
    assert data
    for path in data:
        folder = path.parent.relative_to(source).as_posix() + "/"
        names = re.search(r"\{(.*)\}", tree[folder])
        assert names, f"{folder} names no files: run `make tree`"
        assert path.stem in names.group(1).split(", ")


def test_every_line_of_the_tree_says_something() -> None:
    assert not [name for name, about in tree_of(FILES).items() if not about]


def test_links_of_the_readme_point_at_files_that_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_readme_says_research_use() -> None:
    assert "Research use only, not a medical device." in README
