"""Says when the built page is stale: `make check`. The page's own build writes the same hash."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "page"
BUILT = ROOT / "src" / "medmoe" / "serving" / "page" / "built"
_FILES = ("index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.js")


def hash_of_sources() -> str:
    """Return the SHA-256 of the page's sources: names and contents, in the order of the names."""
    paths = [*(PAGE / name for name in _FILES), *(PAGE / "src").iterdir()]
    found = hashlib.sha256()
    for name, path in sorted((path.relative_to(PAGE).as_posix(), path) for path in paths):
        found.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


if __name__ == "__main__":
    if (BUILT / "sources.sha256").read_text().strip() != hash_of_sources():
        sys.exit("src/medmoe/serving/page/built is stale: run `make page`")
