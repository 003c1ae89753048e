"""What comes from and goes to a DICOMweb server; all of it runs in the decoder process.

Patient and study go from the source into the objects here, and nowhere else. highdicom is of the
extra ``dicomweb``; without it, nothing is written.
"""

from __future__ import annotations

import contextlib
import json
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom import examples
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from medmoe.data.intake.limits import Limits, or_else
from medmoe.errors import ImageError

with contextlib.suppress(ImportError):
    import highdicom as hd
    from highdicom import sr

_UIDS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
_COPIED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
           "StudyTime", "AccessionNumber", "ReferringPhysicianName", "Laterality")  # fmt: skip
Made = tuple[dict[str, Any], bytes]


@or_else(ImageError("undecodable", "sent no list of instances that can be read"))
def choose(data: bytes, _: Limits, most: int) -> Made:
    """Return of a list (QIDO-RS) how many it has, and the middle one's UID by number, or ``""``."""
    listed = sorted(
        (int(((one.get("00200013") or {}).get("Value") or [0])[0]), one["00080018"]["Value"][0])
        for one in json.loads(data or b"[]")
    )
    if len(listed) > most:
        raise ImageError("undecodable", f"has more than {most:,} instances of this series")
    uid = str(listed[(len(listed) - 1) // 2][1]) if listed else ""
    return {"instances": len(listed), "instance": uid}, b""


@or_else(ImageError("undecodable", "sent no DICOM file"))
def unpack(data: bytes, _: Limits, uids: list[str]) -> Made:
    """Return the one file of a reply in parts (WADO-RS): that of these UIDs, or an error."""
    if data[128:132] != b"DICM":
        delimiter, rest = data[data.index(b"--") :].split(b"\r\n", 1)
        data = rest[rest.index(b"\r\n\r\n") + 4 : rest.index(b"\r\n" + delimiter)]
    found = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=[*_UIDS])
    if [found[name].value for name in _UIDS] != uids:
        raise ImageError("undecodable", "sent another instance than was asked for")
    return {}, data


@or_else(ImageError("undecodable", "the source's header does not fit into a report"))
def report(
    data: bytes, _: Limits, size: tuple[int, int], frame: int | None, lines: list[str],
    model: list[str], uids: list[str], boundary: str,
) -> Made:  # fmt: skip
    """Return the body of a STOW-RS request: a Structured Report and a Secondary Capture.

    Args:
        data: The card, (H, W, 3) uint8 of width and height ``size``, and the file asked about.
        frame: Of the file, None where it has one.
        lines: ``Name: text``; the first is the notice.
        model: Its UID, name and version.
        uids: Series and instance of the report, then of the card.
    """
    card = np.frombuffer(data, np.uint8, 3 * size[0] * size[1]).reshape(size[1], size[0], 3)
    source = pydicom.dcmread(BytesIO(data[card.size :]), stop_before_pixels=True)
    for name in _COPIED:
        source.setdefault(name, "")
    common = {
        "instance_number": 1, "manufacturer": "medmoe", "manufacturer_model_name": model[1],
        "software_versions": model[2], "specific_character_set": "ISO_IR 192",
        "series_description": f"medmoe: {lines[0]}", "transfer_syntax_uid": ExplicitVRLittleEndian,
    }  # fmt: skip
    capture = hd.sc.SCImage.from_ref_dataset(
        source, card, "RGB", 8, "PATIENT", uids[2], 9002, uids[3], patient_orientation=("L", "P"),
        **common,
    )  # fmt: skip
    capture.copy_patient_and_study_information(source)
    capture.PatientOrientation, capture.ConversionType = None, "WSD"  # a card has no orientation
    capture.Laterality = source.Laterality
    capture.BurnedInAnnotation = "NO" if source.get("BurnedInAnnotation") == "NO" else "YES"
    capture.DerivationDescription = common["series_description"]
    root = sr.ContainerContentItem(_code("Answer of a research model, not for diagnosis"))
    by = sr.DeviceObserverIdentifyingAttributes(model[0], "medmoe", "medmoe", " ".join(model[1:]))
    tree = sr.ContentSequence(sr.ObserverContext(codes.DCM.Device, by))
    for line in lines:
        name, text = line.split(": ", 1) if ": " in line else ("Notice", line)
        tree.append(sr.TextContentItem(_code(name), text, "CONTAINS"))
    for name, one, part in (("Card", capture, None), ("Source", source, frame)):
        uid = one.SOPClassUID, one.SOPInstanceUID
        tree.append(sr.ImageContentItem(_code(name), *uid, part, None, "CONTAINS"))
    root.ContentSequence, capture.SourceImageSequence = tree, tree[-1].ReferencedSOPSequence
    made = sr.EnhancedSR(
        [source, capture], root, uids[0], 9001, uids[1], is_complete=True, **common
    )
    body = BytesIO()
    for one in (made, capture):
        body.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        one.save_as(file := BytesIO(), enforce_file_format=True)
        body.write(file.getvalue() + b"\r\n")
    return {}, body.getvalue() + f"--{boundary}--\r\n".encode()


def _code(meaning: str) -> Any:
    return sr.CodedConcept(meaning.split(",")[0].lower(), "99MEDMOE", meaning[:64])


def prepare() -> None:
    """Write a report on an example, so that all that it needs is loaded: later, no file can be."""
    data, uids = bytes(3) + examples.get_path("ct").read_bytes(), ["1.2"] * 4
    with contextlib.suppress(ImageError):  # without highdicom
        report(data, Limits(), (1, 1), None, ["Notice"], ["1.2", "a", "1"], uids, "x")


TASKS = {"choose": choose, "unpack": unpack, "report": report}
