"""Makes a bundle. The same model, packages and documents give the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, BinaryIO

import medmoe
from medmoe.bundle import FORMAT, SUMS, entry_in_tar
from medmoe.bundle.papers import bill_of_materials, licences
from medmoe.bundle.wheels import Wheel, fetch, needed
from medmoe.errors import ConfigError
from medmoe.files import refused
from medmoe.model.committed import MANIFEST, check_files, entry_of, read_manifest
from medmoe.model.locate import find_model, is_adapter, name_of, refuse_site

_FIX = "copy the model folder again"


def make_bundle(
    source: Path | str,
    out: Path,
    staging: Path,
    wheels: Path | None,
    docs: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write a bundle of a model, whole or not at all, and return what it is.

    Args:
        source: As `find_model` takes it.
        staging: A folder on the disk of ``out`` for what is made on the way; it goes at the end.
        wheels: A folder that has the wheels; None fetches them.
        docs: The documentation's folder; None for that of the checkout medmoe runs from, if any.
        say: Is told how far it is.

    Raises:
        CheckpointError: The model is none, or damaged; a wheel is not what is installed.
        ConfigError: This is not Linux, the model is an adapter, or a folder or a wheel is missing.
        GuardError: The disk is full.
    """
    if sys.platform != "linux":
        raise ConfigError("a bundle holds the wheels of its maker's system; make it on Linux")
    model, needs = find_model(source), needed()
    if is_adapter(model):
        raise ConfigError(f"{model} is an adapter of another model; give a whole model")
    refuse_site(model, "a bundle needs")
    for folder in (wheels, docs):
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give one, or leave its flag out")
    listed = read_manifest(model, _FIX)
    check_files(model, listed, _FIX)
    try:
        shutil.rmtree(staging / "wheels", ignore_errors=True)  # of a make that was killed
        say(f"{len(needs)} wheels, from {wheels or 'the index of pip'} …")
        found = fetch(needs, staging / "wheels", wheels)
        files = {f"wheels/{wheel.path.name}": wheel.path for wheel in found} | _documents(docs)
        files |= {f"model/{name}": model / name for name in (*listed, MANIFEST)}
        texts = {f"licences/{name}": text for name, text in licences(found, model).items()}
        texts["docs/medmoe.md"] = str(metadata("medmoe")["Description"]).encode()
        sums = {name: entry["sha256"] for name, entry in listed.items()}
        texts["sbom.cdx.json"] = bill_of_materials(found, needs, name_of(model), sums).encode()
        pins = (f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in found)
        texts["requirements.lock"] = "".join(pins).encode()
        texts |= _filled(found, sum(p.stat().st_size for p in files.values() if p.suffix != ".whl"))
        _write(staging / "bundle.tar", files, texts)
        os.replace(staging / "bundle.tar", out)
    except OSError as error:
        raise refused(error, f"write {str(out)!r}", "place by --out FILE") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    system = {"python": _python(), "machine": platform.machine()}
    counts = {"files": len(files) + len(texts), "wheels": len(found)}
    return {"out": str(out), **counts, **system, **entry_of(out)}


def _documents(docs: Path | None) -> dict[str, Path]:
    """Return the files of the documentation, but for what is built of it."""
    checkout = Path(medmoe.__file__).parents[2]
    known = checkout / "docs" if (checkout / "pyproject.toml").is_file() else None
    if (folder := docs or known) is None:
        return {}
    paths = {p.relative_to(folder): p for p in folder.rglob("*") if p.suffix in (".md", ".png")}
    return {f"docs/{n.as_posix()}": p for n, p in paths.items() if n.parts[0][0] != "_"}


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _filled(wheels: Sequence[Wheel], need: int) -> dict[str, bytes]:
    """Return README and installer, with what they say of this bundle.

    Args:
        need: Bytes of all but the wheels.
    """
    libc: tuple[int, ...] = (2, 17)
    for wheel in wheels:  # one may name several; it needs the oldest of them
        tags = re.findall(r"manylinux_(\d+)_(\d+)", wheel.path.name)
        libc = max(libc, min((tuple(map(int, tag)) for tag in tags), default=libc))
    need += sum(wheel.unpacked for wheel in wheels) * 3 // 2  # Python compiles them
    values = {
        "PYTHON": _python(),
        "MACHINE": platform.machine(),
        "GLIBC": ".".join(map(str, libc)),
        "KIB": str(need // 1024),
        "MIB": f"{need // 2**20:,}",
        "VERSION": medmoe.__version__,
        "WHEELS": str(len(wheels) - 1),
    }
    texts = {}
    for name in ("install.sh", "README.md"):
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        texts[name] = re.sub("@([A-Z]+)@", lambda found: values[found[1]], text).encode()
    return texts


def _write(path: Path, files: Mapping[str, Path], texts: Mapping[str, bytes]) -> None:
    """Write files, texts and the checksums of all as a tar, sorted, of one date and owner."""
    sums = {name: entry_of(file)["sha256"] for name, file in files.items()}
    sums |= {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    every: dict[str, Path | bytes] = {**files, **texts, SUMS: listed.encode()}
    with path.open("wb") as out:
        with tarfile.open(fileobj=out, mode="w", format=FORMAT) as tar:
            for name, content in sorted(every.items()):
                with _opened(content) as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(0)
                    tar.addfile(entry_in_tar(name, size), file)
        out.flush()
        os.fsync(out.fileno())


def _opened(content: Path | bytes) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
