"""DICOM and NIfTI files made in memory, whole and broken, and the odd files of pydicom."""

from __future__ import annotations

import functools
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

ODD_FILES = Path(pydicom.__file__).parent / "data"
#: Of the package pydicom-data.
MORE_ODD_FILES = Path(pydicom.__file__).parent.parent / "data_store" / "data"


def ramp(height: int = 40, width: int = 48, top: int = 4000) -> np.ndarray:
    """Return values from 0 to `top`, in reading order."""
    return np.linspace(0, top, height * width).astype(np.uint16).reshape(height, width)


def dataset(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> FileDataset:
    """Return a DICOM file of grey (H, W), (N, H, W) or RGB (H, W, 3) pixels, and further tags."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = syntax
    found = FileDataset(
        "",
        {},
        file_meta=meta,
        preamble=bytes(128),
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )
    found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    found.SamplesPerPixel = 3 if colour else 1
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        found.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        found.NumberOfFrames = len(pixels)
    found.Rows, found.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    found.PixelData = data + bytes(len(data) % 2)
    found["PixelData"].VR = "OW" if found.BitsAllocated > 8 else "OB"
    for name, value in tags.items():
        if value is None:
            del found[name]
        else:
            setattr(found, name, value)
    return found


def written(found: FileDataset) -> bytes:
    """Return the bytes of a DICOM file, however wrong its values are."""
    buffer = BytesIO()
    with pydicom.config.disable_value_validation():
        found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(pixels: np.ndarray | None = None, **tags: Any) -> bytes:
    return written(dataset(ramp() if pixels is None else pixels, **tags))


def bare(data: bytes) -> bytes:
    """Return a DICOM file without preamble, mark and meta elements."""
    return data[132 + 12 + int.from_bytes(data[140:144], "little") :]


def floats(pixels: np.ndarray, **tags: Any) -> bytes:
    """Return a DICOM file of floating-point pixels."""
    found = dataset(pixels.astype(np.float32), PixelData=None, **tags)
    found.FloatPixelData = pixels.astype("<f4").tobytes()
    return written(found)


def without_pixels(sop_class: str) -> bytes:
    """Return a DICOM object that is no picture."""
    found = dataset(ramp(), SOPClassUID=sop_class, PixelData=None)
    found.file_meta.MediaStorageSOPClassUID = sop_class
    return written(found)


def rle_bomb() -> bytes:
    """Return a file of some hundred bytes that claims 60,000 x 60,000 pixels."""
    found = dataset(ramp(), RLELossless, Rows=60_000, Columns=60_000, BitsAllocated=8)
    found.BitsStored = 8
    stream = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 8
    found.PixelData = pydicom.encaps.encapsulate([stream])
    found["PixelData"].VR = "OB"
    return written(found)


def zeros(inflated_bytes: int) -> bytes:
    """Return deflated zeros without an end; a block that begins anew can be repeated."""
    block = 2**24
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = stream.compress(bytes(block)) + stream.flush(zlib.Z_FULL_FLUSH)
    return once * (inflated_bytes // block)


def deflate_bomb(inflated_bytes: int = 2**30) -> bytes:
    """Return a deflated file of about a megabyte that inflates to a gigabyte."""
    start = 128 + 4 + 8 + 4
    plain = written(dataset(ramp(16, 16), DeflatedExplicitVRLittleEndian))
    end = start + int.from_bytes(plain[start - 4 : start], "little")
    head = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, inflated_bytes)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = stream.compress(head) + stream.flush(zlib.Z_FULL_FLUSH)
    return plain[:end] + first + zeros(inflated_bytes) + b"\x03\x00"


def png_bomb(side: int = 8_000) -> bytes:
    """Return a PNG of 64 million pixels in fewer than 200 KB, its checksums right."""
    stream = zlib.compressobj(9)
    row = bytes(1 + side)
    body = b"".join(stream.compress(row) for _ in range(side)) + stream.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def volume(shape: tuple[int, ...] = (20, 24, 18)) -> np.ndarray:
    """Return a volume whose every voxel has another value."""
    return np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)


def nifti(values: np.ndarray | None = None, affine: np.ndarray | None = None, **head: Any) -> bytes:
    values = volume() if values is None else values
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for key, value in head.items():
        image.header[key] = value
    return bytes(image.to_bytes())


def gzip_bomb(inflated_bytes: int = 2**30) -> bytes:
    """Return a gzip NIfTI of about a megabyte that inflates to a gigabyte."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = stream.compress(nifti(np.zeros((4, 4, 4), np.uint8)))
    first += stream.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + first + zeros(inflated_bytes) + b"\x03\x00" + bytes(8)


@functools.cache
def odd_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder that hold pixels, as pydicom reads them."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in {".py", ".pyc", ".txt", ".json", ".hashes"}:
            try:
                content: Dataset = pydicom.dcmread(path, force=True)
            except Exception:  # no DICOM at all
                continue
            if any(n in content for n in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
                found.append(path)
    return found
