"""What all readers share: reading text with line numbers, checking rows, captions, hash splits.

Readers never decode a picture. A wrong row is an error that names the file and the row; nothing is
dropped in silence.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.schema import AnswerType, Record
from medmoe.errors import DataError, quoted

SPLITS = ("train", "validation", "test")
CAPTION_REQUEST = "Describe this image."

#: How a caption names a modality; other modalities are written as they are, with "image".
_MODALITY_WORDS = {
    "angiography": "angiogram",
    "ct": "CT",
    "fluoroscopy": "fluoroscopy image",
    "mri": "MRI",
    "nuclear": "nuclear medicine scan",
    "pathology": "histology image",
    "ultrasound": "ultrasound",
    "xray": "X-ray",
}
#: Planes and projections that stand before the modality ("an axial CT").
_PLANE_WORDS = {
    **{p: p for p in ("axial", "coronal", "sagittal", "oblique", "transverse", "longitudinal")},
    **{p: p for p in ("lateral", "frontal", "decubitus")},
    "ap": "AP",
    "pa": "PA",
}
#: Organ names that are adjectives and need the noun.
_ORGAN_ADJECTIVES = ("musculoskeletal", "gastrointestinal", "genitourinary", "lymphatic")


class MissingPart(DataError):
    """A set, or the files of a split, are not there: nothing is wrong with those that are."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data set comes from.

    Attributes:
        home: Its official home, for people.
        folder: Where it lies under the data folder; empty for a file in the data folder itself.
        hub: Its id on the Hugging Face hub, None where it is not officially there.
        revision: Commit on the hub; None until one is truly known: the newest is then fetched.
        files: What of the repository is fetched.
        archives: Archives among them that are unpacked where they lie.
        web: Address of its files where it is on no hub.
        pictures: The file there that lists the archives of the pictures named in `files`.
    """

    home: str
    folder: str = ""
    hub: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ("*",)
    archives: tuple[str, ...] = ()
    web: str | None = None
    pictures: str = ""


def require_part(folder: Path, part: str, name: str) -> Path:
    """Return the path of a further file of a set whose marker is there."""
    path = folder / part
    if not path.exists():
        raise MissingPart(f"{name}: no {part} in {folder}; the set is incomplete, add that file")
    return path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without BOM, with LF line ends."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} row {row}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8"
        ) from None


def read_json(path: Path) -> Any:
    """Return the content of a UTF-8 JSON file, with or without BOM."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} row {error.lineno}: not JSON ({error.msg}); download the file again"
        ) from None


def file_names(folder: Path) -> frozenset[str]:
    """Return the names in a folder: one listing is much cheaper than one look per row."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images; unpack the images there")
    return frozenset(path.name for path in folder.iterdir())


def image_folder(folder: Path, choices: Sequence[str]) -> Path:
    """Return the first of the known image folders that is there."""
    for choice in choices:
        if (folder / choice).is_dir():
            return folder / choice
    raise MissingPart(
        f"{folder}: no folder of images, looked for {', '.join(choices)}; unpack the images there"
    )


def unique(records: Iterable[Record], where: Path, bad: BadRows) -> list[Record]:
    """Return the records with the first of each id of a split; a second one is a bad row."""
    first: dict[tuple[str, str], Record] = {}
    for record in records:
        with bad.row():
            if (record.split, record.id) in first:
                raise DataError(
                    f"{record.place or where}: id {record.id!r} occurs twice; ids must differ, "
                    "remove one"
                )
            first[record.split, record.id] = record
    return list(first.values())


def usable(records: Iterable[Record | None], where: Path, bad: BadRows) -> list[Record]:
    """Return the records that are any, as `unique` does; a set without one is an error."""
    kept = unique(filter(None, records), where, bad)
    if not kept:
        raise DataError(f"{where}: no usable row in it; download the file again or add rows")
    return kept


def only_values(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return name -> value, for the names that come with exactly one value."""
    values_of: defaultdict[str, set[str]] = defaultdict(set)
    for name, value in pairs:
        values_of[name].add(value)
    return {name: values.pop() for name, values in values_of.items() if len(values) == 1}


def yes_no_type(answer: str) -> AnswerType:
    """Return ``closed`` for a yes or no: the ruling where a set labels no question itself."""
    return "closed" if answer.strip().rstrip(".").lower() in ("yes", "no") else "open"


def open_or_closed(label: str, where: str) -> AnswerType:
    """Return the answer type that a set labels a question with, in capitals or not."""
    if label.strip().lower() not in ("open", "closed"):
        raise DataError(f"{where}: answer_type {label!r} must be OPEN or CLOSED")
    return "open" if label.strip().lower() == "open" else "closed"


_QUESTION_WORDS = ("what", "where", "which", "who", "whose", "when", "why", "how")


def question_word(question: str, answer: str) -> str:
    """Return ``yes_no`` or the word a question begins with, where a set names no question type."""
    if yes_no_type(answer) == "closed":
        return "yes_no"
    first = question.strip().split(" ", 1)[0].lower().rstrip("?,")
    return first if first in _QUESTION_WORDS else "other"


def fields(raw: Any, names: Sequence[str], where: str) -> dict[str, str]:
    """Return the named fields of a row as stripped text; each must be there and filled in."""
    if not isinstance(raw, dict):
        raise DataError(f"{where}: {type(raw).__name__} instead of an object; correct the row")
    texts = {}
    for name in names:
        if name not in raw:
            raise DataError(f"{where}: field {name!r} is missing; every row needs it")
        texts[name] = str(raw[name] if raw[name] is not None else "").strip()
        if not texts[name]:
            raise DataError(f"{where}: empty {name}; fill it in or remove the row")
    return texts


def by_letter(letter: str, options: Sequence[str], where: str) -> str:
    """Return the option that a letter names, A the first."""
    place = "ABCDEFGHIJ".find(letter.strip().upper()) if len(letter.strip()) == 1 else -1
    if not 0 <= place < len(options):
        raise DataError(
            f"{where}: answer {letter.strip()!r} is no letter of the {len(options)} options"
        )
    return options[place].strip()


def choices(options: Sequence[str], answer: str, kind: object, where: str) -> dict[str, Any]:
    """Return what a multiple-choice record says besides, with its kind; empty options are none."""
    offered = tuple(filter(None, map(str.strip, options)))
    if len(offered) < 2 or answer not in offered:
        raise DataError(f"{where}: answer {answer!r} must be one of the choices {offered}")
    kind = str(kind or "other").strip().lower()
    facts = {"answer_type": "closed", "options": offered, "question_type": kind}
    return facts | {"place": where}


def image_file(folder: Path, name: str, where: str, allow_outside: bool = False) -> Path:
    r"""Return the path of an image file that must be there, inside its set's folder.

    ``\\`` is read as ``/``, and a letter with an accent is the same however it is composed.

    Args:
        allow_outside: The user's ``--allow-outside``: the file may lie anywhere.
    """
    if "://" in name:
        raise DataError(f"{where}: image {quoted(name)} is an address; name a file")
    spellings = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    choices = [folder / one for text in spellings for one in (text, text.replace("\\", "/"))]
    path = next((choice for choice in choices if _is_file(choice)), None)
    if path is None:
        raise DataError(f"{where}: image file {quoted(name)} is missing in {folder}; add it")
    if not allow_outside and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{where}: image file {quoted(name)} lies outside {folder}; copy it there, or give "
            "--allow-outside"
        )
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL
        return False


#: Other spellings of the names of splits.
_SPLIT_NAMES = {
    "training": "train",
    **dict.fromkeys(("val", "valid", "dev", "validate"), "validation"),
    "testing": "test",
}


def split_name(raw: str) -> str:
    """Return our name of a split (``Val`` is ``validation``); any other name is kept."""
    name = raw.strip()
    known = _SPLIT_NAMES.get(name.lower(), name.lower())
    return known if known in SPLITS else name


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and content of each row of the list that a JSON file holds."""
    content = read_json(path)
    if not isinstance(content, list) or not content:
        kind = "an empty list" if content == [] else type(content).__name__
        raise DataError(f"{path}: a list of rows is needed, found {kind}")
    for number, row in enumerate(content, 1):
        yield f"{path} row {number}", row


def hash_share(key: str, seed: int = 0) -> float:
    """Return a number in [0, 1) that depends on the key and the seed only."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_split(key: str) -> str:
    """Return ``train``, ``validation`` or ``test`` (80/10/10) for sets without official splits."""
    share = hash_share(key)
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def caption(
    modality: str | None = None, organ: str | None = None, plane: str | None = None
) -> str | None:
    """Return a sentence of the known facts, or None where nothing is known.

    ``caption("mri", "skull and contents", "axial")`` is "An axial MRI of the skull and contents."
    """
    if modality is None and organ is None and plane is None:
        return None
    plane_word = _PLANE_WORDS.get(plane or "", "")
    named = "image" if modality is None else _MODALITY_WORDS.get(modality, f"{modality} image")
    shown = f"{plane_word} {named}".strip()
    # The article goes by sound: an MRI, an X-ray, an AP view; a CT, a PA view.
    vowel = shown[0].lower() in "aeiou" or shown in ("MRI", "X-ray")
    sentence = f"{'An' if vowel else 'A'} {shown}"
    if organ is not None:
        noun = " system" if organ.endswith(_ORGAN_ADJECTIVES) else ""
        sentence += f" of the {organ}{noun}"
    if plane is not None and not plane_word:
        sentence += f" ({plane})"
    return sentence + "."
