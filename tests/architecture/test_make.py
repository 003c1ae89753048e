"""What `make` and `.ci/run` do, whatever the user's environment holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def make(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make with a command line of its own."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=repository,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def dry_run(repository: Path, target: str) -> str:
    """Return the commands that a target would run."""
    done = make(repository, "-n", target)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_demo_trains_on_the_phantom_whatever_data_folder_is_set(repository: Path) -> None:
    (line,) = (text for text in dry_run(repository, "demo").splitlines() if "medmoe demo" in text)
    assert line.startswith("env -u MEDMOE_DATA HF_HUB_OFFLINE=1 ")


@pytest.mark.parametrize(("target", "flag"), [("bench", ""), ("bench-quick", " --quick")])
def test_benchmarks_all_run(repository: Path, target: str, flag: str) -> None:
    loop = dry_run(repository, target).splitlines()[-1]
    assert "set -e; for script in benchmarks/*.py; do" in loop
    assert re.search(rf"python \$script{flag}; done$", loop)


def test_ci_forgets_the_users_code_and_data(repository: Path) -> None:
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    forgotten = re.findall(r"^unset ([A-Z_ ]+)", script, re.MULTILINE)
    assert {"PYTHONPATH", "MEDMOE_DATA"} <= {name for names in forgotten for name in names.split()}
    assert script.index("unset ") < script.index('part "install"')


def install_with(repository: Path, venv: Path, complaints: str) -> subprocess.CompletedProcess[str]:
    """Run `make install` on an environment whose Python only plays pip, which complains so."""
    (venv / "bin").mkdir(parents=True)
    (venv / "complaints").write_text(complaints)
    python = venv / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {venv}/calls\n'
        f'test "$*" != "-m pip check" || {{ cat {venv}/complaints; exit 1; }}\n'
    )
    python.chmod(0o755)
    return make(repository, "install", f"VENV={venv}")


EXPECTED = "medmnist 3.0.2 requires torchvision, which is not installed.\n"


def test_everything_is_installed_by_its_hash_before_torch_comes(
    repository: Path, tmp_path: Path
) -> None:
    assert install_with(repository, tmp_path / "venv", EXPECTED).returncode == 0
    calls = (tmp_path / "venv" / "calls").read_text().splitlines()
    installs = [call for call in calls if " install " in call]
    assert "--no-deps --only-binary :all: --require-hashes -r requirements.lock" in installs[0]
    assert re.fullmatch(r"-m pip install -q torch==[\d.]+", installs[1])
    assert installs[2:] == ["-m pip install -q --no-deps --no-build-isolation -e ."]
    assert calls[-1] == "-m pip check"


@pytest.mark.parametrize(
    "complaints",
    [
        EXPECTED + "pandas 3.1.1 requires numpy, which is not installed.\n",
        EXPECTED.replace("torchvision", "numpy"),
        EXPECTED.replace("medmnist", "other-medmnist"),
        "",
    ],
)
def test_an_unexpected_complaint_of_pip_check_stops_the_install(
    repository: Path, tmp_path: Path, complaints: str
) -> None:
    done = install_with(repository, tmp_path / "venv", complaints)
    assert done.returncode == 2
    assert not (tmp_path / "venv" / ".medmoe-installed").exists()
    assert EXPECTED.strip() not in done.stdout.splitlines()
    if complaints:
        assert done.stdout.splitlines()[-1] == complaints.splitlines()[-1]


def test_the_bill_of_materials_names_what_is_installed(repository: Path, tmp_path: Path) -> None:
    tools = Path(os.environ.get("MEDMOE_TOOLS", repository / ".venv-tools"))
    if not (tools / "bin" / "cyclonedx-py").is_file():
        pytest.skip(f"no cyclonedx-py in {tools}: `make sbom` installs it there")
    out = tmp_path / "sbom.json"
    places = f"TOOLS={tools}", f"VENV={sys.prefix}", f"SBOM={out}"
    stamps = "-o", f"{tools}/.medmoe-installed", "-o", f"{sys.prefix}/.medmoe-installed"
    # Against the schema it is validated in .ci/run, by the same target: that takes longer.
    done = make(repository, "sbom", "ARGS=--no-validate", *places, *stamps)
    assert done.returncode == 0, done.stderr
    bill = json.loads(out.read_text(encoding="utf-8"))
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "medmoe"
    held = {part["name"].lower(): part["version"] for part in bill["components"]}
    for name in ("torch", "transformers", "numpy", "fastapi"):
        assert held[name] == version(name)
    assert str(repository) not in json.dumps(bill)
