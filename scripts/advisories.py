"""Checks pinned packages against a file of advisories in OSV's format, without a network.

    make advisories FILE=all.zip
    python scripts/advisories.py FILE PINS…

FILE is a JSON file of one record or a list of them, or a folder or zip of such files, as the OSV
project publishes for PyPI. PINS are lock files, or pins like `torch==2.13.0`. Each finding is one
line: package, version, advisory, where it is fixed, who pins it. Exit codes: 0 nothing found,
1 found, 2 nothing could be checked.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


class Unchecked(Exception):
    """Why nothing can be said about the pins."""


@dataclass(frozen=True)
class Advisory:
    """What a record says about one package.

    Attributes:
        ranges: Of each range its bounds, as (kind, version).
    """

    package: str
    name: str
    versions: tuple[str, ...]
    ranges: tuple[tuple[tuple[str, str], ...], ...]

    @property
    def fixed(self) -> str:
        """The versions that end a range, in words."""
        ends = [bound for bounds in self.ranges for kind, bound in bounds if kind == "fixed"]
        return f"fixed in {', '.join(ends)}" if ends else "no fixed version"

    def covers(self, version: Version) -> bool:
        """Return whether a version is listed or lies in a range."""
        return any(same(listed, version) for listed in self.versions) or any(
            within(bounds, version) for bounds in self.ranges
        )


def same(listed: str, version: Version) -> bool:
    """Return whether a listed version is this one; some old releases have unreadable versions."""
    try:
        return Version(listed) == version
    except InvalidVersion:
        return False


def within(bounds: tuple[tuple[str, str], ...], version: Version) -> bool:
    """Return whether a version lies in a range; unreadable bounds are taken to enclose it."""
    covered = ("introduced", "0") in bounds  # which stands for "before every release"
    try:
        for bound, kind in sorted((Version(bound), kind) for kind, bound in bounds):
            if version > bound or (version == bound and kind != "last_affected"):
                covered = kind == "introduced"
    except InvalidVersion:
        return True
    return covered


def advisories_of(record: dict[str, Any]) -> Iterator[Advisory]:
    """Yield what a record says about packages of PyPI; nothing if it is withdrawn."""
    name, aliases = record["id"], ", ".join(record.get("aliases", []))
    for entry in record.get("affected", []):
        if entry["package"]["ecosystem"] == "PyPI" and not record.get("withdrawn"):
            yield Advisory(
                package=canonicalize_name(entry["package"]["name"]),
                name=f"{name} ({aliases})" if aliases else name,
                versions=tuple(entry.get("versions", [])),
                ranges=tuple(
                    tuple(bound for event in span["events"] for bound in event.items())
                    for span in entry.get("ranges", [])
                    if span["type"] != "GIT"  # commits are no releases
                ),
            )


def texts_of(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each JSON file that is `file`, or lies in it."""
    if file.is_dir():
        for path in sorted(file.rglob("*.json")):
            yield str(path), path.read_bytes()
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield f"{name} in {file}", archive.read(name)
    else:
        yield str(file), file.read_bytes()


def read(file: Path) -> list[Advisory]:
    """Return all advisories of a file, folder or zip.

    Raises:
        Unchecked: If one of them is not in OSV's format, or the file cannot be read.
    """
    advisories: list[Advisory] = []
    source = str(file)
    try:
        for source, text in texts_of(file):  # noqa: B007 (the handlers below name the last one)
            content = json.loads(text)
            for record in content if isinstance(content, list) else [content]:
                advisories += advisories_of(record)
    except (OSError, zipfile.BadZipFile) as error:
        raise Unchecked(f"{source} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unchecked(
            f"{source} is not in OSV's format ({type(error).__name__}: {error}); "
            "give the records that the OSV project publishes for PyPI"
        ) from error
    return advisories


def pins_of(sources: list[str]) -> dict[str, dict[Version, list[str]]]:
    """Return package -> version -> which of the lock files (or single pins) name it.

    Raises:
        Unchecked: If a lock file cannot be read or a pin is none.
    """
    pins: dict[str, dict[Version, list[str]]] = defaultdict(lambda: defaultdict(list))
    for source in sources:
        try:
            lines = [source] if "==" in source else Path(source).read_text("utf-8").splitlines()
            for line in lines:
                if line[:1].isalnum():  # neither a hash nor a comment
                    need = Requirement(line.removesuffix("\\"))
                    version = Version(str(need.specifier).removeprefix("=="))
                    pins[canonicalize_name(need.name)][version].append(source)
        except (OSError, UnicodeDecodeError, InvalidRequirement, InvalidVersion) as error:
            raise Unchecked(f"{source} is no lock file: {error}") from error
    return pins


def check(file: Path, sources: list[str]) -> list[str]:
    """Return a line for each pin that an advisory covers.

    Raises:
        Unchecked: If nothing could be checked: no advisory names a pinned package.
    """
    pins, advisories = pins_of(sources), read(file)
    named = [advisory for advisory in advisories if advisory.package in pins]
    if not named:
        raise Unchecked(
            f"nothing was checked: none of the {len(advisories)} advisories in {file} "
            f"names one of the {len(pins)} pinned packages"
        )
    print(f"{len(pins)} pinned packages; {len(named)} of {len(advisories)} advisories name one")
    return [
        f"{advisory.package} {version}: {advisory.name}, {advisory.fixed}; "
        f"pinned by {', '.join(where)}"
        for advisory in named
        for version, where in pins[advisory.package].items()
        if advisory.covers(version)
    ]


def main(arguments: list[str]) -> int:
    """Print the findings and return the exit code."""
    if len(arguments) < 2 or not arguments[0]:
        print("give a file of advisories: make advisories FILE=all.zip", file=sys.stderr)
        return 2
    try:
        found = check(Path(arguments[0]), arguments[1:])
    except Unchecked as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(sorted(found)) or "none of them covers a pinned version")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
