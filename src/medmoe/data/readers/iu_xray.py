"""IU X-ray (Demner-Fushman et al. 2016) as R2Gen parted it: chest X-rays and their reports.

``annotation.json`` holds ``train``, ``val`` and ``test``, each a list of ``{id, report,
image_path}``; pictures lie under ``images/``. A study has two views; the first, frontal, is shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError


class IuXray(KnownSet):
    """The folder ``iu_xray/``."""

    NAME = "iu_xray"
    MARKERS = ("iu_xray/annotation.json",)
    LICENCE = "LicenseRef-Open-i"
    SOURCE = common.Source("https://openi.nlm.nih.gov/faq", "iu_xray")

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return one record per study: the request for its report."""
        content, part = common.read_json(marker), "val" if split == "validation" else split
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise DataError(f"{marker}: no list {part!r} in it; fetch the file again")

        def record(row: dict[str, Any], where: str) -> Record:
            name, report = common.fields(row, ("id", "report"), where).values()
            views = row.get("image_path")
            if not isinstance(views, list) or not views:
                raise DataError(f"{where}: no image_path in the row; every study needs one")
            source = common.image_file(marker.parent / "images", str(views[0]), where)
            image = ImageRecord(f"{self.NAME}/{views[0]}", source, "xray", "chest")
            asked = (f"{self.NAME}/{name}", image, "Write the report of this chest X-ray.", report)
            kind: Any = {"answer_type": "open", "question_type": "report", "task": "caption"}
            return self.record(*asked, split, place=where, **kind)

        rows = ((f"{marker} {part} row {n}", row) for n, row in enumerate(content[part], 1))
        return common.usable(bad.made(rows, record), marker, bad)


SET = IuXray()
