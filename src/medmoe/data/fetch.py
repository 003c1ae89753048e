"""Fetching a data set into the data folder, from the Hugging Face hub or where it is published.

From the hub by id and, where one is pinned, by commit. Archives are unpacked where they lie.
Nothing is run: the files are read by the set's own reader afterwards.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.download import Gone, download, fetch_pictures
from medmoe.data.readers.common import Source, fields, json_rows
from medmoe.errors import DataError, first_line

#: Names another server for a set that the hub does not have; for the hub, ``HF_ENDPOINT`` does.
MIRROR_VARIABLE = "MEDMOE_MIRROR"


def fetch(name: str, source: Source, root: Path, bad: BadRows) -> Path:
    """Fetch a set into ``root`` and return its folder.

    Args:
        bad: Receives how many pictures are not to be had.

    Raises:
        DataError: The set can be fetched from nowhere, or not now (offline, gated, gone).
    """
    if source.web is not None:
        return _from_web(name, source, root / source.folder, bad)
    if source.hub is None:
        raise DataError(
            f"{name} is not on the hub: get it from {source.home} and put it under {root}; "
            "`medmoe data info` shows what is looked for"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    folder = root / source.folder
    try:
        snapshot_download(
            source.hub,
            repo_type="dataset",
            revision=source.revision,
            local_dir=folder,
            allow_patterns=list(source.files),
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError) as error:
        raise DataError(
            f"{name}: the hub cannot be reached; fetch {source.hub} on a machine with network, or "
            f"from {source.home}, and copy it to {folder}"
        ) from error
    except HfHubHTTPError as error:
        raise DataError(
            f"{name}: the hub refuses {source.hub} ({first_line(error)}); log in by `hf auth "
            "login` if it is gated"
        ) from error
    for archive in source.archives:
        unpack(folder / archive)
    return folder


def _from_web(name: str, source: Source, folder: Path, bad: BadRows) -> Path:
    """Fetch the files of a set and then the pictures that their rows name."""
    wanted: set[str] = set()
    for file in (source.pictures, *source.files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            try:
                download(f"{os.environ.get(MIRROR_VARIABLE) or source.web}{file}", path)
            except Gone as error:
                raise DataError(f"{name}: {error}; see {source.home}") from None
        if file != source.pictures:
            wanted |= {fields(row, ("image",), where)["image"] for where, row in json_rows(path)}
    missing = fetch_pictures(folder / source.pictures, wanted, folder / "images")
    for reason, count in Counter(missing.values()).items():
        bad.leave_out(f"{name}: no picture ({reason})", count)
    return folder


def unpack(archive: Path) -> None:
    """Unpack a ZIP file beside itself; `zipfile` keeps every entry inside that folder.

    Raises:
        DataError: It is missing or broken.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(archive.parent)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); fetch it again") from error
