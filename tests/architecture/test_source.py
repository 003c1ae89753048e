"""Rules that hold for every source file, and for what the repository may contain."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "medmoe"
FILES = sorted(SRC.rglob("*.py"))
#: A question, not a rule: past it a file is cut where a reader finds two thoughts. One that holds a
#: single thought stands below, with that thought.
LONG_FILE_LINES = 400
LONG_FILES = {
    "inference/engine.py": "the one engine: pictures encoded, questions answered, options weighed",
    "model/pretrained.py": "where a backbone comes from, what is refused of it, and its loading",
    "experiments/data.py": "what a run trains on: sets, held-out parts, kept apart, leaks counted",
}
MAX_FUNCTION_LINES = 60
MAX_COMMITTED_BYTES = 1_000_000
#: Names that run code from a file, or that fetch or open what a user's text names.
FORBIDDEN_NAMES = {"load_image", "trust_remote_code", "pickle", "cPickle", "dill", "joblib"}
FORBIDDEN_CALLS = {("np", "save"), ("os", "system")}
#: The one place that opens a pickle, for plain tensors only.
PICKLE_READER = SRC / "model" / "convert" / "source.py"
#: Imported where they are used, in functions, so that Windows can import the package.
UNIX_MODULES = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "termios"}
DATA_SUFFIXES = {".npz", ".npy", ".dcm", ".parquet", ".safetensors", ".bin", ".pt", ".jpeg", ".jpg"}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of every identifier, attribute, keyword and imported module."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Import):
            yield from ((line, part) for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((line, word) for word in words)


def dotted_calls(tree: ast.AST) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield line and `(module, function)` of every call of that form."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name):
                yield node.lineno, (owner.id, node.func.attr)


def unsafe_yaml(tree: ast.AST) -> list[str]:
    """Return the calls of `yaml.load` whose loader is no subclass of `SafeLoader` in this file."""
    safe = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(
            isinstance(base, ast.Attribute) and base.attr == "SafeLoader" for base in node.bases
        )
    }
    return [
        f"line {node.lineno}: yaml.load() without a safe loader"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "yaml.load"
        and not (len(node.args) == 2 and ast.unparse(node.args[1]) in safe)
    ]


def unpickling(tree: ast.AST) -> Iterator[tuple[int, bool]]:
    """Yield line and safety of every `torch.load`: safe is a literal `weights_only=True` alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield node.lineno, words.get("weights_only") == "True" and None not in words


def faults(text: str) -> list[str]:
    """Return what in a source text runs foreign code or opens what a text names."""
    tree = ast.parse(text)
    found = [f"line {line}: {name}" for line, name in names(tree) if name in FORBIDDEN_NAMES]
    found += [
        f"line {line}: {owner}.{function}()"
        for line, (owner, function) in dotted_calls(tree)
        if (owner, function) in FORBIDDEN_CALLS
    ]
    found += [
        f"line {node.lineno}: {node.func.id}()"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"eval", "exec"}
    ]
    found += [f"line {line}: torch.load()" for line, safe in unpickling(tree) if not safe]
    return found + unsafe_yaml(tree)


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from transformers.image_utils import load_image",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "torch.load(path, weights_only=True, **more)",
        "yaml.load(text)",
        "yaml.load(text, yaml.FullLoader)",
        "eval(text)",
    ],
)
def test_the_rule_finds_what_it_forbids(bad: str) -> None:
    assert faults(bad)


@pytest.mark.parametrize(
    "good",
    [
        "model.eval()",
        "torch.loaded",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "class Mine(yaml.SafeLoader): ...\nyaml.load(text, Mine)",
    ],
)
def test_the_rule_lets_harmless_names_pass(good: str) -> None:
    assert not faults(good)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_file_is_documented_and_runs_no_foreign_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module opens by saying what it is"
    assert not faults(text)


def test_long_files_are_those_that_say_why() -> None:
    lines = {path.relative_to(SRC).as_posix(): path.read_text().count("\n") for path in FILES}
    assert {name for name, count in lines.items() if count > LONG_FILE_LINES} == set(LONG_FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_file_can_be_imported_where_modules_of_unix_are_absent(path: Path) -> None:
    tops = ast.parse(path.read_text(encoding="utf-8")).body
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in tops
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not imported & UNIX_MODULES


def test_one_place_reads_pickles() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: len(list(unpickling(tree))) for path, tree in trees.items()} == {
        path: int(path == PICKLE_READER) for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_functions_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


def committed(repository: Path) -> list[Path]:
    """Return the files that git holds; skip where this is no git checkout."""
    done = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "-z"], capture_output=True, check=False
    )
    if done.returncode or not (repository / ".git").exists():
        pytest.skip("not a git checkout: nothing can be said about committed files")
    return [repository / name for name in done.stdout.decode().split("\0") if name]


def test_no_data_and_no_weights_are_committed(repository: Path) -> None:
    files = [path for path in committed(repository) if path.is_file()]
    data = [path.name for path in files if path.suffix.lower() in DATA_SUFFIXES]
    assert not data
    large = [path.name for path in files if path.stat().st_size > MAX_COMMITTED_BYTES]
    assert not large


def test_no_file_of_the_shared_data_is_committed(repository: Path, shared: Path) -> None:
    sizes: dict[int, list[Path]] = {}
    for path in shared.rglob("*"):
        if path.is_file() and path.stat().st_size:
            sizes.setdefault(path.stat().st_size, []).append(path)
    copies = [
        f"{path.relative_to(repository)} = {other.relative_to(shared)}"
        for path in committed(repository)
        if path.is_file()
        for other in sizes.get(path.stat().st_size, [])
        if path.read_bytes() == other.read_bytes()
    ]
    assert not copies
