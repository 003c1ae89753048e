"""Images and compose file name what exists (sources, targets, flags, routes), and stay shut."""

from __future__ import annotations

import re
import shlex
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
    """Return the instructions of each stage, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
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


def test_the_docs_start_vllm_with_flags_that_exist(repository: Path) -> None:
    text = (repository / "docs" / "serving_vllm.md").read_text(encoding="utf-8")
    commands = re.findall(r"^medmoe serve (?:.*\\\n)*.*", text, flags=re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        assert parser_of("serve").parse_args(words[2:]).engine == "vllm"
