"""30 minutes of coverage-guided fuzzing in all: no reader ends in any way but its own error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stress import guided
from tests.stress.ledger import Ledger

pytest.importorskip("atheris", reason="needs the extra fuzz: pip install 'medmoe[fuzz]'")

#: Of each reader.
SECONDS, PIECE = 360, 60


@pytest.mark.parametrize("name", guided.targets())
def test_no_input_ends_a_reader(name: str, ledger: Ledger, repository: Path) -> None:
    run, folder = f"guided_{name}", repository / "runs" / "guided" / name
    while ledger.done(run) < SECONDS:
        found = subprocess.run(
            [sys.executable, "-m", "tests.stress.guided", name, str(PIECE), str(folder)],
            cwd=repository,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-4000:]
        inputs = int(re.findall(r"number_of_executed_units: (\d+)", found.stderr)[-1])
        ledger.add(run, wanted=SECONDS, done=PIECE, inputs=inputs)
    assert ledger.runs[run]["inputs"] > SECONDS
