"""Installs a bundle and uses it, where there is no network: `python offline.py FOLDER TARGET`.

Of the standard library alone, as it runs on the system's Python. Writes, as JSON, what each step
took and said.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ADDRESS = "http://127.0.0.1:8000"
#: A busy machine trains for minutes.
LIMIT_SECONDS = 3000


def alone() -> bool:
    """Return whether there is no interface but loopback, and no way to another machine."""
    try:
        socket.create_connection(("192.0.2.1", 80), 5).close()
    except OSError:
        return [name for _, name in socket.if_nameindex()] == ["lo"]
    return False


def run(*words: object) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def asked(path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the server's reply to one request."""
    body = None if content is None else json.dumps(content).encode()
    head = {"content-type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(ADDRESS + path, body, head), timeout=600
    ) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def served(medmoe: Path, model: Path, picture: Path) -> dict[str, Any]:
    """Return a real server's reply to one question."""
    image = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    parts = [
        {"type": "text", "text": "Is there any nodule?"},
        {"type": "image_url", "image_url": {"url": image}},
    ]
    server = subprocess.Popen([medmoe, "serve", model], stdout=subprocess.PIPE)
    try:
        end = time.monotonic() + 600
        while time.monotonic() < end and server.poll() is None:
            try:
                asked("/health/ready")
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        name = asked("/v1/models")["data"][0]["id"]
        message = {"role": "user", "content": parts}
        return asked("/v1/chat/completions", {"model": name, "messages": [message]})
    finally:
        server.terminate()
        server.wait(60)


def main(folder: Path, target: Path) -> None:
    """Install, train and report a tiny model, ask the bundle's own, serve it."""
    medmoe, model, demo = target / "medmoe", target / "model", target.parent / "demo"
    picture = demo / "examples" / "ct.png"
    steps = {
        "install": lambda: run("sh", folder / "install.sh", target),
        "demo": lambda: run(medmoe, "demo", "--minutes", 1, "--out", demo),
        "ask": lambda: run(medmoe, "ask", model, picture, "Is there any nodule?"),
        "serve": lambda: served(medmoe, model, picture),
    }
    told: dict[str, Any] = {"alone": alone(), "python": sys.version.split()[0], "seconds": {}}
    for name, step in steps.items():
        start = time.monotonic()
        told[name] = step()
        told["seconds"][name] = round(time.monotonic() - start, 1)
    told["mib"] = sum(p.lstat().st_blocks * 512 for p in target.rglob("*")) // 2**20
    told["report"] = (demo / "report.html").stat().st_size
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    os.umask(0o022)
    main(*map(Path, sys.argv[1:]))
