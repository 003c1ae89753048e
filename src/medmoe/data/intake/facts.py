"""The technical facts that leave the decoder with a picture, and nothing else.

An allow-list: every value is a number or a word of a closed vocabulary, so that a name or number of
a patient passes under no tag, however a file is written. What crosses the border of the decoder
process is checked again here on the other side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medmoe.domains import MODALITY_NAMES, modality_name

Format = Literal["png", "jpeg", "tiff", "webp", "bmp", "dicom", "nifti", "pixels"]
WindowOrigin = Literal["given", "file", "voi_lut", "percentile"]

#: Flag -> what a person reads.
WARNINGS: dict[str, str] = {
    "burned_in_annotation": "text is burned into this picture and may show who the patient is",
    "secondary_capture": "secondary capture: a screenshot or a scanned film, not the original data",
    "ultrasound": "ultrasound pictures often show the patient's name",
    "first_of_several": "the file holds several pictures; only the first is used",
    "first_volume": "the file holds several volumes; the first is used",
    "small_matrix": "fewer than 16 pixels a side: there is little to be seen",
    "window_ignored": "the window of the file is not usable; the picture's own range is shown",
    "flat_picture": "one flat grey or colour: nothing is to be seen, an answer rests on nothing",
    "orientation_unknown": "the file does not say which side is which; left and right may be wrong",
}

#: Where a window comes from, in words.
_ORIGINS: dict[str, str] = {
    "given": "as given",
    "file": "from the file",
    "voi_lut": "a lookup table of the file",
    "percentile": "fitted to the values",
}
_FORMATS = {"dicom": "DICOM", "nifti": "NIfTI", "webp": "WebP", "pixels": "pixels"}

_BODY_PARTS = """
ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BILEDUCT BLADDER BONE BRAIN BREAST
BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS
CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY
EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM
ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MANDIBLE MAXILLA MEDIASTINUM
MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA
PELVIS PENIS PHARYNX PITUITARY PROSTATE RECTUM RIB SCALP SCAPULA SCLERA SCROTUM SELLA SHOULDER SINUS
SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORAX THUMB THYMUS THYROID TIBIA TLSPINE TMJ
TOE TONGUE TRACHEA TSPINE ULNA URETER URETHRA UTERUS VAGINA WHOLEBODY WRIST ZYGOMA
"""
_VIEWS = """
AP PA LL RL LLD RLD LLO RLO LAT LATERAL OBL OBLIQUE CC MLO ML LM LMO XCC XCCL XCCM FB SIO AXIAL
CORONAL SAGITTAL
"""
#: Body Part Examined, the defined terms in use (DICOM PS3.16, annex L).
BODY_PARTS = frozenset(_BODY_PARTS.split())
#: View Position, the defined terms in use, and the plane in which a NIfTI volume is shown.
VIEWS = frozenset(_VIEWS.split())


@dataclass(frozen=True, slots=True)
class Window:
    """Which range of values is shown from black to white.

    Attributes:
        center: In the units of the file (Hounsfield for CT).
        width: The same.
        origin: Who chose it: the caller, the file (a window or a lookup table), or this program.
    """

    center: float
    width: float
    origin: WindowOrigin


@dataclass(frozen=True, slots=True)
class Scale:
    """What values of 16 bits before the window stand for.

    Attributes:
        slope, intercept: Value × slope + intercept is in the units of the file; slope is above 0.
        inverted: Whether high values are dark.
        linear: Whether the window is a straight line, as a viewer draws it; a lookup table is none.
        apart: Between rows and between columns, to each other: pixels need not be square.
    """

    slope: float
    intercept: float
    inverted: bool = False
    linear: bool = True
    apart: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a picture besides its pixels.

    Attributes:
        format: By content, never by name.
        modality: Our name of it (``ct``, ``mri``, ``ultrasound``, …), None where unknown.
        body_part: In lower case (``chest``), None where unknown.
        view: The projection or plane (``pa``, ``axial``), None where unknown.
        window: None for colour and for pictures of 8 bits that are shown as they are stored.
        spacing: Millimetres between rows and between columns, as shown: pixels are made square.
        frame: Which frame, or slice, is shown, from 1.
        warnings: Keys of `WARNINGS`.
    """

    format: Format
    modality: str | None = None
    body_part: str | None = None
    view: str | None = None
    window: Window | None = None
    spacing: tuple[float, float] | None = None
    frame: int = 1
    frames: int = 1
    warnings: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """Return the warnings in words."""
        return [WARNINGS[flag] for flag in self.warnings]

    def description(self) -> str:
        """Return what is known of the picture in one line."""
        parts = [_FORMATS.get(self.format, self.format.upper())]
        parts += [word for word in (self.modality, self.body_part, self.view) if word]
        if self.format in ("dicom", "nifti"):
            unit = "frame" if self.format == "dicom" else "slice"
            parts.append(f"{unit} {self.frame} of {self.frames}")
        if self.window is not None:
            shown = self.window
            parts.append(f"window {shown.center:g},{shown.width:g} ({_ORIGINS[shown.origin]})")
        return ", ".join(parts)


def from_json(values: Mapping[str, Any]) -> ImageFacts:
    """Return the facts that a decoder process sent; what is in no vocabulary becomes None.

    Raises:
        ValueError: It sent something else than facts.
    """
    if values["format"] not in get_args(Format):
        raise ValueError("unknown format")
    frame, frames = int(values["frame"]), int(values["frames"])
    if not 1 <= frame <= frames:
        raise ValueError("frame out of range")
    raw = values["window"]
    return ImageFacts(
        format=values["format"],
        modality=values["modality"] if values["modality"] in MODALITY_NAMES.values() else None,
        body_part=_known(values["body_part"], BODY_PARTS),
        view=_known(values["view"], VIEWS),
        window=_window(raw["center"], raw["width"], raw["origin"]) if raw else None,
        spacing=spacing(values["spacing"]),
        frame=frame,
        frames=frames,
        warnings=tuple(flag for flag in values["warnings"] if flag in WARNINGS),
    )


def scale_from_json(values: Mapping[str, Any]) -> Scale:
    """Return the scale that a decoder process sent.

    Raises:
        ValueError: It sent something else.
    """
    slope, intercept = float(values["slope"]), float(values["intercept"])
    if not (0 < slope < math.inf and math.isfinite(intercept)):
        raise ValueError("no scale")
    inverted, linear = bool(values["inverted"]), bool(values["linear"])
    return Scale(slope, intercept, inverted, linear, spacing(values["apart"]))


def modality(code: object) -> str | None:
    """Return our name of a DICOM modality, None for one that is in no list."""
    name = modality_name(str(code))
    return name if name in MODALITY_NAMES.values() else None


def body_part(text: object) -> str | None:
    """Return a Body Part Examined in lower case, None for what is no defined term."""
    return _known(str(text).replace(" ", "").replace("-", ""), BODY_PARTS)


def view(text: object) -> str | None:
    """Return a View Position in lower case, None for what is no defined term."""
    return _known(text, VIEWS)


def spacing(values: Any) -> tuple[float, float] | None:
    """Return row and column spacing in mm, to 4 digits, None for what is no length."""
    try:
        row, column = (float(f"{float(value):.4g}") for value in values)
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < 1000 and 0 < column < 1000 else None


def _known(value: object, words: frozenset[str]) -> str | None:
    text = str(value).strip().upper()
    return text.lower() if text in words else None


def _window(center: Any, width: Any, origin: Any) -> Window:
    center, width = float(center), float(width)
    if not (math.isfinite(center) and math.isfinite(width) and origin in get_args(WindowOrigin)):
        raise ValueError("no window")
    return Window(center, width, origin)
