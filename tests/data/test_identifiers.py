"""Planted names and numbers of a patient pass nowhere: not in records, logs, caches or errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from tests.data import samples
from tests.data.samples import dataset, ramp, written
from tests.data.test_images import smooth
from tests.model.tiny import processor

from medmoe.cli.main import main
from medmoe.data.cache import ImageCache
from medmoe.data.images import open_picture, open_values
from medmoe.data.intake.sandbox import DecoderPool
from medmoe.data.pixels import pixel_table
from medmoe.data.schema import ImageRecord
from medmoe.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the planting

NAME, NUMBER = "ZAPHOD^BEEBLEBROX", "MRN4242424242"
SECRETS = ("ZAPHOD", "BEEBLEBROX", "4242424242")
#: Elements that say how the pixels are stored: another value would make another file of it.
_STRUCTURAL = {
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "SOPClassUID",
}  # fmt: skip
_TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(workers=1)
    yield pool
    pool.close()


def planted() -> Dataset:
    """Return a DICOM file with an identifier in every tag of text, private ones and sequences."""
    found = dataset(ramp())
    for tag, (vr, _, _, retired, keyword) in pydicom.datadict.DicomDictionary.items():
        group = tag >> 16
        if not keyword or keyword in _STRUCTURAL or group < 8 or group in (0x5400, 0xFFFE):
            continue
        if vr in _TEXT and retired == "":
            found.add_new(tag, vr, NAME if len(found) % 2 else NUMBER)
    block = found.private_block(0x0011, NAME, create=True)
    block.add_new(1, "LO", NAME)
    block.add_new(2, "OB", NAME.encode())
    item = Dataset()
    item.PatientName, item.PatientID = NAME, NUMBER
    item.WindowCenterWidthExplanation = NAME
    found.ReferencedStudySequence = [item]
    found.SharedFunctionalGroupsSequence = [item]
    found.PerFrameFunctionalGroupsSequence = [item]
    found.file_meta.ImplementationVersionName = NAME[:16]
    found.file_meta.add_new(0x00020100, "UI", "1.2.3")
    found.file_meta.add_new(0x00020102, "OB", NAME.encode() + b"\0")
    return found


def clean(text: str) -> bool:
    return not any(secret in text.upper() for secret in SECRETS)


def test_so_many_tags_are_planted() -> None:
    data = written(planted())
    assert data.count(b"ZAPHOD") + data.count(b"4242424242") > 1000


def test_no_identifier_passes_the_decoder(
    tmp_path: Path, pool: DecoderPool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"{NAME}_{NUMBER}.dcm"
    path.write_bytes(written(planted()))
    caplog.clear()  # what was said while the file was made
    caplog.set_level(logging.DEBUG)
    picture = open_picture(path, pool=pool)
    assert picture.facts.modality is None
    assert picture.facts.body_part is None
    viewed = open_values(path.read_bytes(), pool=pool)
    assert viewed.pixels.dtype == np.uint16
    assert clean(json.dumps([asdict(each) for each in (picture.facts, viewed.facts)]))
    assert clean(repr(picture) + repr(viewed.scale))
    assert clean(repr(picture.image.info))
    assert clean(caplog.text)


@pytest.mark.parametrize(
    "change",
    [
        {"Rows": 0},
        {"PixelData": b"1234"},
        {"BitsStored": 200},
        {"PhotometricInterpretation": NAME},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"NumberOfFrames": "-1"},
        {"PixelData": None},
    ],
    ids=str,
)
def test_no_identifier_stands_in_an_error(
    change: dict[str, object], tmp_path: Path, pool: DecoderPool, caplog: pytest.LogCaptureFixture
) -> None:
    found = planted()
    for key, value in change.items():
        if value is None:
            del found[key]
        else:
            with pydicom.config.disable_value_validation():
                setattr(found, key, value)
    path = tmp_path / f"{NAME}_{NUMBER}.dcm"
    path.write_bytes(written(found))
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ImageError) as caught:
        open_picture(path, pool=pool)
    assert clean(str(caught.value))
    assert clean(repr(caught.value))
    assert caught.value.__cause__ is None
    assert clean(caplog.text)


@pytest.mark.parametrize("keyword", ["TransferSyntaxUID", "NumberOfFrames", "BitsAllocated"])
def test_an_identifier_in_a_number_or_uid_is_not_repeated(keyword: str, pool: DecoderPool) -> None:
    found = dataset(ramp())
    with pydicom.config.disable_value_validation():
        if keyword == "TransferSyntaxUID":
            data = written(found).replace(b"1.2.840.10008.1.2.1\0", b"ZAPHOD.BEEBLEBROX.4\0")
        else:
            tag = pydicom.tag.Tag(keyword)
            found.NumberOfFrames = "1"
            data = written(found)
            place = data.index(bytes([0x28, 0, tag.element & 255, tag.element >> 8]))
            data = data[: place + 4] + b"IS\x06\x00ZAPHOD" + data[place + 10 :]
    with pytest.raises(ImageError) as caught:
        open_picture(data, pool=pool)
    assert clean(str(caught.value))


def test_texts_in_png_jpeg_and_nifti_stay_behind(tmp_path: Path, pool: DecoderPool) -> None:
    texts, exif = PngInfo(), Image.Exif()
    texts.add_text("Patient", NAME, zip=True)
    exif[ExifTags.Base.ImageDescription] = NAME
    smooth().save(tmp_path / f"{NAME}.png", pnginfo=texts, exif=exif)
    smooth().save(tmp_path / f"{NAME}.jpg", exif=exif, comment=NAME.encode())
    volume = nibabel.Nifti1Image(samples.volume(), np.eye(4))
    volume.header["descrip"] = volume.header["db_name"] = NAME[:17].encode()
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode()))
    nibabel.save(volume, tmp_path / f"{NAME}.nii.gz")
    for path in tmp_path.iterdir():
        picture = open_picture(path, pool=pool)
        assert clean(repr(picture))
        assert clean(repr(picture.image.info))
        broken = path.read_bytes()[:-60]
        path.write_bytes(broken)
        with pytest.raises(ImageError) as caught:
            open_picture(path, pool=pool)
        assert clean(str(caught.value))


def test_the_cache_holds_no_identifier(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.dcm"
    path.write_bytes(written(planted()))
    cache = ImageCache(tmp_path / "cache")
    pixel_table([ImageRecord("1", path)], processor().image_processor, cache=cache)
    files = [file for file in cache.folder.rglob("*") if file.is_file()]
    assert len(files) == 1
    for file in files:
        assert clean(str(file.relative_to(tmp_path)))
        assert clean(file.read_bytes().decode("latin-1"))


def test_the_command_line_repeats_no_identifier_of_a_file_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{NAME}.dcm"
    path.write_bytes(written(planted())[:-500])
    assert main(["ask", str(tmp_path / "model"), str(path), "Is there a mass?"]) == 2
    out, err = capsys.readouterr()
    assert clean(out + err)
    assert "damaged DICOM file" in err
