"""The list of domains: its order is the index of the domain expert (paper, section 3.3).

Modalities that are no domain (ultrasound, angiography, …) keep their own name in the data, take
part in training and scoring, and carry no router label.
"""

from __future__ import annotations

from collections.abc import Sequence

DOMAINS: tuple[str, ...] = ("ct", "mri", "pathology", "xray")

#: What data sets and DICOM headers call a modality -> our name. Keys are upper case.
MODALITY_NAMES: dict[str, str] = {
    "CT": "ct",
    "MR": "mri",
    "MRI": "mri",
    "HISTOLOGY": "pathology",
    "PATHOLOGY": "pathology",
    "XR": "xray",
    "CR": "xray",
    "DX": "xray",
    "MG": "xray",
    "MAMMOGRAM": "xray",
    "MAMMOGRAPHY": "xray",
    "RADIOGRAPH": "xray",
    "X-RAY": "xray",
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
}

_RADIOLOGY = {"angiography", "ct", "fluoroscopy", "mri", "nuclear", "ultrasound", "xray"}


def modality_name(raw: str) -> str:
    """Return our name of a modality; a name we do not know is kept, in lower case."""
    return MODALITY_NAMES.get(raw.strip().upper(), raw.strip().lower())


def domain_index(modality: str | None, domains: tuple[str, ...] = DOMAINS) -> int | None:
    """Return the index of a modality's domain expert, or None where it has none."""
    return domains.index(modality) if modality in domains else None


def expected_domain(modality: str | None, domains: Sequence[str]) -> str | None:
    """Return the domain that a router should find for a modality, None where no domain has it.

    A model of few domains may have one ``radiology`` for everything but pathology.
    """
    if modality is None or modality in domains:
        return modality
    return "radiology" if "radiology" in domains and modality in _RADIOLOGY else None
