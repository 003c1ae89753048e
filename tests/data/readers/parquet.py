"""Writes sets in the hub's Parquet layout."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = tuple[int | None, str, str]


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (20, 20), grey).save(buffer, "PNG")
    return buffer.getvalue()


def write_hub(folder: Path, split: str, rows: Sequence[Row]) -> Path:
    """Write ``data/<split>-00000-of-00001.parquet``; an image is a grey level or None."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    images = [None if g is None else {"bytes": png(g), "path": None} for g, _, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array(images, kind),
            "question": [q for _, q, _ in rows],
            "answer": [a for _, _, a in rows],
        }
    )
    pq.write_table(table, folder / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet")
    return folder
