"""The list of domains: its order is the index of the domain expert (paper, section 3.3).

Modalities that are no domain (ultrasound, angiography, …) keep their own name in the data, take
part in training and scoring, and carry no router label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

#: What a record is for; a recipe names them too.
Task = Literal["caption", "vqa", "classification"]

DOMAINS: tuple[str, ...] = ("ct", "mri", "pathology", "xray")

#: What data sets, clinics and DICOM headers call a modality -> our name. Keys are upper case,
#: without blanks, hyphens and underscores.
MODALITY_NAMES: dict[str, str] = {
    "CT": "ct",
    "CTSCAN": "ct",
    "COMPUTEDTOMOGRAPHY": "ct",
    "MR": "mri",
    "MRI": "mri",
    "MRISCAN": "mri",
    "MAGNETICRESONANCEIMAGING": "mri",
    "HISTOLOGY": "pathology",
    "HISTOPATHOLOGY": "pathology",
    "PATHOLOGY": "pathology",
    "XR": "xray",
    "CR": "xray",
    "DX": "xray",
    "MG": "xray",
    "MAMMOGRAM": "xray",
    "MAMMOGRAPHY": "xray",
    "RADIOGRAPH": "xray",
    "XRAY": "xray",
    "CXR": "xray",
    "DR": "xray",
    "PLAINFILM": "xray",
    "RADIOGRAPHY": "xray",
    "US": "ultrasound",
    "ULTRASOUND": "ultrasound",
    "XA": "angiography",
    "AN": "angiography",
    "ANGIOGRAPHY": "angiography",
    "FL": "fluoroscopy",
    "RF": "fluoroscopy",
    "NM": "nuclear",
    "PT": "nuclear",
    "OP": "fundus",
    "OPT": "oct",
    "XC": "photograph",
    "ES": "endoscopy",
    "SM": "pathology",
    "GM": "microscopy",
}

#: All names that a modality can have with us.
MODALITIES: tuple[str, ...] = tuple(
    sorted({*MODALITY_NAMES.values(), "dermoscopy", "gross pathology", "pet-ct"})
)


#: Domains of coarser recipes (paper, Table 10: two experts) -> the modalities they hold.
MEMBERS: dict[str, tuple[str, ...]] = {
    "radiology": ("ct", "mri", "xray", "ultrasound", "angiography", "fluoroscopy", "nuclear"),
}


def modality_name(raw: str) -> str:
    """Return our name of a modality; a name we do not know is kept, in lower case."""
    key = raw.strip().upper().translate(str.maketrans("", "", " -_"))
    return MODALITY_NAMES.get(key, raw.strip().lower())


def domain_of(modality: str | None, domains: Sequence[str] = DOMAINS) -> str | None:
    """Return the domain that a modality belongs to: its own, or one that holds it; else None."""
    if modality in domains:
        return modality
    return next((name for name in domains if modality in MEMBERS.get(name, ())), None)


def domain_index(modality: str | None, domains: Sequence[str] = DOMAINS) -> int | None:
    """Return the index of a modality's domain expert, or None where it has none."""
    name = domain_of(modality, domains)
    return None if name is None else list(domains).index(name)
