"""Coverage-guided fuzzing, by atheris, of the readers that meet a stranger's bytes.

    python -m tests.stress.guided TARGET SECONDS FOLDER

FOLDER keeps the inputs that reach new code, so that another run goes on from them, and an input
that ends a reader in any way but its own error. What atheris prints comes out, and its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

#: A reader that needs longer, in seconds, or more memory, in MiB, counts as a crash.
HANG, MEMORY = 20, 2048
#: Of an input, in bytes: what is found in long ones is found in short ones too, sooner.
LONGEST = 16_384
#: Whose branches guide the search.
WATCHED = ("medmoe.data.intake", "medmoe.serving", "pydicom", "nibabel", "starlette.formparsers")
BOUNDARY = b"cut"


@dataclass(frozen=True, slots=True)
class Target:
    """A reader: what it is given first, and a call that lets only unexpected errors through."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], None]


def targets() -> dict[str, Target]:
    """Return the readers by name."""
    return {
        "dicom": Target(_dicom_seeds, _picture),
        "nifti": Target(_nifti_seeds, _nifti),
        "json": Target(_json_seeds, _json),
        "multipart": Target(_form_seeds, _form),
        "audit": Target(_log_seeds, _log),
    }


def _dicom_seeds() -> list[bytes]:
    from tests.stress.fuzz import originals

    found = [data for data in originals() if data[128:132] == b"DICM" and len(data) <= LONGEST]
    return sorted(found, key=len)[:8]


def _nifti_seeds() -> list[bytes]:
    import numpy as np
    from tests.data import samples

    values = samples.volume((5, 4, 3))
    kinds = (np.int16, np.float32, np.uint8, np.float64)
    upright = np.array([[0, 0, 2, 0], [3, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1.0]])
    return [*(samples.nifti(values.astype(kind)) for kind in kinds), samples.nifti(values, upright)]


def _picture(data: bytes) -> None:
    from medmoe.data.intake.decode import Request, decode
    from medmoe.data.intake.limits import Limits
    from medmoe.errors import ImageError

    with contextlib.suppress(ImageError):
        decode(data, Request(), Limits(max_pixels=2**16, memory_bytes=2**26))


def _nifti(data: bytes) -> None:
    import gzip

    _picture(data)
    _picture(gzip.compress(data, 1, mtime=0))


def _json_seeds() -> list[bytes]:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    question = {
        "role": "user",
        "content": [{"type": "text", "text": "Is it \u00e9 \U0001f600?"}, part],
    }
    whole = {"model": "m", "messages": [question], "temperature": 0.5, "n": 1, "stop": None}
    return [
        json.dumps(whole).encode(),
        json.dumps(whole, ensure_ascii=False).encode(),
        rb'{"a": ["\\\"\u00e9\ud83d\ude00", -1.5e-7, 12345678901234567890, true, null, {}]}',
    ]


def _json(data: bytes) -> None:
    from medmoe.serving.problems import ProblemError
    from medmoe.serving.schema import read_chat

    with contextlib.suppress(ProblemError):
        read_chat(data)


def _form_seeds() -> list[bytes]:
    head = b'Content-Disposition: form-data; name="%s"%s\r\n%s\r\n'
    file = head % (b"file", b'; filename="a.png"', b"Content-Type: image/png\r\n") + b"\x89PNG\r\n"
    field = head % (b"purpose", b"", b"") + b"vision"
    parts = b"--cut\r\n" + field + b"\r\n--cut\r\n" + file + b"\r\n--cut--\r\n"
    star = head % (b"file", b"; filename*=UTF-8''%C3%A9.png", b"")
    return [parts, b"--cut\r\n" + star + b"\r\n--cut--\r\n"]


def _form(data: bytes) -> None:
    """Read a form as an upload is; the first byte says in how many pieces it comes."""
    from starlette.requests import Request

    from medmoe.serving.app import _uploaded
    from medmoe.serving.problems import ProblemError

    size = 1 + (data[0] % 64 if data else 0)

    async def stream() -> AsyncIterator[bytes]:
        for place in range(0, len(data), size):
            yield data[place : place + size]
        yield b""

    kind = b"multipart/form-data; boundary=" + BOUNDARY
    request = Request({"type": "http", "headers": [(b"content-type", kind)]})
    request.stream = stream  # type: ignore[method-assign]
    with contextlib.suppress(ProblemError):
        asyncio.run(_uploaded(request))


KEY = bytes(range(32))


def _log_seeds() -> list[bytes]:
    """Return lines without their codes: `_log` signs them."""
    lines = [
        {"n": 1, "time": "2026-01-01T00:00:00Z", "event": "started", "prev": "0" * 64},
        {"n": 2, "time": "2026-01-01T00:00:01Z", "event": "chat", "status": 200, "seconds": 0.5},
        {"n": 3, "time": "2026-01-01T00:00:02Z", "event": "recovered", "bytes": 7},
    ]
    signed = b"\n".join(json.dumps(line, separators=(",", ":")).encode() for line in lines)
    rotated = json.dumps({"n": 7, "event": "rotated"}).encode()
    return [b"\x01" + signed, b"\0" + signed, b"\x01" + rotated]


def _log(data: bytes) -> None:
    """Check a log; an odd first byte has each line linked to the last and signed, if it can be."""
    from medmoe.errors import DataError
    from medmoe.serving import audit

    folder = Path(_kept_folder().name)
    (folder / "log.key").write_bytes(KEY)
    sign, lines, last = data[:1] > b"" and data[0] % 2 == 1, [], audit._START
    for line in data[1:].split(b"\n"):
        content = None
        if sign:
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(line)
        if isinstance(content, dict):
            content |= {} if data[0] & 2 else {"prev": last}
            with contextlib.suppress(ValueError, RecursionError):
                last = audit._mac(KEY, content)
                line = json.dumps(content | {"mac": last}, separators=(",", ":")).encode()
        lines.append(line)
    (folder / "log").write_bytes(b"\n".join(lines))
    head = audit._head(KEY, max(len(lines) - 1, 0), last)
    (folder / "log.head").write_bytes(data[:99] if data[:1] and data[0] & 4 else head)
    with contextlib.suppress(DataError):
        audit.verify(folder / "log")


@cache
def _kept_folder() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")  # no disk is worn
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def main(name: str, seconds: int, folder: Path) -> None:
    """Fuzz a reader; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(WATCHED)):
        from medmoe.data.intake.decode import prepare
        from medmoe.serving import app, audit, schema  # noqa: F401
    prepare()
    target = targets()[name]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}",
        f"-max_len={LONGEST}", f"-artifact_prefix={folder}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target.read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
