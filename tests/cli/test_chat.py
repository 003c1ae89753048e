"""`medmoe chat`: from a pipe and in a terminal; what it keeps, and that no error ends it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import dicom, nifti, ramp
from tests.model.tiny import DOMAINS, dense_model, processor

from medmoe.cli.chat_session import printable
from medmoe.cli.main import main
from medmoe.data.intake.facts import WARNINGS
from medmoe.inference.chat import ChatChunk, ChatRequest, stream_chat
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model
from medmoe.numbers import probability

QUESTION = "Is there a mass?"
NOTE = "Research use only, not a medical device."
NAME = "SMITH JOHN"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / f"{NAME}.dcm"
    path.write_bytes(dicom(np.stack([ramp(), ramp()[::-1]]), Modality="CT", PatientName=NAME))
    return path


def talk(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: list[str],
    *words: object,
) -> tuple[int, str, str]:
    """Run `chat` with lines from a pipe; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code = main(["chat", *map(str, words), "--max-new-tokens", "4"])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_piped_question_gets_the_engines_answer_confidence_and_router(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = talk(monkeypatch, capsys, [QUESTION], model, picture)
    answer = MedMoe.load(model, max_new_tokens=4).answer(picture, QUESTION)
    assert answer.routing is not None
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "picture: PNG"
    assert "\n".join(lines[1:-3]).strip() == printable(answer.text)
    assert lines[-3:] == [
        f"confidence {probability(answer.confidence)} (not calibrated)",
        f"router: {answer.routing.domain} ({probability(answer.routing.domain_probability)})",
        NOTE,
    ]


def test_follow_ups_windows_and_frames_are_kept_with_what_was_shown(
    model: Path,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [QUESTION, "/window lung", "/frame 2", "And here?", "/window file", "And now?"]
    case = tmp_path / "case.json"
    code, out, err = talk(monkeypatch, capsys, lines, model, scan, "--json", case)
    assert (code, err) == (0, "")
    assert "picture: DICOM, ct, frame 2 of 2, window -600,1500 (as given)" in out
    found = json.loads(case.read_text(encoding="utf-8"))
    assert found["note"] == NOTE
    assert [row["question"] for row in found["exchanges"]] == [QUESTION, "And here?", "And now?"]
    shown = [(row["picture"]["frame"], row["picture"]["window"]["origin"])
             for row in found["exchanges"]]  # fmt: skip
    assert shown == [(1, "percentile"), (2, "given"), (2, "percentile")]
    assert NAME not in out + json.dumps(found)


def test_a_volume_keeps_its_plane(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "head.nii"
    path.write_bytes(nifti())
    lines = ["/frame 3", "/window 40,400"]
    code, out, _ = talk(monkeypatch, capsys, lines, model, path, "--plane", "sagittal")
    assert code == 0
    assert out.count("NIfTI, sagittal, slice") == 3
    assert out.count("NIfTI, sagittal, slice 3 of 20") == 2


def test_a_flat_picture_has_a_warning_and_neither_confidence_nor_alternatives(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, case = tmp_path / "flat.png", tmp_path / "case.json"
    Image.new("L", (40, 40), "white").save(path)
    words = (model, path, "--json", case)
    code, out, _ = talk(monkeypatch, capsys, [QUESTION, "/evidence"], *words)
    assert code == 0
    assert f"warning: {WARNINGS['flat_picture']}" in out
    assert "confidence" not in out
    assert "alternatives" not in out
    (exchange,) = json.loads(case.read_text(encoding="utf-8"))["exchanges"]
    assert (exchange["confidence"], exchange["evidence"]["confidence"]) == (None, None)
    assert exchange["warnings"][0] == WARNINGS["flat_picture"]


def test_evidence_shows_experts_alternatives_and_changes(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = talk(monkeypatch, capsys, [QUESTION, "/evidence"], model, picture)
    assert code == 0
    parts = ["alternatives:", "layer 0: ct ", "layer 2: ct ", "image blanked:", "meta expert off:"]
    parts += [f"expert {domain} forced:" for domain in DOMAINS]
    for part in [*parts, "deletion test of the regions:"]:
        assert part in out


@pytest.mark.parametrize("suffix", [".json", ".html"])
def test_a_saved_case_has_no_identifier_and_is_never_replaced_in_silence(
    model: Path,
    picture: Path,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "new" / f"case{suffix}"
    lines = [QUESTION, f"/save {file}", f"/save {file}"]
    code, out, err = talk(monkeypatch, capsys, lines, model, picture)
    assert code == 2
    assert f"saved: {file}" in out
    assert err.count("\n") == 1
    assert f"exists; /save! {file} replaces it" in err
    text = file.read_text(encoding="utf-8")
    assert QUESTION in text
    assert "Research use only, not a medical device" in text
    assert NAME not in text
    code, _, err = talk(monkeypatch, capsys, ["Other?", f"/save! {file}"], model, picture)
    assert (code, err) == (0, "")
    assert "Other?" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/imagine x", "unknown command '/imagine'; /help lists them"),
        ("/image gone.png", "gone.png"),
        ("/window 1,2,3", "is not C,W"),
        ("/window", "no window given"),
        ("/window lungs", "unknown window preset"),
        ("/frame x", "'x' is no frame"),
        ("/frame 9", "choose one of 1 to 2"),
        ("/save case.txt", "must end in .json or .html"),
        ("/save", "must end in .json or .html"),
        ("/save case.json", "nothing was asked yet"),
        ("/evidence", "nothing was asked yet"),
    ],
)
def test_an_error_is_one_line_and_the_conversation_goes_on(
    model: Path,
    scan: Path,
    line: str,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = talk(monkeypatch, capsys, [line, QUESTION], model, scan)
    assert code == 2
    assert (err.count("\n"), err.startswith("medmoe: error: ")) == (1, True)
    assert part in err
    assert "confidence" in out  # the question after it was answered


def test_a_line_that_is_no_text_or_too_long_is_refused_and_the_talk_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "Größe?\n".encode("cp1252") + f"{QUESTION * 200}\n{QUESTION}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    case = tmp_path / "case.json"
    assert main(["chat", str(model), "--max-new-tokens", "4", "--json", str(case)]) == 2
    out, err = capsys.readouterr()
    assert "is no text in UTF-8" in err.splitlines()[0]
    assert "the model reads at most 256" in err.splitlines()[1]
    assert len(err.splitlines()) == 2
    assert out.count("confidence") == 1
    rows = json.loads(case.read_text(encoding="utf-8"))["exchanges"]
    assert [row["question"] for row in rows] == [QUESTION]


def test_commands_without_a_picture_say_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/frame 1", "/window file", "/image", QUESTION, "/evidence"]
    code, out, err = talk(monkeypatch, capsys, lines, model)
    assert code == 2
    assert err.count("no picture is open; open one by /image PATH") == 2
    assert "there is evidence on pictures only" in err
    assert "picture: none" in out
    assert "confidence" in out
    assert "router:" not in out


@pytest.mark.parametrize("word", ["/bye", "/exit", "exit", "Quit", "bye"])
def test_words_of_other_programs_end_the_talk(
    word: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = talk(monkeypatch, capsys, [word, QUESTION], model)
    assert (code, err) == (0, "")
    assert "confidence" not in out  # nothing after it was asked


@pytest.mark.parametrize("form", ["{0} {1}", "'{0}' {1}", "{1} {0}", "Is it in {0}?"])
def test_the_path_of_a_picture_in_a_question_opens_it(
    form: str,
    model: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / ("a scan.png" if "'" in form else "scan.png")
    shutil.copy(picture, path)
    case = tmp_path / "case.json"
    lines = [form.format(path, QUESTION), "Where?"]
    code, out, err = talk(monkeypatch, capsys, lines, model, "--json", case)
    assert (code, err) == (0, "")
    assert out.count("picture: ") == 1
    asked = [row["question"] for row in json.loads(case.read_text())["exchanges"]]
    assert asked == ["Is it in" if "Is it" in form else QUESTION, "Where?"]


def test_a_dragged_path_alone_opens_and_a_second_on_the_line_is_added(
    model: Path,
    picture: Path,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dragged = " ".join(str(path).replace(" ", "\\ ") for path in (picture, scan))
    code, out, err = talk(monkeypatch, capsys, [dragged, f"/nothing {QUESTION}"], model)
    assert code == 2
    assert ("picture: " in out, "picture 2: " in out) == (True, True)
    assert "confidence" not in out
    assert "unknown command '/nothing'" in err


@pytest.mark.parametrize("word", ["help", "?", "/?"])
def test_help_is_shown_however_it_is_asked_for(
    word: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = talk(monkeypatch, capsys, [word], model)
    assert code == 0
    assert "/image PATH    open a picture" in out
    assert "confidence" not in out


def test_a_bad_picture_leaves_the_one_before_and_a_new_one_begins_anew(
    model: Path,
    picture: Path,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    case = tmp_path / "case.json"
    lines = [QUESTION, f"/image {bad}", "Still?", f"/image '{scan}'", "New?", "/new", "Last?"]
    code, out, err = talk(monkeypatch, capsys, lines, model, picture, "--json", case)
    assert code == 2
    assert err.count("\n") == 1
    rows = json.loads(case.read_text(encoding="utf-8"))["exchanges"]
    assert [(row["question"], row["picture"]["format"]) for row in rows] == [("Last?", "dicom")]
    assert out.count("confidence") == 4


def test_a_dense_model_talks_too(
    tmp_path: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(dense_model("phi"), processor(), tmp_path / "dense", {})
    lines = [QUESTION, "/evidence"]
    code, out, _ = talk(monkeypatch, capsys, lines, tmp_path / "dense", picture)
    assert code == 0
    assert "router: none" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["gone"], "gone: no such model directory"),
        (["{model}", "gone.png"], "gone.png"),
        (["{model}", "--frame", "2"], "--plane and --further need a picture"),
        (["{model}", "--plane", "axial"], "--plane and --further need a picture"),
        (["{model}", "--max-new-tokens", "0"], "at least 1"),
        ([], "see `medmoe chat --help`"),
    ],
)
def test_wrong_use_ends_before_the_first_question(
    model: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *(word.format(model=model) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert part in err


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\x07\u202ec\n\td") == "a\ufffd[2Jb\ufffd\ufffdc\n\td"


class Terminal:
    """`medmoe chat` at a pseudo-terminal."""

    def __init__(self, *words: object) -> None:
        self._end, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medmoe", "chat", *map(str, words)],
            preexec_fn=lambda: os.login_tty(other),
            env=os.environ | {"TERM": "dumb"},
        )
        os.close(other)
        self.seen = self._waiting = ""

    def until(self, text: str, seconds: float = 60) -> None:
        """Read until a text appears; what comes after it is left for the next call."""
        deadline = time.monotonic() + seconds
        while text not in self._waiting:
            assert time.monotonic() < deadline, (text, self.seen, self._waiting)
            if select.select([self._end], [], [], 0.2)[0]:
                self._waiting += os.read(self._end, 65536).decode("utf-8", "replace")
        before, _, self._waiting = self._waiting.partition(text)
        self.seen += before + text

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def press(self, key: str, text: str) -> None:
        """Press a key until a text appears.

        The line editor misses an interrupt that comes between its last look and its waiting for
        the next key; who presses Ctrl-C again is heard.
        """
        for _ in range(60):
            self.type(key)
            try:
                return self.until(text, 1)
            except AssertionError:
                continue
        raise AssertionError((text, self.seen, self._waiting))

    def close(self) -> int:
        try:
            return self.process.wait(30)
        finally:
            self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def terminal(model: Path, picture: Path) -> Iterator[Terminal]:
    found = Terminal(model, picture, "--max-new-tokens", "4")
    yield found
    if found.process.returncode is None:
        found.end()


def test_in_a_terminal_control_c_at_the_prompt_goes_on_and_control_d_ends_with_0(
    terminal: Terminal,
) -> None:
    terminal.until(NOTE)
    terminal.until("> ")
    terminal.type(f"{QUESTION}\n")
    terminal.until("confidence")
    terminal.until("> ")
    terminal.type("half a que")
    terminal.until("half a que")
    terminal.press("\x03", "(Ctrl-D or /quit ends)")
    terminal.type("/nonsense\n")
    terminal.until("unknown command")
    terminal.until("> ")
    terminal.type("\x04")
    terminal.until(NOTE)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.seen


def test_control_c_stops_an_answer_and_the_session_stays(model: Path, picture: Path) -> None:
    terminal = Terminal(model, picture, "--max-new-tokens", "200")
    terminal.until("> ")
    terminal.type(f"{QUESTION}\n")
    terminal.until(f"{QUESTION}\r\n")
    time.sleep(0.1)  # all 200 tokens take some times as long
    terminal.press("\x03", "(stopped)")
    terminal.until("> ")
    terminal.type("/quit\n")
    terminal.until(NOTE)
    assert terminal.close() == 0


def test_a_picture_that_is_added_stands_before_the_next_question(
    model: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = []
    for seed in (1, 2):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    asked: list[ChatRequest] = []

    def listening(engine: MedMoe, request: ChatRequest) -> Iterator[ChatChunk]:
        asked.append(request)
        return stream_chat(engine, request)

    monkeypatch.setattr("medmoe.cli.chat_session.stream_chat", listening)
    case = tmp_path / "case.json"
    lines = [QUESTION, f"/add {paths[1]}", "And this?", "/evidence", "/new", "Again?"]
    code, out, err = talk(
        monkeypatch, capsys, lines, model, picture, "--further", paths[0], "--json", case
    )
    assert code == 2
    assert "there is evidence on one picture only" in err
    places = [[place for place, _ in request.further] for request in asked]
    answered = len(asked[1].turns) == 3  # an answer without a word is left out
    assert places == [[0], [0, 2 if answered else 0], [0, 0]]
    shown = [Image.open(path).convert("RGB").tobytes() for path in paths]
    assert [image.tobytes() for _, image in asked[1].further] == shown
    assert out.count("router, image 3: ") == 2
    (again,) = json.loads(case.read_text())["exchanges"]
    assert [set(each) for each in again["further"]] == [{"picture", "routing"}] * 2


def test_a_picture_is_added_to_one_that_is_open(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = talk(monkeypatch, capsys, [f"/add {picture}"], model)
    assert (code, "no picture is open; open one by /image PATH" in err) == (2, True)
