"""A user's own rows in every form that docs/your_own_data.md describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.data.pictures import picture
from tests.data.readers.parquet import png

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.own import Own, find
from medmoe.data.schema import Record
from medmoe.errors import DataError

HEADER = "image,question,answer"
FULL = (
    "image,question,answer,id,split,modality,organ,options,answer_type,question_type,licence\n"
    'a.png,"Which, if any?",cyst,7,test,CT,liver,cyst|mass,,finding,CC0-1.0\n'
    "b.png,Is it normal?,No.,8,train,X-Ray,,,,,\n"
    "b.png,What is seen?,A stent,9,train,,,,open,,\n"
)


def write(folder: Path, text: str, name: str = "scans.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, image in enumerate(("a.png", "b.png")):
        Image.fromarray(picture(seed, 40)).save(folder / image)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_columns_become_fields_of_the_record(tmp_path: Path) -> None:
    own = Own(write(tmp_path, FULL))
    assert own.SPLITS == ("test", "train")
    (record,) = own.read(tmp_path, "test")
    assert (record.id, record.dataset, record.licence) == ("scans/7", "scans", "CC0-1.0")
    assert (record.question, record.answer) == ("Which, if any?", "cyst")
    assert (record.options, record.answer_type) == (("cyst", "mass"), "closed")
    assert (record.image.modality, record.image.organ) == ("ct", "liver")
    assert record.image.source == tmp_path / "a.png"
    assert record.place == f"{tmp_path / 'scans.csv'} row 2"


def test_what_is_left_out_has_a_sound_default(tmp_path: Path) -> None:
    first, second = Own(write(tmp_path, FULL)).read(tmp_path, "train")
    assert (first.answer_type, first.question_type) == ("closed", "yes_no")
    assert (second.answer_type, second.question_type) == ("open", "what")
    assert (first.licence, first.task, first.image.modality) == ("unknown", "vqa", "xray")
    assert first.image is second.image


def test_jsonl_gives_the_same_records_as_csv(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "question": "Which?", "answer": "cyst", "options": ["cyst", "mass"]},
        {"image": "b.png", "question": "What?", "answer": "x", "references": ["y", "z"]},
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    by_json = Own(write(tmp_path, lines, "scans.jsonl")).read(tmp_path, "train")
    table = (
        "image,question,answer,options,references\n"
        "a.png,Which?,cyst,cyst|mass,\nb.png,What?,x,,y|z\n"
    )
    by_csv = Own(write(tmp_path, table)).read(tmp_path, "train")
    assert [(r.question, r.options, r.references) for r in by_json] == [
        (r.question, r.options, r.references) for r in by_csv
    ]


def test_rows_in_chat_form_are_read_without_our_columns(tmp_path: Path) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "<image>\nIs it normal?"},
            {"role": "assistant", "content": "yes"},
        ],
        "images": ["a.png"],
    }
    (record,) = Own(write(tmp_path, json.dumps(chat), "chat.jsonl")).read(tmp_path, "train")
    assert (record.question, record.answer, record.answer_type) == (
        "Is it normal?",
        "yes",
        "closed",
    )
    assert record.image.source == tmp_path / "a.png"


def test_the_one_table_of_a_folder_is_found_by_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "clinic", FULL, "data.csv")
    assert find(path.parent) == Own(path)
    assert len(registry.read(path.parent, tmp_path, "train")) == 2
    assert registry.parse_set(str(path))[0].NAME == "clinic"
    write(path.parent, FULL, "other.jsonl")
    with pytest.raises(DataError, match=r"several tables \(data\.csv, other\.jsonl\)"):
        registry.parse_set(path.parent)


def test_a_path_that_is_no_data_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a table .* nor a folder .*your_own_data\.md"):
        registry.parse_set(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        registry.parse_set(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"unknown data set 'vqarad'.*did you mean 'vqa_rad'"):
        registry.parse_set("vqarad")


def test_a_split_that_no_row_names_lists_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown split of scans 'val'; choose one of: test, train"):
        Own(write(tmp_path, FULL)).read(tmp_path, "val")


def everything(path: Path, **options: bool) -> list[Record]:
    """Return all records of the set at a path, in the order of their ids."""
    reader, _ = registry.parse_set(path, **options)
    parts = registry.read_splits(reader, None, None)
    return sorted((r for records in parts.values() for r in records), key=lambda r: r.id)


def notes(path: Path) -> str:
    reader, _ = registry.parse_set(path)
    bad = BadRows("skip")
    registry.read_splits(reader, None, None, bad)
    return "\n".join(bad.notes)


ASKED = ("Is it normal?", "yes")
TURNS = [
    {"role": "user", "content": f"<image>{ASKED[0]}"},
    {"role": "assistant", "content": ASKED[1]},
]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED[0]}]},
    {"role": "assistant", "content": [{"type": "text", "text": ASKED[1]}]},
]
ASKED_PART = {"type": "text", "text": ASKED[0]}
SHAREGPT = [{"from": "human", "value": f"<image>\n{ASKED[0]}"}, {"from": "gpt", "value": ASKED[1]}]

MARKED = [{"role": "user", "content": "<image>a<image>b<image>"}, TURNS[1]]

#: One question in every form that is read.
FORMS: dict[str, dict[str, Any]] = {
    "table": {"image": "a.png", "question": ASKED[0], "answer": ASKED[1]},
    "list of one": {"image": ["a.png"], "question": ASKED[0], "answer": ASKED[1]},
    "messages": {"messages": TURNS, "images": ["a.png"]},
    "parts": {"messages": PARTS, "images": ["a.png"]},
    "picture in the part": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "image": "a.png"}, PARTS[0]["content"][1]],
            },
            PARTS[1],
        ]
    },
    "images as text": {"messages": TURNS, "images": "a.png"},
    "image": {"messages": TURNS, "image": "a.png"},
    "images as JSON text": {"messages": TURNS, "images": '["a.png"]'},
    "sharegpt": {"conversations": SHAREGPT, "images": ["a.png"]},
    "llava": {"id": "1", "conversations": SHAREGPT, "image": "a.png"},
    "swift": {"query": f"<image>{ASKED[0]}", "response": ASKED[1], "images": ["a.png"]},
    "alpaca": {"instruction": ASKED[0], "input": "", "output": ASKED[1], "images": ["a.png"]},
    "prompt": {"prompt": TURNS[:1], "completion": TURNS[1:], "images": ["a.png"]},
    "other case": {"Image": "a.png", "QUESTION": ASKED[0], "Answer ": ASKED[1]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("array", [False, True])
def test_every_form_gives_the_same_record(tmp_path: Path, form: str, array: bool) -> None:
    text = json.dumps([FORMS[form]] if array else FORMS[form])
    (record,) = everything(write(tmp_path, text, "set.json" if array else "set.jsonl"))
    assert (record.question, record.answer) == ASKED
    assert (record.id, record.answer_type, record.task) == ("set/1", "closed", "vqa")
    assert record.image.source == tmp_path / "a.png"
    assert record.image.id == "set/a.png"
    assert record.further == ()


BOTH = ["a.png", "b.png"]
AGAIN = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "no"}]
#: One conversation on two pictures in forms that can tell so: turns of the second, and the row.
SEVERAL: dict[str, tuple[int, dict[str, Any]]] = {
    "no marks": (
        0,
        {"messages": [{"role": "user", "content": ASKED[0]}, TURNS[1]], "images": BOTH},
    ),
    "llava": (
        0,
        {
            "image": BOTH,
            "conversations": [
                {"from": "human", "value": f"<image>\n<image>\n{ASKED[0]}"},
                SHAREGPT[1],
            ],
        },
    ),
    "parts": (
        0,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": name} for name in BOTH] + [ASKED_PART],
                },
                PARTS[1],
            ]
        },
    ),
    "a later turn": (
        1,
        {
            "messages": [*TURNS, {"role": "user", "content": "<image>Sure?"}, AGAIN[1]],
            "images": json.dumps(BOTH),
        },
    ),
    "both marks late": (
        1,
        {
            "messages": [
                {"role": "user", "content": ASKED[0]},
                TURNS[1],
                {"role": "user", "content": "<image>Sure<image>?"},
                AGAIN[1],
            ],
            "images": BOTH,
        },
    ),
    "history": (
        1,
        {
            "history": [[f"<image>{ASKED[0]}", ASKED[1]]],
            "query": "<image>Sure?",
            "response": "no",
            "images": BOTH,
        },
    ),
    "table": (0, {"image": json.dumps(BOTH), "question": ASKED[0], "answer": ASKED[1]}),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_pictures_of_a_row_keep_their_order_and_their_turns(tmp_path: Path, form: str) -> None:
    turn, row = SEVERAL[form]
    row |= {"modality": "ct|X-ray", "organ": "chest", "patient": "p"}
    (record,) = everything(write(tmp_path, json.dumps(row), "set.jsonl"))
    assert (record.question, record.answer) == ASKED
    assert record.further == ((("Sure?", "no"),) if turn else ())
    assert [image.source for image in record.images] == [tmp_path / name for name in BOTH]
    assert [image.id for image in record.images] == ["set/a.png", "set/b.png"]
    assert [place for place, _ in record.further_images] == [turn]
    assert [image.modality for image in record.images] == ["ct", "xray"]
    assert {image.organ for image in record.images} == {"chest"}
    row["images" if "images" in row else "image"] = BOTH[::-1]
    if form != "parts":
        (turned,) = everything(write(tmp_path, json.dumps(row), "set.jsonl"))
        assert [image.id for image in turned.images] == ["set/b.png", "set/a.png"]


def test_a_csv_names_several_pictures_as_a_json_list(tmp_path: Path) -> None:
    rows = ['"[""a.png"", ""b.png""]",Which is older?,the first', "a.png,Is it old?,yes"]
    rows.append('"[""b.png"", ""a.png""]",Which is older?,the second')
    found = everything(write(tmp_path, "\n".join([HEADER, *rows])))
    shown = [[image.id.rpartition("/")[2] for image in record.images] for record in found]
    assert shown == [BOTH, ["a.png"], BOTH[::-1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": ["a", "b"]}, r"row 1: answer is a list \('\[\"a\", \"b\"\]'\), text is needed"),
        ({"answer": True}, "row 1: answer is a truth value"),
        ({"answer": float("nan")}, "row 1: empty answer"),
        ({"answer": "N/A"}, r"row 1: empty answer \('N/A'\)"),
        ({"question": {"en": "x"}}, "row 1: question is a dict"),
        ({"options": {"A": "yes"}}, "row 1: options is a dict"),
        ({"options": [["yes", "no"]]}, "row 1: options is a list"),
        ({"options": ["no", "maybe"]}, "row 1: answer 'yes' is none of the options no, maybe"),
        ({"options": ["Yes", "No"]}, "did you mean 'Yes'"),
        ({"options": "yes|Yes"}, "row 1: options yes, Yes name one twice"),
        ({"answer_type": "clsoed"}, "unknown answer_type 'clsoed'.*did you mean 'closed'"),
        ({"task": "vqaa"}, "unknown task 'vqaa'.*did you mean 'vqa'"),
        ({"modality": "banana"}, "row 1: unknown modality 'banana'; choose one of: angiography"),
        ({"modaility": "CT"}, "unknown column 'modaility'.*did you mean 'modality'"),
        ({"image": "a" * 3000}, r"image file 'a{80}'… \(3,000 characters\) is missing"),
        ({"image": "https://x.org/a.png"}, "is an address; name a file"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, json.dumps(FORMS["table"] | changes), "set.jsonl")
    with pytest.raises(DataError, match=message):
        everything(path)


@pytest.mark.parametrize(
    ("turns", "more", "message"),
    [
        ([{"role": "system", "content": "x"}, *TURNS], {}, "a turn of 'system' is not trained on"),
        ([{"role": "tool", "content": "x"}, *TURNS], {}, "a turn of 'tool' is not trained on"),
        (
            [{"role": "user", "content": [{"type": "video"}]}, TURNS[1]],
            {},
            "a part 'video' cannot be",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, TURNS[1]],
            {},
            "a part 'image_url'",
        ),
        ([{"role": "user", "content": True}, TURNS[1]], {}, "content is a truth value"),
        (["hello"], {}, "messages holds a str, objects are needed"),
        ("hello", {}, "messages is str, a list is needed"),
        (TURNS, {"system": "You are a doctor."}, "row 1: system is not trained on; remove it"),
        (TURNS, {"images": []}, "row 1: images must hold an image; name its file"),
        (
            MARKED,
            {"images": ["a.png", "b.png"]},
            "row 1: pictures: 2, marks <image>: 3; give each picture once",
        ),
        (
            [TURNS[0], {"role": "assistant", "content": "see <image>"}],
            {"images": ["a.png", "b.png"]},
            "a picture stands in an answer",
        ),
        (
            TURNS,
            {"images": ["a.png", "b.png"], "modality": "ct|mri|ct"},
            r"modality 'ct\|mri\|ct' has 3 words for 2 pictures; give one for all, or one for",
        ),
        (TURNS, {"answer": "no"}, "answer 'no' is not what the messages say \\('yes'\\)"),
        (TURNS, {"options": "no|maybe"}, "answer 'yes' is none of the options no, maybe"),
        (TURNS, {"modality": "banana"}, "row 1: unknown modality 'banana'"),
    ],
)
def test_what_is_no_question_and_answer_in_a_chat_is_refused_by_name(
    tmp_path: Path, turns: object, more: dict[str, Any], message: str
) -> None:
    row = {"messages": turns, "images": ["a.png"]} | more
    with pytest.raises(DataError, match=message):
        everything(write(tmp_path, json.dumps(row), "set.jsonl"))


def test_known_words_are_brought_to_our_spelling(tmp_path: Path) -> None:
    rows = [
        FORMS["messages"] | {"modality": "X-ray", "answer_type": "CLOSED"},
        FORMS["table"] | {"image": "b.png", "modality": "MR", "answer_type": "Open-ended"},
        FORMS["table"] | {"image": "b.png", "question": "What?", "modality": "mri", "task": "VQA"},
    ]
    found = everything(write(tmp_path, "\n".join(map(json.dumps, rows)), "set.jsonl"))
    assert [r.image.modality for r in found] == ["xray", "mri", "mri"]
    assert [r.answer_type for r in found] == ["closed", "open", "closed"]


def test_a_row_that_repeats_another_is_left_out_and_said(tmp_path: Path) -> None:
    rows = ["a.png,Is it?,yes", "a.png,Is it?,Yes", "a.png,What?,left", "a.png,What?,right"]
    path = write(tmp_path, "\n".join([HEADER, *rows]))
    assert f"{path} row 3: the same as row 2; left out" in notes(path)
    assert [r.place.rpartition(" ")[2] for r in everything(path)] == ["2", "4", "5"]


def test_two_answers_to_one_closed_question_are_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\na.png,Is it?,yes\na.png,Is it?,no\n")
    message = "row 3: answers 'no' where row 2 answers 'yes' to the same question .* correct one"
    with pytest.raises(DataError, match=message):
        everything(path)


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [("modality", "ct", "mri"), ("organ", "liver", "lung"), ("patient", "p1", "p2")],
)
def test_rows_must_agree_on_a_picture(tmp_path: Path, column: str, first: str, second: str) -> None:
    path = write(tmp_path, f"{HEADER},{column}\na.png,A?,x,{first}\na.png,B?,x,{second}\n")
    with pytest.raises(DataError, match=f"row 3: {column} '{second}' of image .*says '{first}'"):
        everything(path)


def test_a_picture_outside_the_folder_of_its_table_is_refused_unless_allowed(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "clinic", f"{HEADER}\nlink.png,Is it?,yes\n")
    Image.fromarray(picture(5, 40)).save(tmp_path / "out.png")
    (path.parent / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(DataError, match=r"row 2: .* lies outside .*--allow-outside"):
        everything(path)
    (record,) = everything(path, allow_outside=True)
    assert record.answer == "yes"
    (path.parent / "inside").symlink_to(path.parent)
    path.write_text(f"{HEADER}\ninside/a.png,Is it?,yes\n")
    assert len(everything(path)) == 1


def test_a_picture_has_one_name_however_a_row_spells_its_path(tmp_path: Path) -> None:
    names = ("a.png", "./a.png", ".//a.png", ".\\a.png", str(tmp_path / "a.png"))
    rows = "".join(f"{name},Question {n}?,x\n" for n, name in enumerate(names))
    found = everything(write(tmp_path, f"{HEADER}\n{rows}"))
    assert {record.image.id for record in found} == {"scans/a.png"}
    assert len(found) == len(names)


def test_labels_are_classes_with_all_of_the_set_as_options(tmp_path: Path) -> None:
    path = write(tmp_path, "file_name,label,split\na.png,10,train\nb.png,9,test\n", "metadata.csv")
    (train,), (test,) = (registry.read(path, tmp_path, split) for split in ("train", "test"))
    assert (train.task, train.options, train.answer) == ("classification", ("9", "10"), "10")
    assert test.options == train.options
    assert train.dataset == tmp_path.name
    path.write_text("image,label\na.png,x\nb.png,x\n")
    with pytest.raises(DataError, match=r"metadata\.csv: one class only \('x'\)"):
        everything(path)


def test_captions_are_what_is_to_be_said_of_a_picture(tmp_path: Path) -> None:
    (record,) = everything(write(tmp_path, "image,caption\na.png,A normal chest.\n"))
    assert (record.task, record.answer) == ("caption", "A normal chest.")


def test_tables_named_for_splits_are_one_set(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        write(tmp_path / "clinic", f"{HEADER}\na.png,In {name}?,yes\n", f"{name}.csv")
    reader, _ = registry.parse_set(tmp_path / "clinic")
    parts = registry.read_splits(reader, None, None)
    assert {split: [r.question for r in records] for split, records in parts.items()} == {
        "test": ["In test?"],
        "train": ["In train?"],
        "validation": ["In valid?"],
    }


@pytest.mark.parametrize("splits", [(), ("train", "test")])
def test_a_folder_that_datasets_saved_is_read(tmp_path: Path, splits: tuple[str, ...]) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cyst", "mass"])}
    )
    rows = {"image": [{"bytes": png(n), "path": None} for n in (10, 200)], "label": [1, 0]}
    one = datasets.Dataset.from_dict(rows, features=features)
    saved = datasets.DatasetDict(dict.fromkeys(splits, one)) if splits else one
    saved.save_to_disk(str(tmp_path / "saved"))
    reader, _ = registry.parse_set(tmp_path / "saved")
    parts = registry.read_splits(reader, None, None)
    assert sorted(parts) == ["test", "train"]
    assert [len(records) for records in parts.values()] == ([2, 2] if splits else [1, 1])
    records = [record for found in parts.values() for record in found]
    assert {record.options for record in records} == {("cyst", "mass")}
    assert {record.answer for record in records} == {"cyst", "mass"}


def test_rows_without_answers_are_read_where_none_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path, "image,question\na.png,Is it?\n")
    with pytest.raises(DataError, match=r"row 1: column 'answer' is missing"):
        everything(path)
    (record,) = Own(path, needs_answers=False).content(BadRows()).records
    assert (record.question, record.answer) == ("Is it?", "")
    chat = {"messages": TURNS[:1], "images": ["a.png"]}
    path = write(tmp_path, json.dumps(chat), "chat.jsonl")
    (record,) = Own(path, needs_answers=False).content(BadRows()).records
    assert (record.question, record.answer) == (ASKED[0], "")
