"""DeepSpeed really trains: two processes on a CPU, broken off, resumed, gone on from without it.

The first run compiles DeepSpeed's exchange through shared memory, which takes a minute or more.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.stress.ledger import Ledger
from tests.training import distributed
from tests.training.test_parallel import alone, together


@pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed here; `make stress` runs this in .venv-deepspeed too",
)
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_zero_in_two_processes_has_the_losses_of_one_and_resumes(
    sharding: str, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"training_{sharding}"
    if ledger.done(name):
        return
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    folder = str(tmp_path / "checkpoints")
    settings = {"sharding": sharding, "checkpoints": folder, "save_every": 2, "resume": True}
    found = together(tmp_path, settings, stop_at=5)
    assert found["resumed_from"] == 4
    assert found["sharded"] == (sharding == "zero3")
    # float32 sums in another order; a state that is not resumed gives 1e-2 and more
    assert found["curve"] == pytest.approx(alone()["curve"], abs=1e-4)
    assert found["weights"] == pytest.approx(alone()["weights"], rel=1e-6)
    # a checkpoint of two processes holds whole tensors: one process goes on from it, unsharded
    again = distributed.run({"checkpoints": folder, "resume": True})
    assert again["resumed_from"] == distributed.STEPS
    assert again["weights"] == pytest.approx(found["weights"], rel=1e-12)
    ledger.add(name, wanted=1, equal=1)
