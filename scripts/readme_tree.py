"""Brings the two file trees up to date with src/medmoe: `make tree`.

docs/files.md has one line per file, README.md one per folder. What a line says about a file is
kept; a new file gets the first sentence of its docstring, to be shortened by hand in docs/files.md.
Recipes and templates are named on the line of their folder in docs/files.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "medmoe"
README, FILES = ROOT / "README.md", ROOT / "docs" / "files.md"
BLOCK = re.compile(r"(?<=```text\n)src/medmoe/.*?(?=```)", re.DOTALL)
COLUMN = 27
DATA_SUFFIXES = {".yaml", ".j2", ".csv", ".css", ".gz"}


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring; for a folder that of its package."""
    file = path / "__init__.py" if path.is_dir() else path
    if file.suffix != ".py" or not file.is_file():
        return ""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<!et al)\.\s", " ".join(doc.split()), maxsplit=1)[0].rstrip(".")


def entries(folder: Path, depth: int = 1) -> Iterator[tuple[str, Path]]:
    """Yield the line's beginning and the path of all that the tree shows, folders first."""
    shown = [path for path in folder.iterdir() if path.name not in {"__init__.py", "__pycache__"}]
    for path in sorted(shown, key=lambda path: (not path.is_dir(), path.name)):
        if path.is_dir() and any(file.is_file() for file in path.rglob("*")):
            yield "  " * depth + path.name + "/", path
            yield from entries(path, depth + 1)
        elif path.is_file() and path.suffix == ".py":
            yield "  " * depth + path.name, path


def described(path: Path, known: str) -> str:
    """Return what the line says after the name: `known`, or else what the file says of itself."""
    text = known or first_sentence(path)
    if not path.is_dir():
        return text
    data = sorted(file.stem for file in path.iterdir() if file.suffix in DATA_SUFFIXES)
    text = text.split("{", maxsplit=1)[0].rstrip(": ")
    return f"{text}: {{{', '.join(data)}}}".lstrip(": ") if data else text


def known_lines(block: str) -> dict[str, str]:
    """Return what a tree of one line per file says, by path below src/medmoe."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines()[1:]:
        name, _, text = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        folders[depth:] = [name.rstrip("/")]
        found["/".join(folders)] = text.strip()
    return found


def by_file(known: dict[str, str]) -> list[str]:
    """Return the tree with one line per file."""
    lines = ["src/medmoe/"]
    for start, path in entries(SOURCE):
        about = described(path, known.get(path.relative_to(SOURCE).as_posix(), ""))
        lines.append(f"{start:<{COLUMN}} {about}".rstrip())
    return lines


def by_folder(known: dict[str, str]) -> list[str]:
    """Return the tree with one line per folder: what it is. Recipes and templates have none."""
    lines = ["src/medmoe/"]
    for start, path in entries(SOURCE):
        if path.is_dir() and any(path.rglob("*.py")):
            about = known.get(path.relative_to(SOURCE).as_posix(), "") or described(path, "")
            lines.append(
                f"{start:<{COLUMN}} {about.split('{', maxsplit=1)[0].rstrip(': ')}".rstrip()
            )
    return lines


def main() -> None:
    """Rewrite both trees."""
    text = FILES.read_text(encoding="utf-8")
    match = BLOCK.search(text)
    if match is None:
        raise SystemExit("docs/files.md has no ```text block that begins with src/medmoe/")
    known = known_lines(match.group())
    for path, lines in ((FILES, by_file(known)), (README, by_folder(known))):
        before, after = BLOCK.split(path.read_text(encoding="utf-8"))
        path.write_text(before + "\n".join(lines) + "\n" + after, encoding="utf-8")


if __name__ == "__main__":
    main()
