"""What chat programs and libraries send: their recorded requests replayed, and some for real."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.serving.support import Running, data_url, png

HERE = Path(__file__).parent
#: A Python that has the libraries: they want older versions of ours.
PYTHON = os.environ.get("MEDMOE_CLIENTS_PYTHON", sys.executable)
RECORDED = json.loads((HERE / "client_requests.json").read_text())


def webp() -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(png())).save(out, "WEBP", lossless=True)
    return out.getvalue()


def answer_of(reply: Any, body: dict[str, Any], path: str) -> str:
    """Return the words of a whole or streamed answer, in the shape of its interface."""
    chat = path == "chat/completions"
    if not body.get("stream"):
        told = reply.json()
        content = told["choices"][0]["message"] if chat else told["output"][0]["content"][0]
        return str(content["content" if chat else "text"])
    lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line[6:]) for line in lines]
    if chat:
        assert reply.text.endswith("data: [DONE]\n\n")
        deltas = [e["choices"][0]["delta"] for e in events if e["choices"]]
        return "".join(delta.get("content", "") for delta in deltas)
    assert events[-1]["type"] in {"response.completed", "response.incomplete"}
    return "".join(e["delta"] for e in events if e["type"].endswith("text.delta"))


@pytest.mark.parametrize("asked", RECORDED, ids=[one["client"] for one in RECORDED])
def test_a_recorded_request_is_answered_and_its_warnings_are_known(talk: Any, asked: Any) -> None:
    text = json.dumps(asked["body"])
    for name, picture in (("webp", data_url(webp(), "image/webp")), ("second", data_url(png(40)))):
        text = text.replace(f"{{{name}}}", picture)
    body, path = json.loads(text), asked["path"]
    reply = talk("POST", f"/v1/{path}", json=body)
    assert reply.status_code == 200, reply.text
    warnings = reply.headers.get("x-medmoe-warning", "")
    said = [part for part in warnings.split("; ") if part and not part.startswith("leave it out")]
    assert [one[: len(known)] for one, known in zip(said, asked["warned"], strict=True)] == [
        *asked["warned"]
    ]
    answer = answer_of(reply, body, path)
    if "json_schema" in text:
        assert json.loads(answer) in [{"answer": "yes"}, {"answer": "no"}]
    assert base64.b64encode(webp()).decode() not in reply.text


@pytest.mark.parametrize(
    ("library", "script"),
    [("langchain_openai", "ask_langchain.py"),
     ("llama_index.llms.openai_like", "ask_llama_index.py")],
)  # fmt: skip
def test_a_library_asks_for_itself(
    server: Running, tmp_path: Path, library: str, script: str
) -> None:
    """Chat, stream and answers to a schema; each of both interfaces where it knows both."""
    if subprocess.run([PYTHON, "-c", f"import {library}"], capture_output=True).returncode:
        pytest.skip(f"no {library} in {PYTHON}: name another in MEDMOE_CLIENTS_PYTHON")
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, "-I", str(HERE / "clients" / script), f"{server.address}/v1", str(picture)],
        capture_output=True, text=True, env=environment, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["chat"] == told["streamed"] == told["responses"] == told["responses_streamed"]
    assert told["chosen"] in {"yes", "no"}


def test_the_commands_of_the_document_are_answered(
    server: Running, tmp_path: Path, repository: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    text = (repository / "docs" / "serving.md").read_text().partition("## Asking otherwise")[2]
    commands = re.findall(r"^```sh\n(.*?)^```", text.partition("\n## ")[0], re.M | re.S)
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    assert commands
    for command in commands:
        changed = command.replace("http://127.0.0.1:8000", server.address).replace(
            "runs/demo/examples/ct.png", str(picture)
        )
        done = subprocess.run(
            ["bash", "-ec", changed.replace('"demo"', '"tiny"')],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        models, answer, upload = _objects(done.stdout)
        assert models["data"][0]["id"] == "tiny"
        content = answer["choices"][0]["message"]["content"]
        assert json.loads(content)["answer"] in {"yes", "no"}
        assert upload["purpose"] == "vision"


def _objects(text: str) -> list[Any]:
    """Return the JSON objects that stand one behind the other."""
    found = []
    while text := text.strip():
        one, end = json.JSONDecoder().raw_decode(text)
        found.append(one)
        text = text[end:]
    return found
