"""Images and compose file name what exists (sources, targets, flags, routes), and stay shut."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from medmoe.cli.main import parser_of

SERVICES = ("local", "vllm")


def instructions(repository: Path) -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, lines joined."""
    text = (repository / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (line.split(None, 1)[0], line.split(None, 1)[1])
        for line in text.splitlines()
        if line.strip()
    ]


def stages(repository: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each stage, by its name; what precedes the first by none."""
    name = ""
    found: dict[str, list[tuple[str, str]]] = {name: []}
    for word, rest in instructions(repository):
        if word == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        found[name].append((word, rest))
    return found


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    text = (repository / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_every_source_that_is_copied_exists_and_reaches_the_builder(repository: Path) -> None:
    let_in = (repository / "deploy" / "Dockerfile.dockerignore").read_text().split()
    copied = [
        source
        for word, rest in instructions(repository)
        if word == "COPY" and "--from=" not in rest
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (repository / source).exists(), source
        assert f"!{source}" in let_in, source


def test_stages_copy_only_from_stages(repository: Path) -> None:
    names = set(stages(repository))
    used = {
        match
        for word, rest in instructions(repository)
        if word == "COPY"
        for match in re.findall(r"--from=(\S+)", rest)
    }
    assert used <= names


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_runs_as_nobody_in_particular_and_says_how_it_is(
    repository: Path, service: str
) -> None:
    last = dict(stages(repository)[service])
    assert last["USER"].isdigit()
    assert last["USER"] != "0"
    assert "/health/ready" in last["HEALTHCHECK"]
    assert "HF_HUB_OFFLINE=1" in last["ENV"]
    words = yaml.safe_load(last["ENTRYPOINT"])
    assert words[:2] == ["medmoe", "serve"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_with_flags_that_exist(
    repository: Path, compose: dict[str, Any], service: str
) -> None:
    entry = yaml.safe_load(dict(stages(repository)[service])["ENTRYPOINT"])
    args = parser_of("serve").parse_args([*entry[2:], *compose["services"][service]["command"]])
    assert args.engine == service
    assert args.token_file == Path("/run/secrets/medmoe_token")
    assert args.audit_log.parent == Path("/audit")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_may_do_nothing_beyond_its_work(compose: dict[str, Any], service: str) -> None:
    settings = compose["services"][service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["secrets"] == ["medmoe_token"]
    assert all(port.startswith("127.0.0.1:") for port in settings["ports"])
    assert any(volume.endswith("/model:ro") for volume in settings["volumes"])
    assert not {"privileged", "cap_add", "network_mode", "pid", "environment"} & set(settings)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_builds_a_stage_that_exists(
    repository: Path, compose: dict[str, Any], service: str
) -> None:
    build = compose["services"][service]["build"]
    folder = (repository / "deploy" / build["context"]).resolve()
    assert (folder / build["dockerfile"]).is_file()
    assert build["target"] in stages(repository)


def test_each_foreign_base_takes_a_digest(repository: Path) -> None:
    declared = {rest.rstrip("=") for word, rest in instructions(repository) if word == "ARG"}
    names = set(stages(repository))
    for word, rest in instructions(repository):
        if word == "FROM" and (base := rest.split(" AS ")[0]) not in names:
            digest = re.fullmatch(r"[\w./-]+:[\w.-]+\$\{(\w+_DIGEST):\+@\$\1\}", base)
            assert digest, base
            assert digest[1] in declared


@pytest.mark.parametrize(("digest", "code"), [("", 2), ("sha256:00", 0)])
def test_make_says_which_base_has_no_digest(
    repository: Path, tmp_path: Path, digest: str, code: int
) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    text = (repository / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "Dockerfile").write_text(
        text.replace("_DIGEST=\n", f"_DIGEST={digest}\n")
    )
    command = ["make", "-s", "-f", str(repository / "Makefile"), "digests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert re.findall(r"(\w+) is empty", done.stdout) == (
        ["PYTHON_DIGEST", "VLLM_DIGEST"] if code else []
    )


def test_nothing_but_torch_enters_an_image_without_its_hash(repository: Path) -> None:
    installs = [
        command
        for word, rest in instructions(repository)
        if word == "RUN"
        for command in re.split(r"&&|;", rest)
        if "pip install" in command or "pip wheel" in command
    ]
    assert len(installs) == 7
    for command in installs:
        assert "--no-deps" in command
        own = command.split()[-1] in {".", "/wheels/medmoe-*.whl"}
        assert own or "torch==" in command or "--only-binary :all: --require-hashes" in command


def test_the_vllm_image_gets_only_what_it_lacks(repository: Path, tmp_path: Path) -> None:
    (script,) = (rest for word, rest in stages(repository)["vllm"] if word == "RUN")
    script = script.split("&& rm -r")[0].replace("/tmp/", f"{tmp_path}/")
    lock = (repository / "deploy" / "serve.lock").read_text(encoding="utf-8")
    held = sorted(set(re.findall(r"^([\w-]+)==", lock, re.MULTILINE)) - {"nibabel", "rich"})
    (tmp_path / "names").write_text("".join(f"{name}==0\n" for name in held))
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "serve.lock").write_text(lock)
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"pip list"*) cat {tmp_path}/names;; esac\n')
    python.chmod(0o755)
    subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script.replace("/wheels/", f"{tmp_path}/wheels/")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    lacking = (tmp_path / "lacking.lock").read_text()
    assert re.findall(r"^([\w-]+)==", lacking, re.MULTILINE) == ["nibabel", "rich"]
    assert lacking.count("--hash=") == 4


def test_the_docs_start_vllm_with_flags_that_exist(repository: Path) -> None:
    text = (repository / "docs" / "serving_vllm.md").read_text(encoding="utf-8")
    commands = re.findall(r"^medmoe serve (?:.*\\\n)*.*", text, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        assert parser_of("serve").parse_args(words[2:]).engine == "vllm"
