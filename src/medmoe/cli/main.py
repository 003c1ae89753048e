"""`medmoe VERB …`: finds the verb's module, parses its flags, turns errors into exit codes.

A verb's module has `add_arguments(parser)` and `run(args) -> int`, and imports torch and its like
inside `run` only, so that `--help` answers at once. Exit codes: 0 done, 1 ran and found a failure,
2 wrong use or bad input, 3 stopped by a guard (a full disk too), 130 interrupted, 143 stopped by
SIGTERM with a committed checkpoint. Any verb may raise a `MedMoeError`: its one line for the user.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from medmoe import __version__
from medmoe.cli.flags import file_error
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError, MedMoeError, one_of

#: verb -> (module, help), in the order a new user meets them.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("medmoe.cli.demo", "train, evaluate and show a tiny Med-MoE, end to end"),
    "train": ("medmoe.cli.train", "train the phases of a recipe, resume them, or plan them"),
    "ask": ("medmoe.cli.ask", "answer a question about an image with a trained model"),
    "chat": ("medmoe.cli.chat", "ask and follow up about an image in the terminal"),
    "serve": ("medmoe.cli.serve", "serve a model: OpenAI-compatible interface, and a page"),
    "explain": (
        "medmoe.cli.explain",
        "show the evidence behind one answer: experts, regions, changes",
    ),
    "routes": ("medmoe.cli.routes", "draw which expert did what: the paper's routing figures"),
    "convert": ("medmoe.cli.convert", "make a model of a reference or a stock Llava checkpoint"),
    "expert": ("medmoe.cli.expert", "list, exchange, remove, ship or take in single experts"),
    "adopt": ("medmoe.cli.adopt", "check a folder that transformers or PEFT saved, and take it in"),
    "export": (
        "medmoe.cli.export",
        "write a model as graphs of 8- or 4-bit weights, for small machines",
    ),
    "bundle": ("medmoe.cli.bundle", "pack all that a machine without a network needs, or check it"),
    "weights": ("medmoe.cli.weights", "list and fetch pretrained backbones, with their licences"),
    "eval": ("medmoe.cli.eval", "ask a model all questions of a task and score its answers"),
    "predict": ("medmoe.cli.predict", "answer a table of questions whose truth is not known"),
    "score": ("medmoe.cli.score", "score any model's answers under every protocol, side by side"),
    "compare": ("medmoe.cli.compare", "compare two models' answers, paired, with what flipped"),
    "reproduce": ("medmoe.cli.reproduce", "repeat the paper's tables and figures, with verdicts"),
    "cost": ("medmoe.cli.cost", "count a model's weights, memory and FLOPs, beside others"),
    "data": ("medmoe.cli.data", "list, check, show, audit, fetch or export data sets"),
    "audit": ("medmoe.cli.audit", "verify a server's audit log"),
    "monitor": ("medmoe.cli.monitor", "tell whether what a server is asked about has drifted"),
    "doctor": ("medmoe.cli.doctor", "show versions, hardware and data, and what is missing"),
}

#: Verbs that download for long, and show how far they are by the hub's own bars.
_FETCHING = ("weights", "data")
INTERRUPTED = 130


def help_text() -> str:
    """Return the text of `medmoe --help`, without importing any verb."""
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: medmoe VERB [flags]\n\n"
        "Med-MoE: lightweight medical vision-language models with domain experts.\n\n"
        f"verbs:\n{rows}\n\n"
        "  medmoe VERB --help  shows the flags of a verb\n"
        "  medmoe --version    shows the version\n"
        '  eval "$(register-python-argcomplete medmoe)"  lets the TAB key complete them\n\n'
        f"{FOOTER}"
    )


def parser_of(verb: str) -> Parser:
    """Return the parser of one verb.

    Raises:
        ConfigError: There is no such verb.
    """
    if verb not in VERBS:
        raise ConfigError(one_of(verb, VERBS, "verb"))
    module, line = VERBS[verb]
    parser = Parser(prog=f"medmoe {verb}", description=f"{line[0].upper()}{line[1:]}.")
    import_module(module).add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The words after `medmoe`; those of the process by default.
    """
    if "_ARGCOMPLETE" in os.environ:  # the shell asks, for the TAB key
        from medmoe.cli.completion import complete

        complete()
    words = list(sys.argv[1:] if argv is None else argv)
    _accept_any_text()
    _without_arrows_thread()
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # here, so that a closed pipe is met inside this `try`
        return code
    except MedMoeError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("medmoe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()  # the reader (`medmoe … | head`) has left
        return 0
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            _drop_stdout()  # it is stdout that cannot be written
        return _fail(file_error(error))


def _accept_any_text() -> None:
    """Let no character that a terminal or a pipe does not know end a verb."""
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if isinstance(stream, TextIOWrapper):  # not what a notebook or a test puts in its place
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")


def _without_arrows_thread() -> None:
    """Keep pyarrow, which comes with datasets, from starting a thread that is of no use here.

    It serves an allocator that is not the one in use, and blocks all signals: where it fails, the
    process is gone without a word.
    """
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")


def _without_foreign_bars() -> None:
    """Keep transformers and the hub from drawing bars, and from reports on what is loaded."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read by both when they are imported
    # What is missing in a folder is refused by us; a CLIP's other tower need not be listed.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if loaded := sys.modules.get("transformers.utils.logging"):
        loaded.disable_progress_bar()


def _without_a_notebooks_settings() -> None:
    """Forget what a notebook tells its kernel, and so the verbs that a cell of it runs."""
    os.environ["MPLBACKEND"] = "agg"  # one that may not be installed here; no verb opens a window
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        os.environ.pop("FORCE_COLOR", None)  # bars would be redrawn where nothing can be


def _fail(error: MedMoeError) -> int:
    from medmoe.cli.console import tell
    from medmoe.cli.flags import remove_empty_folders

    remove_empty_folders()
    # One line whatever the message holds: logs and scripts read it.
    tell(f"medmoe: error: {' '.join(str(error).split())}", sys.stderr)
    return error.exit_code


def _drop_stdout() -> None:
    """Keep the interpreter from complaining at exit about a stdout that takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help"}:
        from medmoe.cli.console import tell

        tell(help_text())
        return 0
    verb = next((word for word in words if word in VERBS), words[0])  # flags may stand before it
    rest = list(words)
    rest.remove(verb)
    if verb == "--version":
        print(f"medmoe {__version__}")
        return 0
    args = parser_of(verb).parse_strictly(rest)
    _without_a_notebooks_settings()
    if verb not in _FETCHING:
        _without_foreign_bars()
    if getattr(args, "site", None):
        from medmoe.model.locate import find_site

        args.model = find_site(args.model, args.site)
    run = import_module(VERBS[verb][0]).run
    if getattr(args, "tables", None) is None:
        return int(run(args))
    from medmoe.cli.table_formats import tables_as

    with tables_as(args.tables):
        return int(run(args))
