"""The wheels of a bundle: what `medmoe serve` needs, in the versions that are installed here.

pip fetches them as they were published; their files must be those that are installed, so that what
was tested here is what is carried. Of torch it is always the build for CPUs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

import medmoe
from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.committed import entry_of

ROOT = "medmoe[serve]"
#: What torch asks for beside a GPU.
_OF_GPU = re.compile(r"(nvidia|cuda)-|(pytorch-)?triton")
#: Of a wheel's files: what pip moves, and what it writes when it installs.
_BY_PIP = re.compile(r"\.data/|-info/(RECORD(\.\w+)?|INSTALLER|REQUESTED|direct_url\.json)$")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel's file, and what is installed of it; ``unpacked`` are the bytes of its files."""

    name: str
    version: str
    path: Path
    dist: Distribution
    sha256: str
    unpacked: int


def needed(root: str = ROOT) -> dict[str, set[str]]:
    """Return what a requirement needs on this machine, itself among it: what each asks for.

    Raises:
        ConfigError: A package of it is not installed.
    """
    found, todo, seen = dict[str, set[str]](), [Requirement(root)], set[str]()
    while todo:
        wanted = todo.pop()
        name = str(canonicalize_name(wanted.name))
        if (key := f"{name}{sorted(wanted.extras)}") in seen:
            continue
        seen.add(key)
        try:
            asked = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            raise ConfigError(f"{name} is not here; install it: pip install '{root}'") from None
        cases = [{"extra": extra} for extra in ("", *wanted.extras)]
        asked = [r for r in asked if r.marker is None or any(map(r.marker.evaluate, cases))]
        if name == "torch":
            asked = [r for r in asked if not _OF_GPU.match(r.name)]
        found.setdefault(name, set()).update(str(canonicalize_name(r.name)) for r in asked)
        todo += asked
    return dict(sorted(found.items()))


def fetch(names: Iterable[str], folder: Path, here: Path | None) -> list[Wheel]:
    """Fetch the wheels of packages by pip, check them, and write that of medmoe.

    Args:
        folder: Where they go; it is made.
        here: A folder that has them; None for the index that pip is set to.

    Raises:
        ConfigError: pip has not found one.
        CheckpointError: A wheel's files are not those that are installed.
    """
    folder.mkdir()
    pins = [f"{name}=={_version(name)}" for name in names if name != "medmoe"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    command += [str(folder), "--disable-pip-version-check", "--only-binary", ":all:", *pins]
    only = {} if here is None else {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": here.absolute().as_uri()}
    done = subprocess.run(command, env=os.environ | only, capture_output=True, text=True)
    if done.returncode:
        said = [line[7:] for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise ConfigError(
            f"the wheels cannot be fetched ({(said or ['pip failed'])[-1].rstrip('.')}); give a "
            "folder that has them by --wheels DIR, or an index in PIP_EXTRA_INDEX_URL: torch's "
            "builds for CPUs have one of their own"
        )
    _own_wheel(folder)
    return [_checked(path) for path in sorted(folder.glob("*.whl"))]


def _version(name: str) -> str:
    version = distribution(name).version
    return f"{version.partition('+')[0]}+cpu" if name == "torch" else version


def _checked(path: Path) -> Wheel:
    """Return a wheel whose files have the SHA-256 of those that are installed."""
    name, version = map(str, parse_wheel_filename(path.name)[:2])
    dist, unpacked = distribution(name), 0
    # A torch for GPUs has other files than its build for CPUs; medmoe's wheel is made of them.
    same = version == dist.version and name != "medmoe"
    here = {str(file): file.hash.value for file in dist.files or () if file.hash}
    with zipfile.ZipFile(path) as wheel:
        for entry in wheel.infolist():
            unpacked += entry.file_size
            if not same or entry.is_dir() or _BY_PIP.search(entry.filename):
                continue
            if here.get(entry.filename) != _digest(wheel.read(entry)):
                raise CheckpointError(
                    f"{path.name}: its {entry.filename} is not what is installed here; install "
                    f"that wheel first: pip install --force-reinstall --no-deps {name}=={version}"
                )
    return Wheel(name, version, path, dist, entry_of(path)["sha256"], unpacked)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _own_wheel(folder: Path) -> None:
    """Write medmoe's wheel of the files that run here, from a wheel or from a checkout alike."""
    dist, package = distribution("medmoe"), Path(medmoe.__file__).parent
    paths = (p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    files = {f"medmoe/{p.relative_to(package).as_posix()}": p.read_bytes() for p in paths}
    info = f"medmoe-{dist.version}.dist-info/"
    facts = (f for f in dist.files or () if str(f).startswith(info) and not _BY_PIP.search(str(f)))
    files |= {str(file): file.read_binary() for file in facts}
    rows = [f"{n},sha256={_digest(data)},{len(data)}\n" for n, data in sorted(files.items())]
    record = {f"{info}RECORD": "".join([*rows, f"{info}RECORD,,\n"]).encode()}
    target = folder / f"medmoe-{dist.version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in (dict(sorted(files.items())) | record).items():
            entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            wheel.writestr(entry, data)
