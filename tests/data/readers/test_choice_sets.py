"""OmniMedVQA, MMMU-Med and MedXpertQA MM in their documented layouts, written here in small."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.choice_sets import MEDXPERTQA_MM, MMMU_MED, OMNIMED_VQA
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import Record
from medmoe.errors import DataError

SUBJECTS = (
    *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
    *("Pharmacy", "Public_Health"),
)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def omnimed_row(**changes: Any) -> dict[str, Any]:
    row = {
        "dataset": "ACRIMA",
        "question_id": "ACRIMA_0000",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was used?",
        "gt_answer": "Fundus imaging",
        "image_path": "Images/ACRIMA/Im002_ACRIMA.png",
        "option_A": "PET scan",
        "option_B": "CT scan",
        "option_C": "Fundus imaging",
        "modality_type": "Fundus Photography",
    }
    return row | changes


def omnimed(root: Path, *rows: dict[str, Any]) -> Path:
    """Write the archive's folder as the hub's ZIP file is unpacked beside itself."""
    folder = root / "omnimed-vqa" / "OmniMedVQA"
    questions = folder / "QA_information" / "Open-access"
    questions.mkdir(parents=True)
    (folder / "Images" / "ACRIMA").mkdir(parents=True)
    (folder / "Images" / "ACRIMA" / "Im002_ACRIMA.png").write_bytes(png(1))
    (questions / "ACRIMA.json").write_text(json.dumps([omnimed_row(), *rows]), encoding="utf-8")
    return root


def mmmu_row(subject: str, number: int, part: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"{part}_{subject}_{number}",
        "question": "<image 1> Which organ is shown?",
        "options": "['liver', \"the patient's left kidney\"]",
        "explanation": "",
        **{f"image_{k}": None for k in range(1, 8)},
        "image_1": {"bytes": png(number), "path": None},
        "img_type": "['Body Scans: MRI, CT scans, and X-rays']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Anatomy",
    }
    return row | changes


def mmmu(root: Path, *rows: dict[str, Any], without: str = "") -> Path:
    """Write one question of each subject, and more of the first, in both parts."""
    from datasets import Dataset, Features, Image, Value

    features = Features(
        {
            name: Image() if name.startswith("image_") else Value("string")
            for name in mmmu_row("", 0, "")
        }
    )
    for part in ("dev", "validation"):
        for number, subject in enumerate(SUBJECTS):
            own = [mmmu_row(subject, number, part), *(rows if number == 0 else ())]
            if subject != without:
                (root / "mmmu" / subject).mkdir(parents=True, exist_ok=True)
                path = root / "mmmu" / subject / f"{part}-00000-of-00001.parquet"
                Dataset.from_list(own, features=features).to_parquet(str(path))
    return root


def medxpert_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "MM-26",
        "question": "What is it?\nAnswer Choices: (A) Scurvy (B) Rickets (C) Gout (D) None (E) ?",
        "options": {"E": "?", "A": "Scurvy", "B": "Rickets", "C": "Gout", "D": "None"},
        "label": "B",
        "images": ["MM-26-a.jpeg"],
        "medical_task": "Diagnosis",
        "body_system": "Skeletal",
        "question_type": "Reasoning",
    }
    return row | changes


def medxpert(root: Path, *rows: dict[str, Any]) -> Path:
    folder = root / "medxpertqa"
    (folder / "MM").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "images" / "MM-26-a.jpeg").write_bytes(png(1))
    lines = [json.dumps(row) + "\n" for row in (medxpert_row(), *rows)]
    for part in ("dev", "test"):
        (folder / "MM" / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def told(record: Record) -> tuple[Any, ...]:
    assert (record.answer_type, record.task) == ("closed", "vqa")
    return record.question, record.options, record.answer, record.question_type


def test_omnimed_row_becomes_a_question_with_its_three_options(tmp_path: Path) -> None:
    other = omnimed_row(
        question_id="ACRIMA_0001", modality_type="CT(Computed Tomography)", option_D=""
    )
    first, second = OMNIMED_VQA.read(omnimed(tmp_path, other), "test")
    options = ("PET scan", "CT scan", "Fundus imaging")
    asked = ("What imaging technique was used?", options, "Fundus imaging", "modality recognition")
    assert told(first) == asked
    assert (first.id, first.image.id) == (
        "omnimed_vqa/ACRIMA_0000",
        "omnimed_vqa/Images/ACRIMA/Im002_ACRIMA.png",
    )
    assert first.image is second.image


@pytest.mark.parametrize(
    ("raw", "modality"),
    [
        ({"modality_type": "CT(Computed Tomography)"}, "ct"),
        ({"modality_type": "MR (Mag-netic Resonance Imaging)"}, "mri"),
        ({"modality_type": "OCT (Optical Coherence Tomography"}, "oct"),
        ({"modality_type": "X-Ray"}, "xray"),
        ({"modality_type": "ultrasound"}, "ultrasound"),
        ({"modality_type": "Fundus Photography"}, "fundus"),
        ({"modality_type": "Microscopy Images"}, "microscopy"),
        ({"modality_type": "Dermoscopy"}, "dermoscopy"),
        ({"modality_type": None, "modality": "CT(Computed Tomography)"}, "ct"),
        ({"modality_type": None}, None),
    ],
)
def test_omnimed_modalities_get_our_names(
    tmp_path: Path, raw: dict[str, Any], modality: str | None
) -> None:
    root = omnimed(tmp_path)
    path = next(root.rglob("ACRIMA.json"))
    path.write_text(json.dumps([omnimed_row(**raw)]), encoding="utf-8")
    (record,) = OMNIMED_VQA.read(root, "test")
    assert record.image.modality == modality


def test_mmmu_letter_and_list_as_text_become_options_and_answer(tmp_path: Path) -> None:
    records = MMMU_MED.read(mmmu(tmp_path), "validation")
    assert [r.question_type for r in records] == [s.replace("_", " ").lower() for s in SUBJECTS]
    options = ("liver", "the patient's left kidney")
    assert told(records[1]) == (
        *("Which organ is shown?", options, "the patient's left kidney", "clinical medicine"),
    )
    assert records[1].id == "mmmu_med/validation_Clinical_Medicine_1"
    assert records[1].image.source == png(1)
    dev = MMMU_MED.read(tmp_path, "train")
    assert {record.split for record in dev} == {"train"}
    assert not {record.id for record in dev} & {record.id for record in records}


def test_mmmu_marks_are_read_and_other_questions_told_apart(tmp_path: Path) -> None:
    bad = BadRows("skip")
    second = {"image_2": {"bytes": png(9), "path": None}}
    rows = (
        mmmu_row("Art", 5, "x", question="In <image 1>, what is seen? <image 1>"),
        mmmu_row("Art", 6, "x", options="[]", answer="['0.5', '1/2']", question_type="open"),
        mmmu_row(
            *("Art", 7, "x"),
            question="<image 1> and <image 2>: which shows it?",
            options="['<image 1>', '<image 2>']",
            answer="B",
            **second,
        ),
        mmmu_row("Art", 8, "x", answer="C"),
        mmmu_row("Art", 9, "x", question="In <image 3>?", **second),
    )
    _, within, opened, several, *_ = MMMU_MED.read(mmmu(tmp_path, *rows), "validation", bad)
    assert within.question == "In the image, what is seen?"
    assert (opened.answer, opened.references, opened.options) == ("0.5", ("1/2",), ())
    assert opened.answer_type == "open"
    assert several.question == "image 1 and image 2: which shows it?"
    assert (several.options, several.answer) == (("image 1", "image 2"), "image 2")
    assert [image.id for image in several.images] == [several.id, f"{several.id}#2"]
    assert several.images[1].source == png(9)
    assert several.first_images == tuple(image.id for image in several.images)
    letter, mark = bad.reasons
    assert "row 5: answer 'C' is no letter of the 2 options" in letter
    assert "row 6: <image 3> is not in the row; fetch the file again" in mark
    assert not bad.known_faults


def test_mmmu_names_a_subject_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not each of .*Pharmacy.* has its validation-\*\.parquet"):
        MMMU_MED.read(mmmu(tmp_path, without="Pharmacy"), "validation")


def test_medxpert_question_ends_before_its_choices_and_options_are_in_order(tmp_path: Path) -> None:
    bad = BadRows("skip")
    rows = (
        medxpert_row(id="MM-27", images=["MM-27-b.jpeg", "MM-26-a.jpeg"]),
        medxpert_row(id="MM-28", label="K"),
        medxpert_row(id="MM-29", images=["gone.jpeg"]),
        medxpert_row(id="MM-30", images=[]),
    )
    root = medxpert(tmp_path, *rows)
    (root / "medxpertqa" / "images" / "MM-27-b.jpeg").write_bytes(png(2))
    record, several = MEDXPERTQA_MM.read(root, "test", bad)
    options = ("Scurvy", "Rickets", "Gout", "None", "?")
    assert told(record) == ("What is it?", options, "Rickets", "diagnosis")
    names = ["medxpertqa_mm/MM-27-b.jpeg", "medxpertqa_mm/MM-26-a.jpeg"]
    assert [image.id for image in several.images] == names
    assert several.images[1] is record.image
    ends = ("'K' is no letter of the 5 options", "add it", "no image in the row; fetch the file")
    assert all(end in reason for end, reason in zip(ends, bad.reasons, strict=True))


@pytest.mark.parametrize(
    ("reader", "write"),
    [(OMNIMED_VQA, omnimed), (MMMU_MED, mmmu), (MEDXPERTQA_MM, medxpert)],
)
def test_a_set_is_known_by_its_own_folder_and_not_called_tried(
    tmp_path: Path, reader: KnownSet, write: Callable[[Path], Path]
) -> None:
    write(tmp_path)
    assert registry.available(tmp_path)[reader.NAME]
    assert registry.parse_set(next(tmp_path.iterdir()))[0].NAME == reader.NAME
    assert not reader.TRIED
    with pytest.raises(DataError, match=f"no {reader.MARKERS[0]}"):
        reader.read(tmp_path / "elsewhere", reader.SPLITS[-1])


@pytest.mark.parametrize("changes", [{"gt_answer": "MRI"}, {"option_A": "", "option_B": ""}])
def test_an_answer_that_is_none_of_two_or_more_options_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"row 2: answer .* must be one of the choices"):
        OMNIMED_VQA.read(omnimed(tmp_path, omnimed_row(question_id="x", **changes)), "test")
