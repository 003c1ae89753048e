"""The flags that several verbs share, the types of their values, and where verbs write.

What the disk refuses becomes one line here: a full one ends with 3, all else with 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from medmoe.domains import MEMBERS, MODALITIES, modality_name
from medmoe.errors import ConfigError, GuardError, MedMoeError, one_of
from medmoe.files import FULL, lock, refused, write_text
from medmoe.processes import is_main

Value = TypeVar("Value")
MAX_SEED = 2**32 - 1  # what numpy's legacy seeding takes, and therefore transformers' set_seed


def reader(
    parse: Callable[[str], Value], accepts: Callable[[Value], object], what: str
) -> Callable[[str], Value]:
    """Return the type of a flag: it reads a text, and refuses what is not ``what``."""

    def read(text: str) -> Value:
        with suppress(ValueError):
            value = parse(text)
            if accepts(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return read


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return whole numbers that are separated by commas."""
    return tuple(int(part) for part in text.split(","))


seed = reader(int, lambda n: 0 <= n <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}")
positive_int = reader(int, lambda n: n >= 1, "a whole number of at least 1")
positive_float = reader(float, lambda x: 0 < x < math.inf, "a number above 0")
address = reader(
    str,
    lambda url: url.startswith(("http://", "https://")) and not set(url) & set("@?# "),
    "the address of an endpoint, e.g. http://localhost:8000/v1",
)
share = reader(float, lambda x: 0 < x < 1, "a number between 0 and 1")
counts = reader(
    whole_numbers, lambda each: min(each) >= 0, "a list of whole numbers, e.g. 0,50,100"
)


def window(text: str) -> tuple[float, float] | str:
    """Read a window: two numbers with a comma between them, or the name of a preset."""
    if "," not in text:
        return text
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not C,W: two numbers") from None
    return center, width


def value(
    metavar: str, what: str, parse: Callable[[str], Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return what argparse is told of an argument that takes a value."""
    return {"metavar": metavar, "help": what, "type": parse, **more}


#: The arguments that several verbs share.
SHARED: dict[str, dict[str, Any]] = {
    "model": value(
        "MODEL",
        "folder of a model, e.g. runs/demo/model, of a finished run or of a LoRA adapter, or a hub "
        "id",
        Path,
    ),
    "image": value("IMAGE", "PNG, JPEG, TIFF, WebP, BMP, DICOM or NIfTI file", Path),
    "--further": value(
        "IMAGE",
        "another picture, which stands behind IMAGE and before the question; may be repeated",
        Path,
        action="append",
        default=[],
    ),
    "question": value("QUESTION", "the question, in quotes"),
    "--window": value(
        "C,W",
        "center and width of a DICOM or NIfTI picture, e.g. --window=-600,1500, or a CT preset: "
        "abdomen, bone, brain, liver, lung, mediastinum, stroke, subdural; by default that of the "
        "file",
        window,
    ),
    "--frame": value(
        "K",
        "frame of a DICOM file (default: 1), slice of a NIfTI volume (default: the middle)",
        positive_int,
    ),
    "--plane": {
        "choices": ("axial", "coronal", "sagittal"),
        "help": "plane of a NIfTI volume (default: that of its acquisition)",
    },
    "--site": value(
        "NAME",
        "with the experts of this site, which lie beside MODEL (`medmoe expert import --site`)",
    ),
    "--max-new-tokens": value(
        "N",
        "longest answer, in tokens (default: 32 for sets that the model was trained on, else 512)",
        positive_int,
    ),
    "--protocol": value(
        "NAME",
        "protocol to score under, may be given more than once (default: all)",
        action="append",
    ),
    "--target-risk": value(
        "R",
        "share of an image's questions that may be answered wrongly (default: 0.1)",
        share,
    ),
    "--task": value(
        "T",
        "task, e.g. vqa_rad or phantom_vqa, or your own data: clinic/data.csv, or one split of it, "
        "clinic/data.csv:validation; may be repeated",
        action="append",
        required=True,
    ),
    "--split": value("NAME", "split to read (default: the task's own)"),
    "--limit": value(
        "N", "read N questions of each task only, of images drawn by the seed", positive_int
    ),
    "--data": value(
        "DIR", "folder of the data sets (default: $MEDMOE_DATA, else the embedded phantom)", Path
    ),
    "--format": {
        "choices": ("markdown", "csv", "latex", "json"),
        "dest": "tables",
        "help": "print the tables so, and all else to stderr (default: text)",
    },
    "--dtype": {
        "choices": ("float32", "bfloat16", "float16"),
        "help": "of weights and states (default: the one it was saved in)",
    },
    "--out": value("DIR", "folder to write to (default: %(default)s)", Path),
    "--seed": value("S", "seed of all that is drawn at random (default: 7)", seed, default=7),
    "--set": value(
        "KEY=VALUE",
        "change a value of the recipe, e.g. phases.phase3_moe.learning_rate=1e-4",
        action="append",
        default=[],
        dest="settings",
    ),
    "--records": value(
        "SET",
        "train on your own table or folder of classes instead of the recipe's data; may be given "
        "more than once",
        action="append",
        default=[],
    ),
    "--modality": value(
        "X", "modality of all pictures of a set that names none, e.g. CT, X-ray, histology"
    ),
    "--domains": value("A,B", "the experts' domains instead of the recipe's, e.g. ct,xray"),
    "--on-bad-row": {
        "choices": ("fail", "skip"),
        "default": "fail",
        "help": "a row or picture that cannot be used ends the command (fail), or is left out and "
        "counted",
    },
    "--allow-outside": {
        "action": "store_true",
        "help": "let your own table name pictures outside its folder",
    },
    "--json": value("FILE", "also write the result as JSON", Path),
}
#: How a DICOM or NIfTI file becomes a picture; whose questions are read; one's own pictures.
VIEW = ("--window", "--frame", "--plane")
TASKS = ("--task", "--split", "--limit")
OWN_DATA = ("--records", "--modality", "--domains", "--allow-outside")
#: Of `--seed` where the model has one.
OF_MODEL: dict[str, Any] = {
    "default": None,
    "help": "seed of all that is drawn at random (default: 7; with the phantom the model's own, "
    "whose pictures it has not seen)",
}


def view_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `VIEW`, which say how the one picture is shown.

    Raises:
        ConfigError: There are several pictures.
    """
    view = {"window": args.window, "frame": args.frame, "plane": args.plane}
    if args.further and any(value is not None for value in view.values()):
        raise ConfigError("--window, --frame and --plane need one picture; leave --further out")
    return view


def own_settings(args: argparse.Namespace) -> list[str]:
    """Return modality, domains and `--set` as settings of a recipe; what `--set` says goes last.

    Raises:
        ConfigError: A domain is none that a picture could have.
    """
    settings = []
    if args.modality is not None:
        settings.append(f"data.modality={json.dumps(args.modality)}")
    if args.domains is not None:
        names = [modality_name(name) for name in args.domains.split(",")]
        for name in names:
            if name not in (known := (*MODALITIES, *MEMBERS)):
                raise ConfigError(f"--domains: {one_of(name, known, 'domain')}")
        settings.append(f"model.domains={json.dumps(names)}")
    return [*settings, *args.settings]


_made: list[Path] = []


def make_out_dir(path: Path) -> Path:
    """Create the folder of `--out` where it is missing, and prove that it can be written to.

    After an error `remove_empty_folders` takes it away again, if nothing was written.

    Raises:
        ConfigError: A file stands there, or the folder cannot be created or written to.
        GuardError: The disk is full.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        _made.extend(reversed(missing))
        # Permissions tell too little (root, network and read-only disks): write, then delete.
        with tempfile.NamedTemporaryFile(dir=path, prefix=".medmoe-") as probe:
            probe.write(b"medmoe")
            probe.flush()
    except OSError as error:
        raise refused(error, f"write to {str(path)!r}", "folder by --out DIR") from error
    return path


@contextmanager
def alone_in(path: Path) -> Iterator[Path]:
    """Make the folder of `--out`, and keep other processes that write there out until the end.

    The folder itself is locked: nothing is left of it, whatever ends the process. Of several
    processes that train together the first one locks.

    Raises:
        ConfigError: As `make_out_dir` says, or another process is at work there.
        GuardError: The disk is full.
    """
    make_out_dir(path)
    handle = os.open(path, os.O_RDONLY)
    try:
        if is_main():
            _lock(handle, path)
        yield path
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        lock(handle)
    except BlockingIOError:
        raise ConfigError(
            f"{_holder(os.fstat(handle).st_ino)} is writing to {str(path)!r}; wait for its end, or "
            "give another folder by --out DIR"
        ) from None
    except OSError:  # a disk without locks
        return


def _holder(number: int) -> str:
    """Return who has locked a file, by its number: Linux tells."""
    with suppress(OSError, IndexError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(f":{number}"):
                return f"process {words[4]}"
    return "another process"


def remove_empty_folders() -> None:
    """Remove what `make_out_dir` created and nothing was written to."""
    while _made:
        with suppress(OSError):  # it holds something
            _made.pop().rmdir()


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result of a verb to the file of `--json`, if one was given.

    Raises:
        ConfigError: The file cannot be written.
        GuardError: The disk is full.
    """
    if path is None:
        return
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, "file by --json FILE")


def file_error(error: OSError) -> MedMoeError:
    """Return the one line for what the system refused anywhere else in a verb."""
    where = f"{str(error.filename)!r}: " if error.filename is not None else ""
    reason = f"{where}{error.strerror or error}"
    if error.errno in FULL:
        return GuardError(f"{reason}; free some space on the disk and run the command again")
    return ConfigError(f"{reason}; check that it exists, is of the right kind and may be used")
