"""Records to the chat form and back: JSON lines, Parquet, datasets in memory and streamed."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.data.pictures import picture, record
from tests.data.readers.parquet import png
from tests.data.samples import dicom, nifti
from tests.data.test_images import encoded

from medmoe.data import exchange, registry
from medmoe.data.exchange import Target, to_dataset, write_jsonl, write_parquet
from medmoe.data.images import open_image
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Two questions on a file, one on pixels, one on encoded bytes."""
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "scan.jpg"
    path.write_bytes(png(50))
    file = ImageRecord("set/scan.jpg", path, "ct", "chest", {"plane": "axial"})
    pixels = ImageRecord("set/1", picture(1, 40), "mri")
    return [
        record(file, "a"),
        record(file, "b", answer="Größe 3 cm", answer_type="open", references=("3 cm",)),
        record(pixels, "c", task="classification", options=("yes", "no"), split="test"),
        record(ImageRecord("set/2", png(9)), "d", task="caption", licence="CC-BY-4.0"),
        record(pixels, "e", split="test", further=(("Where?", "left"), ("Why?", "no idea"))),
    ]


def pixels_of(image: ImageRecord) -> np.ndarray:
    return np.asarray(open_image(image.source))


def assert_same(found: list[Record], expected: list[Record]) -> None:
    """Everything but where it was read from is the same, pixels too."""
    skipped = {"image", "place", "further_images"}
    names = [f.name for f in fields(Record) if f.name not in skipped]
    for one, other in zip(found, expected, strict=True):
        assert [getattr(one, n) for n in names] == [getattr(other, n) for n in names]
        for name in ("id", "modality", "organ", "labels"):
            assert getattr(one.image, name) == getattr(other.image, name)
        assert (pixels_of(one.image) == pixels_of(other.image)).all()


@pytest.mark.parametrize("target", get_args(Target))
def test_jsonl_comes_back_as_it_was(
    tmp_path: Path, records: list[Record], target: exchange.Target
) -> None:
    path = write_jsonl(records, tmp_path / "out", "set", target)
    found = [r for split in ("train", "test") for r in registry.read(path, tmp_path, split)]
    order = {r.id: n for n, r in enumerate(records)}
    assert_same(sorted(found, key=lambda r: order[r.id]), records)
    assert len({id(r.image) for r in found}) == 3


def test_parquet_holds_the_pictures_and_comes_back_as_it_was(
    tmp_path: Path, records: list[Record]
) -> None:
    path = write_parquet(records, tmp_path / "out" / "set.parquet")
    (tmp_path / "source" / "scan.jpg").unlink()
    assert [p.name for p in path.parent.iterdir()] == ["set.parquet"]
    records[0].image.source.write_bytes(png(50))  # type: ignore[union-attr]
    found = [r for split in ("train", "test") for r in registry.read(path, tmp_path, split)]
    order = {r.id: n for n, r in enumerate(records)}
    assert_same(sorted(found, key=lambda r: order[r.id]), records)


def several(records: list[Record], turn: int) -> Record:
    """Return a conversation on three pictures, the last two before the question of a turn."""
    file, pixels, other = (records[n].image for n in (0, 2, 3))
    further = ((turn, pixels), (turn, other))
    talk = (("Where?", "left"), ("Why?", "no idea"))
    return record(file, "s", split="test", further=talk, further_images=further)


@pytest.mark.parametrize("turn", [0, 2])
@pytest.mark.parametrize("target", ["llama_factory", "swift"])
def test_several_pictures_come_back_in_order_and_where_they_stood(
    tmp_path: Path, records: list[Record], target: exchange.Target, turn: int
) -> None:
    one = several(records, turn)
    path = write_jsonl([one], tmp_path / "out", "set", target)
    parquet = write_parquet([one], tmp_path / "out" / "set.parquet")
    said = json.loads(path.read_text())["messages"]
    assert [turn["content"].count("<image>") for turn in said[::2]] == (
        [3, 0, 0] if turn == 0 else [1, 0, 2]
    )
    for written in (path, parquet):
        (again,) = registry.read(written, tmp_path, "test")
        assert_same([again], [one])
        assert [place for place, _ in again.further_images] == [turn, turn]
        for image, other in zip(again.images, one.images, strict=True):
            assert (image.id, image.modality, image.organ) == (
                *(other.id, other.modality, other.organ),
            )
            assert (pixels_of(image) == pixels_of(other)).all()


def test_trl_is_given_all_pictures_before_the_first_question_or_none(
    tmp_path: Path, records: list[Record]
) -> None:
    path = write_jsonl([several(records, 0)], tmp_path / "out", "set", "trl")
    (again,) = registry.read(path, tmp_path, "test")
    assert [place for place, _ in again.further_images] == [0, 0]
    with pytest.raises(DataError, match="TRL puts all pictures before the first question, and one"):
        write_jsonl([several(records, 1)], tmp_path / "other", "set", "trl")


NAME = "DOE^JANE"


def clinical(folder: Path) -> list[Record]:
    """Return records on files that trainers cannot open, or that say whose they are."""
    upside_down = Image.Exif()
    upside_down[0x0112], upside_down[0x010E] = 3, NAME
    photo = Image.fromarray(picture(3, 40))
    notes = PngInfo()
    notes.add_text("Comment", NAME)
    contents = {
        "a.dcm": dicom(Modality="MR", PatientName=NAME),
        "b.nii.gz": gzip.compress(nifti(descrip=NAME)),
        "c.jpg": encoded(photo, "JPEG", exif=upside_down),
        "d.png": encoded(photo, "PNG", pnginfo=notes),
        "e.tif": encoded(photo.convert("CMYK"), "TIFF", description=NAME),
    }
    for name, data in contents.items():
        assert NAME.encode() in (gzip.decompress(data) if name.endswith("gz") else data)
        (folder / name).write_bytes(data)
    return [record(ImageRecord(f"set/{name}", folder / name), name) for name in contents]


def test_pictures_leave_as_png_as_they_are_seen_here_and_without_a_name(tmp_path: Path) -> None:
    records = clinical(tmp_path)
    path = write_jsonl(records, tmp_path / "jsonl", "set", "trl")
    parquet = write_parquet(records, tmp_path / "parquet" / "set.parquet")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = list(exchange.read_rows(parquet))
    for one, line, row in zip(records, lines, rows, strict=True):
        data = (path.parent / line["images"][0]).read_bytes()
        assert data == row["images"][0]["bytes"]
        with Image.open(BytesIO(data)) as image:
            assert (image.format, image.info, dict(image.getexif())) == ("PNG", {}, {})
            assert np.array_equal(np.asarray(image.convert("RGB")), pixels_of(one.image))
    for file in (path, parquet, *(path.parent / "images").iterdir()):
        assert NAME.encode() not in file.read_bytes()


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_give_rows_with_decoded_pictures(records: list[Record], streaming: bool) -> None:
    rows = list(to_dataset(records, streaming=streaming))
    assert [row["id"] for row in rows] == [record.id for record in records]
    assert (np.asarray(rows[2]["images"][0]) == records[2].image.source).all()
    assert rows[0]["messages"] == [
        {"role": "user", "content": "<image>\nIs there a mass?"},
        {"role": "assistant", "content": "yes"},
    ]


def test_each_trainer_gets_the_mark_it_wants(tmp_path: Path, records: list[Record]) -> None:
    """LLaMA-Factory and ms-swift count marks; TRL puts the image before plain text itself."""
    for target in get_args(Target):
        path = write_jsonl(records, tmp_path / target, "set", target)
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            marks = sum(turn["content"].count("<image>") for turn in row["messages"])
            assert marks == (0 if target == "trl" else len(row["images"]))
            assert (path.parent / row["images"][0]).is_file()
    info = json.loads((tmp_path / "llama_factory" / "dataset_info.json").read_text())
    assert info["set"]["file_name"] == "set.jsonl"
    assert info["set"]["columns"] == {"messages": "messages", "images": "images"}
    assert not (tmp_path / "trl" / "dataset_info.json").exists()


def test_a_conversation_shows_its_picture_once(records: list[Record]) -> None:
    said = exchange.row_of(records[-1], ["x.png"])["messages"]
    assert [turn["role"] for turn in said] == ["user", "assistant"] * 3
    assert [turn["content"] for turn in said[::2]] == [
        "<image>\nIs there a mass?",
        "Where?",
        "Why?",
    ]


def test_a_choice_lists_its_options_in_the_message(records: list[Record]) -> None:
    row = exchange.row_of(records[2], ["x.png"])
    assert row["messages"][0]["content"] == "<image>\nIs there a mass? Options: yes, no."
    assert row["question"] == "Is there a mass?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "images must hold an image"),
        ({"images": ["gone.png"]}, r"image file 'gone\.png' is missing"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages must be one of user"),
        ({"messages": []}, r"one of user, one of assistant, and so on in turn, found \[\]"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]},
            "messages must be one of user",
        ),
        (
            {
                "messages": [
                    {"role": r, "content": c}
                    for r, c in zip(("user", "assistant") * 2, ("a", "b", "c", " "), strict=True)
                ]
            },
            "row 1: empty answer",
        ),
        (
            {"messages": [{"role": r, "content": "<image>"} for r in ("user", "assistant")]},
            "empty question",
        ),
        ({"labels": "[1]"}, "labels must be a JSON object"),
    ],
)
def test_a_row_that_is_no_conversation_about_one_image_is_refused(
    tmp_path: Path, records: list[Record], changes: dict[str, object], message: str
) -> None:
    path = write_jsonl(records[:1], tmp_path / "out", "set")
    row = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        registry.read(path, tmp_path, "train")


def test_a_file_that_is_no_parquet_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        registry.read(path, tmp_path, "train")
