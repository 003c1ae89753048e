"""Questions and pictures come back for the very records they belong to, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, Record
from medmoe.evaluation.files.known_records import known_records, picture_of, with_question


def bare(record: Record) -> Record:
    """Return what a prediction file knows of a record."""
    image = ImageRecord(record.image.id, Path(record.image.id))
    return replace(record, question="", image=image)


@pytest.fixture(scope="module")
def phantom() -> list[Record]:
    return [r for r in read_phantom("test", 3, seed=5) if r.task == "vqa"]


def test_phantom_pictures_are_drawn_again(phantom: list[Record]) -> None:
    known = known_records([bare(r) for r in phantom], None, phantom_seed=5)
    assert set(known) == {r.id for r in phantom}
    for record in phantom:
        assert with_question(bare(record), known).question == record.question
        picture = picture_of(bare(record), known, None)
        assert picture is not None
        source = record.image.source
        assert isinstance(source, np.ndarray)
        assert np.array_equal(picture[..., 0], source if source.ndim == 2 else source[..., 0])


def test_another_answer_is_another_record(phantom: list[Record]) -> None:
    changed = [replace(bare(r), answer=f"not {r.answer}") for r in phantom]
    assert known_records(changed, None, phantom_seed=5) == {}
    assert picture_of(changed[0], {}, None) is None


def test_an_image_id_never_leaves_the_folder_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.full((20, 20), 7, np.uint8)
    (folder / "images").mkdir()
    inside = (folder / "inside.png", folder / "images" / "one.png")
    for path in (tmp_path / "outside.png", *inside):
        Image.fromarray(pixels).save(path)
    (folder / "broken.png").write_bytes(b"no picture")

    def found(name: str) -> bool:
        image = ImageRecord(name, Path(name))
        record = Record("r", image, "", "yes", "closed", "", "vqa", "", "", "")
        return picture_of(record, {}, folder) is not None

    assert found("inside.png")
    assert found("set/inside.png")
    assert found("set/images/one.png")
    assert not found("../outside.png")
    assert not found(str(tmp_path / "outside.png"))
    assert not found("broken.png")
    assert not found("none.png")


def test_real_records_are_found_by_their_set(shared: Path) -> None:
    from medmoe.data.registry import available, read

    root = shared / "data"
    if not (root.is_dir() and available(root).get("vqa_rad")):
        pytest.skip(f"no VQA-RAD under {root}")
    records = read("vqa_rad", root, "test")[:5]
    known = known_records([bare(r) for r in records], root, phantom_seed=0)
    assert [known[r.id].question for r in records] == [r.question for r in records]
    assert all(picture_of(bare(r), known, None) is not None for r in records)
