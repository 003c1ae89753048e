"""Fetching a data set from the Hugging Face hub into the data folder; the one place that downloads.

Only sets whose official home is on the hub, by id and, where one is pinned, by commit. Archives are
unpacked where they lie. Nothing is run: the files are read by the set's own reader afterwards.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from medmoe.data.readers.common import Source
from medmoe.errors import DataError, first_line


def fetch(name: str, source: Source, root: Path) -> Path:
    """Fetch a set into ``root`` and return its folder.

    Raises:
        DataError: The set is not on the hub, or cannot be fetched (offline, gated, gone).
    """
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
