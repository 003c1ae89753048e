"""Files from an address, gone on with where they broke off, and pictures out of archives.

For sets that no hub holds: LLaVA-Med's pictures lie in the archives of articles at PubMed Central.
An archive is fetched, its wanted pictures are taken out, and it is deleted. What is there already
is not fetched again, so a run that was broken off is started again and goes on.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.common import fields
from medmoe.data.readers.tables import rows
from medmoe.errors import DataError
from medmoe.files import write_json

_TRIES, _PAUSE = 5, 2.0  # seconds before the second try, twice that before the third, …
_TIMEOUT = 60.0
_AT_ONCE = 8
#: So many archives in a row that no server answers for: the network is gone, not the archives.
_GIVE_UP = 20
_LARGEST = 2**28  # bytes of a picture
_GONE = (403, 404, 410)
_BROKEN_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class Gone(DataError):
    """The server says that it has no such file."""


class _Damaged(Exception):
    """What has come is not what was sent."""


def download(address: str, path: Path, sha256: str = "") -> None:
    """Fetch a file, whole or not at all; what is there of it (``.part``) is gone on with.

    Args:
        sha256: Of the file, where it is known; the server's own checksum is held to in any case.

    Raises:
        Gone: There is no such file.
        DataError: It cannot be fetched, or keeps coming damaged.
    """
    if not address.startswith(("https://", "http://")):
        raise DataError(f"{address}: not a web address")
    part = path.with_name(f"{path.name}.part")
    for attempt in range(_TRIES):
        time.sleep(_PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            _transfer(address, part, sha256)
            os.replace(part, path)
            return
        except urllib.error.HTTPError as error:
            if error.code in _GONE:
                raise Gone(f"{address}: not there ({error.code})") from None
            if error.code == 416:  # more is here than the server has
                part.unlink(missing_ok=True)
            reason: object = error
        except _Damaged as error:
            part.unlink(missing_ok=True)
            reason = error
        except _BROKEN_OFF as error:
            reason = error
    raise DataError(f"{address}: cannot be fetched ({reason}); run it again to go on")


def _transfer(address: str, part: Path, sha256: str) -> None:
    held = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={held}-"} if held else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
        goes_on = reply.status == 206
        with part.open("ab" if goes_on else "wb") as file:
            shutil.copyfileobj(reply, file)
        said = reply.headers
    length = said.get("Content-Length")
    if length is not None and part.stat().st_size != int(length) + (held if goes_on else 0):
        raise ConnectionError("broken off")
    md5 = said.get("x-ms-blob-content-md5") or (None if goes_on else said.get("Content-MD5"))
    for name, wanted in (("sha256", sha256.lower()), ("md5", md5 and base64.b64decode(md5).hex())):
        if wanted:
            with part.open("rb") as file:
                if hashlib.file_digest(file, name).hexdigest() != wanted:
                    raise _Damaged(f"its {name} is not {wanted}")


def fetch_pictures(listed: Path, wanted: Iterable[str], folder: Path) -> dict[str, str]:
    """Fetch pictures out of archives, those that are not there yet.

    Args:
        listed: JSON lines with ``pair_id`` (the picture's name less ``.jpg``), ``pmc_tar_url``,
            ``image_file_path`` and perhaps ``sha256`` (of the archive).
        wanted: File names, e.g. ``1.jpg``.
        folder: Where they go to.

    Returns:
        Why pictures are not there, by name; the same goes to ``missing.json`` beside the folder.

    Raises:
        DataError: The list is malformed, or the network is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = set(wanted) - {path.name for path in folder.iterdir()}
    missing = dict.fromkeys(sorted(names), "not in the list of pictures")
    archives: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for where, row in rows(listed, BadRows("first")):
        text = fields(row, ("pair_id", "pmc_tar_url", "image_file_path"), where)
        if (name := f"{text['pair_id']}.jpg") in names and Path(name).name == name:
            archive = text["pmc_tar_url"], str(row.get("sha256") or "")
            archives[archive][text["image_file_path"]] = name
            missing[name] = "not reached"
    unanswered = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        todo = [pool.submit(_take, *archive, files, folder) for archive, files in archives.items()]
        for job, files in zip(todo, archives.values(), strict=True):
            try:
                reasons = job.result()
            except Gone:
                reasons = dict.fromkeys(files.values(), "its archive is gone")
            except DataError as error:
                unanswered += 1
                if unanswered >= _GIVE_UP:
                    pool.shutdown(cancel_futures=True)
                    raise
                reasons = dict.fromkeys(files.values(), str(error))
            else:
                unanswered = 0
            for name in files.values():
                missing.pop(name)
            missing |= reasons
    write_json(folder.with_name("missing.json"), missing)
    return missing


def _take(address: str, sha256: str, files: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Fetch an archive, take its pictures out, and return why some could not be."""
    archive = folder.parent / f".{hashlib.sha256(address.encode()).hexdigest()[:24]}.tar.gz"
    for _ in range(2):  # the second time anew: it may have been damaged on the way
        download(address, archive, sha256)
        left, staged = dict(files), {}
        try:
            with gzip.open(archive) as stream, tarfile.open(fileobj=stream) as content:
                for member in content:
                    picture = content.extractfile(member)
                    if member.name in left and picture and member.size <= _LARGEST:
                        name = left.pop(member.name)
                        staged[name] = folder / f".{name}.staging"
                        with staged[name].open("wb") as file:
                            shutil.copyfileobj(picture, file)
                while stream.read(2**20):  # to the checksum at its end
                    pass
            for name, staging in staged.items():
                os.replace(staging, folder / name)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            left, reason = dict(files), f"its archive is damaged ({error})"
        else:
            reason = "not in its archive"
            break
        finally:
            for path in (archive, *staged.values()):
                path.unlink(missing_ok=True)
    return dict.fromkeys(left.values(), reason)
