"""What `make` and `.ci/run` do, whatever the user's environment holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def dry_run(repository: Path, target: str) -> str:
    """Return the commands that a target would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", target],
        cwd=repository,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
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
