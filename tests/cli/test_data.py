"""`medmoe data`: each action on data that the tests write, and on the real sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.data.pictures import copied, picture
from tests.data.test_download import Server, archive, listed

from medmoe.cli.main import main
from medmoe.data import registry
from medmoe.data.leakage import refuse_leaks
from medmoe.data.registry import READERS

FOOTER = "Research use only, not a medical device."


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve pictures in train and two in test, of which one is a copy."""
    folder = tmp_path / "clinic"
    folder.mkdir()
    rows = ["image,question,answer,split,modality"]
    for number in range(12):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,Is it <b>large</b>?,{('yes', 'no')[number % 2]},train,CT")
    for name, pixels in (("copy", copied(picture(3), scale=0.8)), ("new", picture(40))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
        rows.append(f"{name}.png,What is it?,a cyst,test,MR")
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    return folder / "data.csv"


def run(tmp_path: Path, *words: object) -> dict[str, Any]:
    path = tmp_path / "result.json"
    assert main(["data", *map(str, words), "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["data", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("medmoe: error: ")
    assert err.count("\n") == 1
    return err


def test_list_names_every_set_and_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pathmnist.npz").touch()
    found = run(tmp_path, "list", "--data", tmp_path)
    assert [row["name"] for row in found["sets"]] == list(READERS)
    assert [row["name"] for row in found["sets"] if row["there"]] == ["pathmnist"]
    assert capsys.readouterr().out.rstrip().endswith(FOOTER)


def test_a_family_of_sets_is_fetched_by_its_name_from_the_mirror_that_is_named(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows(*names: str) -> bytes:
        turns = [
            {"from": "human", "value": "Describe.\n<image>"},
            {"from": "gpt", "value": "A CT."},
        ]
        asked = [{"id": n, "image": f"{n}.jpg", "conversations": turns} for n in names]
        return json.dumps(asked).encode()

    pictures = {f"p{n}": (tmp_path / f"{n}.jpg") for n in (1, 2)}
    for number, path in enumerate(pictures.values()):
        Image.fromarray(picture(number)).save(path)
    server.files |= {
        "/alignment/llava_med_alignment_500k.json": rows("1", "2"),
        "/instruct/llava_med_instruct_60k_inline_mention.json": rows("2", "3"),
        "/llava_med_image_urls.jsonl": listed(
            server,
            *((n, "/a.tar.gz", f"p{n}") for n in ("1", "2")),
            ("3", "/gone.tar.gz", "p3"),
        ),
        "/a.tar.gz": archive(**{name: path.read_bytes() for name, path in pictures.items()}),
    }
    monkeypatch.setenv("MEDMOE_MIRROR", f"{server.address}/")
    data = tmp_path / "data"
    got = run(tmp_path, "get", "llava_med", "--data", data)
    names = ["llava_med_alignment", "llava_med_instruct"]
    assert got["folders"] == dict.fromkeys(names, str(data / "llava-med"))
    assert got["known_faults"] == {"llava_med_instruct: no picture (its archive is gone)": 1}
    out = capsys.readouterr().out
    assert "left out: 1 rows of the official set: llava_med_instruct: no picture (its arch" in out
    assert server.paths().count("/a.tar.gz") == 1
    splits = run(tmp_path, "info", *names, "--data", data)["splits"]
    assert [splits[f"{name}/train"]["images"] for name in names] == [2, 1]
    assert refused(capsys, "get", "llava_medium", "--data", data).startswith(
        "medmoe: error: unknown data"
    )


def test_info_counts_by_split_type_modality_and_licence(tmp_path: Path, table: Path) -> None:
    splits = run(tmp_path, "info", table)["splits"]
    assert list(splits) == ["clinic/train", "clinic/test"]
    train = splits["clinic/train"]
    assert (train["n"], train["images"]) == (12, 12)
    assert train["answer_types"] == {"closed": 12}
    assert train["modalities"] == {"ct": 12}
    assert train["licences"] == {"unknown": 12}
    assert splits["clinic/test"]["question_types"] == {"what": 2}


def test_info_counts_the_turns_of_conversations(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [{"role": r, "content": "x"} for r in ("user", "assistant") * 3]
    rows = [{"messages": said[: 2 * n], "images": [f"{n}.png"], "split": "train"} for n in (1, 3)]
    chats = table.with_name("chats.jsonl")
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path, "info", chats)["splits"]["chats/train"]["turns"] == 4
    assert "2 rows on 2 images, 2 further turns of conversations" in capsys.readouterr().out
    assert run(tmp_path, "info", table)["splits"]["clinic/train"]["turns"] == 12
    assert "conversations" not in capsys.readouterr().out


def test_info_lists_all_bad_rows_and_fails_unless_they_may_be_skipped(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with table.open("a") as file:
        file.write("gone.png,Is it?,yes,train,CT\n0.png,Is it?,,train,CT\n")
        file.write("broken.png,Is it?,no,train,\n")
    (table.parent / "broken.png").write_bytes((table.parent / "0.png").read_bytes()[:-30])
    bad = tmp_path / "bad.json"
    line = refused(capsys, "info", table, "--check-images", "--json", bad)
    assert f"{table} row 16: image file 'gone.png' is missing" in line
    assert "row 17: empty answer" in line
    assert "row 18: unreadable image: broken PNG file" in line
    reasons = json.loads(bad.read_text())["bad_rows"]
    assert [re.search(r"row \d+", reason)[0] for reason in reasons] == [  # type: ignore[index]
        "row 16",
        "row 17",
        "row 18",
    ]
    found = run(tmp_path, "info", table, "--check-images", "--on-bad-row", "skip")
    assert found["splits"]["clinic/train"]["n"] == 12
    assert len(found["bad_rows"]) == 3
    assert "left out: 3 rows" in capsys.readouterr().out


def test_show_writes_one_sheet_per_split(tmp_path: Path, table: Path) -> None:
    sheets = run(tmp_path, "show", table, "--out", tmp_path / "sheets", "--count", 6)["sheets"]
    assert list(sheets) == ["clinic/train", "clinic/test"]
    sizes = [Image.open(path).size for path in sheets.values()]
    assert all(width > 400 and height > 200 for width, height in sizes)


def test_audit_finds_the_copy_and_fix_parts_it_from_its_original(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit"
    found = run(tmp_path, "audit", table, "--out", out, "--fix", "image-disjoint")
    said = capsys.readouterr().out
    assert re.search(r"^clinic/train +clinic/test +12 +2 +1$", said, re.MULTILINE)
    assert "2 of 3 pairs share no picture" in said
    assert len(re.findall(r"^clinic/", said, re.MULTILINE)) == 1  # those are not listed
    across = next(o for o in found["overlaps"] if o["left"] != o["right"])
    assert (across["left"], across["right"]) == ("clinic/train", "clinic/test")
    assert (across["left_images"], across["right_images"], across["shared_images"]) == (12, 2, 1)
    (pair,) = across["pairs"]
    assert (pair["left"], pair["right"], pair["kind"]) == (
        "clinic/3.png",
        "clinic/copy.png",
        "near",
    )
    assert json.loads((out / "audit.json").read_text()) == found
    records = [r for s in ("train", "test") for r in registry.read(table, tmp_path, s)]
    split = json.loads((out / "image_disjoint.json").read_text())
    names = {part: {f"clinic/{name}" for name in split[part]} for part in ("train", "test")}
    parts = {part: [r for r in records if r.image.id in names[part]] for part in names}
    assert all(parts.values())
    assert not refuse_leaks(parts["train"], parts["test"]).pairs


def test_the_page_is_one_file_that_escapes_and_fetches_nothing(tmp_path: Path, table: Path) -> None:
    with table.open("a") as file:
        file.write("new.png,Is it?,<script>x</script>,test,MR\n")
    run(tmp_path, "audit", table, "--out", tmp_path / "audit")
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert FOOTER in page
    assert "clinic/copy.png" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize("action", ["audit", "export"])
def test_a_picture_that_cannot_be_read_ends_with_2_and_writes_nothing_unless_skipped(
    tmp_path: Path, table: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with table.open("a") as file:
        file.write("broken.png,Is it?,no,train,CT\nbroken.png,What?,x,train,CT\n")
    (table.parent / "broken.png").write_bytes((table.parent / "0.png").read_bytes()[:-30])
    out = tmp_path / "out"
    line = refused(capsys, action, table, "--out", out)
    assert f"{table} row 16: unreadable image" in line
    assert "row 17: unreadable image" in line
    assert "--on-bad-row skip" in line
    assert not out.exists()
    found = run(tmp_path, action, table, "--out", out, "--on-bad-row", "skip")
    said = capsys.readouterr().out
    assert "left out: 2 rows" in said
    assert said.count("unreadable image") == 2
    if action == "audit":
        assert list(found["unreadable_images"]) == ["clinic/broken.png"]
        assert len(found["bad_rows"]) == 2
        assert found["overlaps"][0]["left_images"] == 13
        assert found["answers"]["clinic/train"]["n"] == 12
    else:
        rows = Path(found["files"]["clinic/train"]).read_text().splitlines()
        assert len(rows) == 12


def test_an_audit_that_finds_shared_pictures_ends_with_0(tmp_path: Path, table: Path) -> None:
    found = run(tmp_path, "audit", table, "--out", tmp_path / "audit")
    assert sum(overlap["shared_images"] for overlap in found["overlaps"]) > 0


def test_show_names_the_row_whose_picture_it_cannot_draw(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (table.parent / "0.png").write_bytes(b"")
    line = refused(capsys, "show", table, "--out", tmp_path / "sheets", "--count", 12)
    assert "image clinic/0.png: empty file" in line


@pytest.mark.parametrize("words", [("--target", "trl"), ("--format", "parquet")])
def test_what_is_exported_is_read_back(tmp_path: Path, table: Path, words: tuple[str, ...]) -> None:
    files = run(tmp_path, "export", table, "--out", tmp_path / "out", *words)["files"]
    again = run(tmp_path, "info", files["clinic/train"])["splits"]
    assert [content["n"] for content in again.values()] == [12]


def test_wrong_use_is_one_line(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "arguments are required: SET; see `medmoe data info --help`" in refused(capsys, "info")
    assert "'--cuont'; did you mean --count?" in refused(capsys, "show", table, "--cuont", "3")
    assert "arguments are required: ACTION" in refused(capsys)
    assert "did you mean 'vqa_rad'" in refused(capsys, "info", "vqarad")
    assert "vqa_rad: where is it? give the data folder with --data" in refused(
        capsys, "info", "vqa_rad"
    )
    assert "data get needs --data DIR" in refused(capsys, "get", "slake")
    assert "hub cannot be reached" in refused(capsys, "get", "slake", "--data", tmp_path / "d")
    assert "is given twice" in refused(capsys, "info", table, table)
    assert "invalid choice: 'sho' (choose from" in refused(capsys, "sho", table)


def test_real_test_images_of_vqa_rad_all_stand_in_train(shared: Path, tmp_path: Path) -> None:
    words = ("audit", "vqa_rad", "--data", shared / "data", "--out", tmp_path / "audit")
    found = run(tmp_path, *words)
    (across,) = [o for o in found["overlaps"] if o["left"] != o["right"]]
    assert {key: across[key] for key in ("left", "right", "shared_images")} == {
        "left": "vqa_rad/train",
        "right": "vqa_rad/test",
        "shared_images": 203,
    }
    assert (across["left_images"], across["right_images"]) == (314, 203)
    test = found["answers"]["vqa_rad/test"]
    assert test["answer_types"] == {"closed": 272, "open": 179}
    assert test["baselines"]["always_yes"] == {"closed": 43.38, "open": 0.0}  # 118 of 272
    assert test["rows_also_in"] == {"vqa_rad/train": 14}


def test_own_data_is_read_as_it_is_and_how_is_said(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = table.read_text().replace(",train,", ",,").replace(",test,", ",,").replace(",", ";")
    table.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = run(tmp_path, "info", f"{table}")
    assert sum(part["n"] for part in found["splits"].values()) == 14
    assert found["notes"] == [
        f"{table}: read as UTF-8 with a byte-order mark",
        f"{table}: columns are separated by semicolons",
        next(note for note in found["notes"] if "no split is named: parted by picture" in note),
    ]
    said = capsys.readouterr().out
    assert all(note in said for note in found["notes"])
    part = run(tmp_path, "info", f"{table}:train")["splits"]
    assert part == {"clinic/train": found["splits"]["clinic/train"]}


def test_a_picture_outside_is_read_where_that_is_allowed(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.png").write_bytes((table.parent / "0.png").read_bytes())
    with table.open("a") as file:
        file.write("../out.png,Is it?,yes,train,CT\n")
    assert "row 16: image file '../out.png' lies outside" in refused(capsys, "info", table)
    assert run(tmp_path, "info", table, "--allow-outside")["splits"]["clinic/train"]["n"] == 13


def test_the_folder_of_a_known_set_is_recognised(shared: Path, tmp_path: Path) -> None:
    found = run(tmp_path, "info", shared / "data" / "vqa-rad")
    assert found["notes"] == [f"{shared / 'data' / 'vqa-rad'}: read as vqa_rad"]
    assert list(found["splits"]) == ["vqa_rad/train", "vqa_rad/test"]
