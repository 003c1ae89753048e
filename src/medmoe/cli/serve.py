"""`medmoe serve MODEL`: an OpenAI-compatible server and the clinician's page, in one process."""

from __future__ import annotations

import argparse
import os
import re
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoe.cli import flags
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError

if TYPE_CHECKING:
    from medmoe.serving.chat_engine import ChatEngine

TOKEN_VARIABLE = "MEDMOE_TOKEN"
_VLLM_FLAGS = (
    ("--tensor-parallel-size N", flags.positive_int, "GPUs that share each layer"),
    ("--pipeline-parallel-size N", flags.positive_int, "GPUs that share the layers"),
    ("--data-parallel-size N", flags.positive_int, "copies of the model"),
    ("--max-model-len N", flags.positive_int, "longest conversation in tokens"),
    ("--gpu-memory-utilization SHARE", flags.positive_float, "of the GPU's memory, 0 to 1"),
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `serve`."""
    parser.add_shared("model", "--site")
    parser.add_value(
        "--host HOST", "address to bind to; beyond loopback it needs a token", default="127.0.0.1"
    )
    port = flags.reader(int, lambda n: 0 < n < 65536, "a port from 1 to 65535")
    parser.add_value("--port PORT", "port to bind to (default: 8000)", port, default=8000)
    parser.add_value(
        "--token TOKEN",
        f"token that clients must give; others can see it in the process list: rather "
        f"--token-file FILE or ${TOKEN_VARIABLE}",
    )
    parser.add_value("--token-file FILE", "file that holds the token", Path)
    for flag, pattern, kind, what in (
        ("--allow-host NAME", r"[\w.-]+", "a host's name, e.g. host.docker.internal",
         "also answer by this name without a token; may be given more than once"),
        ("--cors-origin ORIGIN", r"https?://[^/\s*?#@]+", "an origin, e.g. https://chat.example",
         "let pages of this site use the interface; may be given more than once"),
    ):  # fmt: skip
        given = flags.reader(str.lower, re.compile(pattern).fullmatch, kind)
        parser.add_value(flag, what, given, action="append", default=[])
    parser.add_value("--name NAME", "what to call the model (default: by its folder)")
    parser.add_choice(
        "--engine", ("local", "vllm"), "who answers: this process, or vLLM (default: local)"
    )
    _add_limits(parser)
    parser.add_value("--audit-log FILE", "keep a chained log (docs/serving.md)", Path)
    parser.add_choice(
        "--audit-sync",
        ("line", "200ms"),
        "when a line of the log is on the disk: before the next, or within 200 ms (default)",
        default="200ms",
    )
    parser.add_count("--audit-size", 100, "MiB after which the log goes on in a new file")
    parser.add_value(
        "--monitor FILE",
        "watch for drift: what `medmoe monitor reference` wrote (docs/drift.md)",
        Path,
    )
    parser.add_choice(
        "--system-messages",
        ("keep", "drop"),
        "read them as the user's first words, or drop them; either is warned of (default: keep)",
    )
    parser.add_shared("--dtype")
    _add_vllm_arguments(parser)
    parser.add_value("--dicomweb URL", "ask and write to this DICOMweb server (docs/dicomweb.md)")
    parser.add_value("--dicomweb-login FILE", "user:password for it, or Bearer and a token", Path)
    parser.add_switch("--no-page", "only the interface, no page at /")


def _add_limits(parser: Parser) -> None:
    parser.add_count("--max-batch", 16, "conversations answered together")
    parser.add_count("--max-waiting", 32, "requests that may wait; more get 429")
    parser.add_count("--max-new-tokens", 256, "longest answer that may be asked for")
    for flag, seconds, what in (
        ("--deadline", 60.0, "for a whole answer; later ones get 504"),
        ("--drain", 20.0, "for answers under way after SIGTERM"),
    ):
        said = f"{what} (default: {seconds:g})"
        parser.add_value(f"{flag} SECONDS", said, flags.positive_float, default=seconds)


def _add_vllm_arguments(parser: Parser) -> None:
    group = parser.add_argument_group("with --engine vllm (docs/serving_vllm.md)")
    for flag, parse, what in _VLLM_FLAGS:
        parser.add_value(flag, what, parse, group=group)
    parser.add_value(
        "--vllm KEY=VALUE",
        "any other option of vLLM's engine, by its name there; may be given more than once",
        group=group,
        action="append",
        default=[],
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to end.

    Returns:
        0 after a drained end.

    Raises:
        MedMoeError: A setting is unsafe, the model cannot be loaded, or the port is taken.
    """
    from medmoe.serving.settings import ServerSettings

    settings = ServerSettings(
        host=args.host, port=args.port, token=_token(args), max_new_tokens=args.max_new_tokens,
        deadline_seconds=args.deadline, drain_seconds=args.drain,
        drop_system=args.system_messages == "drop", dicomweb=args.dicomweb,
        allow_hosts=tuple(args.allow_host), cors_origins=tuple(args.cors_origin),
        dicomweb_login=args.dicomweb_login and _secret(args.dicomweb_login),
    )  # fmt: skip
    _hide_token(args, settings.token)
    from medmoe.model.checkpoint import verify
    from medmoe.model.locate import find_seeing
    from medmoe.serving.audit import AuditLog
    from medmoe.serving.monitor import Monitor

    try:
        from medmoe.serving.server import Server, quiet_logs
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; run pip install 'medmoe[serve]'"
        ) from None
    if args.dicomweb and find_spec("highdicom") is None:
        raise ConfigError("highdicom is not installed; run pip install 'medmoe[dicomweb]'")
    args.model = find_seeing(args.model)
    verify(args.model)
    _check_port(settings.host, settings.port)
    quiet_logs()
    engine = _engine(args)  # before the log: a refusal leaves none
    audit = None
    if args.audit_log is not None:
        each_line, size = args.audit_sync == "line", args.audit_size * 2**20
        audit = AuditLog(args.audit_log, each_line=each_line, max_bytes=size)
    monitor = None if args.monitor is None else Monitor(args.monitor, engine.facts.sha256)
    address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"
    server = Server(
        engine, settings, audit=audit, monitor=monitor, page=not args.no_page,
        on_ready=lambda: tell(f"ready: {address}"), say=tell,
        again=partial(_engine_again, args),
    )  # fmt: skip
    tell(f"loading {args.model} for {address} …  {FOOTER}")
    server.run()
    if audit is not None:
        audit.close()
    if monitor is not None:
        monitor.close()
    if server.failure is not None:
        raise server.failure
    tell(f"ended. {FOOTER}")
    return 0


def _engine(args: argparse.Namespace) -> ChatEngine:
    options = _vllm_options(args)
    if args.engine == "vllm":
        from medmoe.model.checkpoint import refuse_exported
        from medmoe.serving.vllm.vllm_engine import VllmEngine

        refuse_exported(args.model)
        if args.monitor is not None:
            raise ConfigError("--engine vllm shows no router's choices; leave --monitor out")
        return VllmEngine(
            args.model, name=args.name, max_batch=args.max_batch, max_waiting=args.max_waiting,
            options=options,
        )  # fmt: skip
    dtype = options.pop("dtype", None)
    if options:
        flag = next(iter(options)).replace("_", "-")
        raise ConfigError(f"--{flag} is for vLLM; add --engine vllm, or leave it out")
    from medmoe.inference.engine import MedMoe
    from medmoe.serving.local_engine import LocalEngine

    return LocalEngine(
        args.model, name=args.name, max_batch=args.max_batch, max_waiting=args.max_waiting,
        load_model=partial(MedMoe.load, args.model, dtype=dtype),
    )  # fmt: skip


def _engine_again(args: argparse.Namespace) -> ChatEngine:
    """Return an engine of what the model's folder holds now."""
    from medmoe.model.checkpoint import verify

    if args.engine == "vllm" or args.monitor is not None:
        what = "a drift watch" if args.monitor is not None else "vLLM"
        raise ConfigError(f"{what} is of one model; end this server and start another")
    verify(args.model)
    return _engine(args)


def _vllm_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was said of vLLM, by its own names.

    Raises:
        ConfigError: A pair is none.
    """
    import yaml

    names = [flag[2:].split()[0].replace("-", "_") for flag, _, _ in _VLLM_FLAGS]
    given = {name: getattr(args, name) for name in (*names, "dtype")}
    options = {name: value for name, value in given.items() if value is not None}
    for pair in args.vllm:
        key, equals, text = pair.partition("=")
        name = key.strip().removeprefix("--").replace("-", "_")
        try:
            options[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not (name and equals):
            raise ConfigError(f"--vllm {pair!r} is no KEY=VALUE; e.g. --vllm block_size=32")
    return options


def _token(args: argparse.Namespace) -> str | None:
    """Return the token of a file, a flag or the environment, in this order.

    Raises:
        ConfigError: The file cannot be read.
    """
    if args.token_file is None:
        return args.token or os.environ.get(TOKEN_VARIABLE) or None
    return _secret(args.token_file)


def _secret(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"cannot read the token file {str(file)!r} ({reason}); give another"
        ) from None


def _hide_token(args: argparse.Namespace, token: str | None) -> None:
    """Keep the token from other processes of this user, the decoders first of all.

    A variable that is only deleted can still be read in /proc: the command is started anew without
    it, and finds the token in a pipe.
    """
    from medmoe.data.intake.walls import hide_process

    given = os.environ.pop(TOKEN_VARIABLE, None)
    if given is not None and sys.argv[1:2] == ["serve"]:
        words = [sys.executable, *sys.orig_argv[1:]]
        if token and not (args.token_file or args.token):
            read, write = os.pipe()
            os.write(write, token.encode())
            os.close(write)
            os.set_inheritable(read, True)
            words += ["--token-file", f"/dev/fd/{read}"]
        os.execv(sys.executable, words)
    if args.engine == "local":  # vLLM's processes hand memory to each other by what this forbids
        hide_process()


def _check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be bound, before the model is loaded."""
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot bind to {host} port {port} ({error.strerror}); give another --host or --port"
        ) from None
