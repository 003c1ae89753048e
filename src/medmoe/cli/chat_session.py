"""The conversation of `medmoe chat`: its picture, its questions and its commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.console import tell, tell_answer, tell_pieces
from medmoe.cli.typed import pictures_amid, typed_path
from medmoe.data.images import Picture, open_picture
from medmoe.data.intake.display import WINDOW_PRESETS, Plane, WindowChoice
from medmoe.errors import ConfigError
from medmoe.files import write_text
from medmoe.inference.case import Case, case_to_json
from medmoe.inference.chat import stream_chat
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import Evidence, explain

HELP = """\
A line is a question. The path of a picture in it opens that picture first; further ones are added.
A line that begins with / is a command:
  /image PATH    open a picture and begin anew (/image alone: say what is open; /image none: none)
  /add PATH      show one more picture, which stands before the next question
  /window C,W    show it in this window: center,width or a CT preset; "file" for the file's own
  /frame K       show this frame of a DICOM file, or slice of a NIfTI volume
  /evidence      show what is behind the last answer: alternatives, experts, what would change it
  /save FILE     write the case to FILE, .json or .html; /save! FILE replaces a file
  /new           forget the conversation, keep the pictures
  /help          show this (help and ? too)
  /quit          end (Ctrl-D, /exit, /bye, exit, quit and bye too)"""

#: What people type who know other programs, each alone on its line.
SYNONYMS = {
    **dict.fromkeys(("/exit", "/bye", "exit", "quit", "bye"), "/quit"),
    **dict.fromkeys(("/?", "help", "?"), "/help"),
}


class Session:
    """One conversation.

    Args:
        model: What to call the model in what is saved.
        max_new_tokens: Longest answer.
    """

    def __init__(self, model: str, max_new_tokens: int) -> None:
        self.engine: MedMoe | None = None
        self.ended = False
        self._model, self._max_new_tokens = model, max_new_tokens
        self._path: Path | None = None
        self._case = Case()
        self._asked_about: Picture | None = None  # by the last question
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/add": lambda file: self.add(typed_path(file)),
            "/window": self._set_window,
            "/frame": self._set_frame,
            "/evidence": self._evidence,
            "/save": self._save,
            "/save!": lambda file: self._save(file, replace=True),
            "/new": self._new,
            "/help": lambda _: tell(HELP),
            "/quit": self._quit,
        }

    def take(self, line: str) -> None:
        """Carry out a line: a question or a command.

        Raises:
            MedMoeError: It cannot be carried out; the conversation goes on as it was.
        """
        line = line.strip()
        line = SYNONYMS.get(line.lower(), line)
        if not line:
            return
        name, _, rest = line.partition(" ")
        if name in self._commands:
            self._commands[name](rest.strip())
            return
        pictures, question = pictures_amid(line)
        if line.startswith("/") and not pictures:
            raise ConfigError(f"unknown command {name!r}; /help lists them")
        for path in pictures[:1]:
            self.open(path)
        for path in pictures[1:]:
            self.add(path)
        if question:
            self._ask(question)

    def open(
        self,
        path: Path,
        window: WindowChoice | None = None,
        frame: int | None = None,
        plane: Plane | None = None,
    ) -> None:
        """Open a picture and begin a conversation about it.

        Raises:
            ImageError: It cannot be used; the one before stays.
        """
        case = Case(plane=plane)
        self._look(case, path, window, frame)
        self._case, self._path = case, path

    def add(self, path: Path) -> None:
        """Add a picture, which stands before the next question.

        Raises:
            ConfigError: No picture is open.
            ImageError: It cannot be used.
        """
        self._opened()
        picture = open_picture(path)
        self._case.added.append((len(self._case.exchanges), picture))
        tell(f"picture {1 + len(self._case.added)}: {picture.facts.description()}")
        for warning in picture.facts.sentences():
            tell(f"warning: {warning}")

    def to_json(self) -> dict[str, Any]:
        """Return the conversation as an object for JSON."""
        return case_to_json(self._model, self._case.exchanges)

    @staticmethod
    def _look(case: Case, path: Path, window: WindowChoice | None, frame: int | None) -> None:
        picture = case.look(path, window, frame)
        tell(f"picture: {picture.facts.description()}")
        for warning in picture.facts.sentences():
            tell(f"warning: {warning}")

    def _ask(self, question: str) -> None:
        assert self.engine is not None
        exchange, request = self._case.ask(question, self._max_new_tokens)
        self._asked_about = self._case.picture
        try:
            with closing(stream_chat(self.engine, request)) as chunks:
                tell_pieces(printable(exchange.take(chunk)) for chunk in chunks)
        except ConfigError:  # it is too long, or no text
            self._case.exchanges.remove(exchange)
            raise
        told = exchange.picture.sentences() if exchange.picture else []  # as it was opened
        new = exchange.warnings if exchange.further_pictures else exchange.warnings[len(told) :]
        tell_answer(exchange.confidence, exchange.routing, new, exchange.further)

    def _image(self, text: str) -> None:
        if text == "none":
            self._case, self._path = Case(), None
        elif text:
            self.open(typed_path(text))
        if not text or text == "none":
            shown = self._case.picture.facts.description() if self._case.picture else "none"
            tell(f"picture: {shown}")

    def _set_window(self, text: str) -> None:
        try:
            wanted = None if text == "file" else flags.window(text)
        except Exception as error:
            raise ConfigError(f'{error}, a preset or "file"; e.g. /window 40,400') from None
        if not text:
            presets = ", ".join(sorted(WINDOW_PRESETS))
            raise ConfigError(f'no window given; give C,W, "file", or for CT one of: {presets}')
        self._look(self._case, self._opened(), wanted, self._case.frame)

    def _set_frame(self, text: str) -> None:
        if not (text.isascii() and text.isdigit() and int(text) >= 1):
            raise ConfigError(f"{text!r} is no frame; give a whole number from 1")
        self._look(self._case, self._opened(), self._case.window, int(text))

    def _opened(self) -> Path:
        if self._path is None:
            raise ConfigError("no picture is open; open one by /image PATH")
        return self._path

    def _evidence(self, _: str) -> None:
        assert self.engine is not None
        if not self._case.exchanges:
            raise ConfigError("nothing was asked yet; type a question")
        if self._asked_about is None:
            raise ConfigError("there is evidence on pictures only; open one by /image PATH")
        last = self._case.exchanges[-1]
        if last.further_pictures:
            raise ConfigError("there is evidence on one picture only; open it alone by /image PATH")
        evidence = explain(self.engine, self._asked_about.image, last.question)
        last.evidence = evidence.to_dict()
        for line in evidence_lines(evidence, last.answer):
            tell(line)

    def _save(self, text: str, *, replace: bool = False) -> None:
        path = typed_path(text)
        if not text or path.suffix not in (".json", ".html"):
            raise ConfigError(f"{text!r} must end in .json or .html, e.g. /save case.html")
        if not self._case.exchanges:
            raise ConfigError("nothing was asked yet, there is nothing to save; type a question")
        if path.exists() and not replace:
            raise ConfigError(f"{str(path)!r} exists; /save! {text} replaces it")
        if path.suffix == ".json":
            flags.write_json(path, self.to_json())
        else:
            from medmoe.serving.page.views import export_html

            write_text(path, export_html(self._model, self._case.exchanges, None))
        tell(f"saved: {path}")

    def _new(self, _: str) -> None:
        self._case.exchanges = []
        self._case.added = [(0, picture) for _, picture in self._case.added]
        tell("the conversation is forgotten")

    def _quit(self, _: str) -> None:
        self.ended = True


def evidence_lines(evidence: Evidence, answer: str) -> Iterator[str]:
    """Yield an evidence card as plain lines.

    Args:
        answer: What was answered in the conversation.
    """
    if evidence.answer != answer:
        alone = printable(evidence.answer)
        yield f"asked alone, without what was said before, the answer is: {alone}"
    if evidence.alternatives:  # none about a flat picture
        yield "alternatives:"
    for other in evidence.alternatives:
        yield f"  {100 * other.probability:5.1f} %  {printable(other.text) or '(empty)'}"
    if evidence.routing is None:
        yield "router: none, a dense model: nothing says whether the picture is of a known domain"
    else:
        yield evidence.routing.out_of_domain.sentence
        yield "experts, % of the image's tokens:"
        for layer, shares in evidence.routing.experts.items():
            listed = ", ".join(f"{name} {100 * share:.0f}" for name, share in shares.items())
            yield f"  layer {layer}: {listed}"
    yield "what would change it:"
    for row in evidence.counterfactuals:
        mark = "another answer" if row.differs else "the same answer"
        yield f"  {row.change}: {printable(row.answer) or '(empty)'} ({mark})"
    passed = "passed" if evidence.attribution.deletion.passed else "not passed, do not rely on them"
    yield f"deletion test of the regions: {passed}"


def printable(text: str) -> str:
    """Return a model's words without what a terminal would take for an order."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
