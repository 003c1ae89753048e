"""Uses the installed medmoe once, as people do: trains a few steps, asks, scores, serves.

    python scripts/sample_of_verbs.py OUT

It uses the environment of the Python that runs it; `.ci/run` calls it with the oldest releases
that we allow and with the newest transformers. The answers mean nothing: the model is trained for
two steps.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

PHASES = ("phase0_encoder", "phase0_language", "phase1_alignment", "phase2_instruction",
          "phase2_router", "phase3_moe")  # fmt: skip
SMALL = (
    "data.phantom_images=24", "data.phantom_test_images=12", "vocab_size=300", "router.labels=16",
    *(f"phases.{phase}.{setting}" for phase in PHASES for setting in ("steps=2", "batch_size=4")),
)  # fmt: skip
QUESTION = "Is there a nodule?"


def medmoe(*words: str, said: str | None = None) -> str:
    """Run a command of medmoe that must end with 0, and return what it wrote to stdout.

    Args:
        words: The command line.
        said: Typed into it.
    """
    command = [sys.executable, "-m", "medmoe", *words]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"medmoe {' '.join(words)}\n{done.stdout}{done.stderr}ended with {done.returncode}"
        )
    return done.stdout


def serve(model: str) -> str:
    """Serve a model, ask it one question in words and return the answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", "-m", "medmoe", "serve", model, "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        said: list[str] = []
        for line in server.stdout:
            said.append(line)
            if "ready:" in line:
                break
        else:
            sys.exit(f"medmoe serve {model}\n{''.join(said)}ended before it was ready")
        try:
            name = fetched(f"http://127.0.0.1:{port}/v1/models")["data"][0]["id"]
            chat = {"model": name, "messages": [{"role": "user", "content": QUESTION}]}
            reply = fetched(f"http://127.0.0.1:{port}/v1/chat/completions", chat)
        finally:
            server.terminate()
    return str(reply["choices"][0]["message"]["content"])


def fetched(address: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    """Return the JSON that a server answers with; with a body by POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        content: dict[str, Any] = json.load(reply)
    return content


def main(out: Path) -> None:
    """Run the sample, with what it writes under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    model, picture = str(out / "run" / "phase3_moe" / "model"), str(out / "picture.png")
    Image.linear_gradient("L").save(picture)
    medmoe("doctor")
    changes = [word for change in SMALL for word in ("--set", change)]
    medmoe("train", "tiny_phantom", *changes, "--out", str(out / "run"))
    medmoe("ask", model, picture, QUESTION)
    medmoe("chat", model, picture, said=f"{QUESTION}\nAnd where?\n")
    for verb in ("eval", "routes"):  # routes needs pictures of two domains at least
        medmoe(verb, model, "--task", "phantom_vqa", "--limit", "48", "--out", str(out / verb))
    medmoe("explain", model, picture, QUESTION, "--out", str(out / "explain"))
    serve(model)
    releases = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "fastapi"))
    print(f"doctor, train, ask, chat, eval, routes, explain and serve run on {releases}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
