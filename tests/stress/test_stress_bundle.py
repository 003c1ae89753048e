"""The whole way of a bundle: made here, installed and used where nothing but loopback is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.stress.ledger import Ledger

from medmoe.bundle import FOLDER

NAME = "bundle_offline"
#: A namespace of its own with its loopback raised, and in it the words behind.
NAMESPACE = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
SYSTEM = "/usr/local/bin:/usr/bin:/bin"
LIMIT_SECONDS = 3600


def namespace_refused() -> str | None:
    """Return why no namespace can be had here; None where one can."""
    try:
        done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return (done.stderr.strip() or "refused") if done.returncode else None


def system_python() -> str:
    """Return the system's Python of this version, or else the one that this environment is of."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = shutil.which(name, path=SYSTEM)
    return found or str(Path(sys.base_prefix) / "bin" / name)


def medmoe(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medmoe", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model that was trained: that of `$MEDMOE_PAGE_MODEL`, or of the shortest demo."""
    if given := os.environ.get("MEDMOE_PAGE_MODEL"):
        return Path(given)
    medmoe("demo", "--minutes", 1, "--out", tmp_path / "demo")
    return tmp_path / "demo" / "model"


def test_a_bundle_installs_and_answers_without_a_network(
    model: Path, tmp_path: Path, ledger: Ledger
) -> None:
    if ledger.done(NAME):
        pytest.skip("counted already for this source")
    if why := namespace_refused():
        pytest.skip(f"no network namespace here: {why}")
    bundle = tmp_path / "medmoe.tar"
    medmoe("bundle", "make", model, "--out", bundle, "--json", tmp_path / "made.json")
    medmoe("bundle", "verify", bundle)
    made = json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))
    away = tmp_path / "hospital"
    with tarfile.open(bundle) as tar:
        tar.extractall(away, filter="data")
    python, script = system_python(), Path(__file__).with_name("offline.py")
    done = subprocess.run(
        [*NAMESPACE, python, str(script), str(away / FOLDER), str(away / "medmoe")],
        env={"PATH": f"{SYSTEM}:{Path(python).parent}", "HOME": str(away), "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    ledger.note(
        NAME,
        bundle_mib=round(made["bytes"] / 2**20),
        wheels=made["wheels"],
        installed_mib=told["mib"],
        python=told["python"],
        seconds=told["seconds"],
    )
    assert told["alone"]
    assert "router: " in told["ask"]
    assert told["serve"]["choices"][0]["message"]["content"]
    assert told["serve"]["medmoe"]["notice"]
    assert told["report"] > 10_000
    ledger.add(NAME, wanted=1)
