"""Out of memory is one line with the setting to change; other errors pass as they are."""

from __future__ import annotations

import pytest
import torch

from medmoe.config.schema import PhaseName
from medmoe.errors import GuardError
from medmoe.training.context import RunSettings
from medmoe.training.guards import named_out_of_memory


def refuse(phase: PhaseName, batch: int, settings: RunSettings, error: Exception | None) -> str:
    def run() -> None:
        with named_out_of_memory(phase, batch, settings):
            if error is not None:
                raise error
            torch.empty(2**60)  # a real allocation that no machine grants

    with pytest.raises(GuardError) as caught:
        run()
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("phase", "batch", "settings", "fix"),
    [
        ("phase1_alignment", 16, {}, "--set run.gradient_accumulation=2 (the same loss"),
        (
            "phase3_moe",
            16,
            {"gradient_accumulation": 16},
            "--set run.gradient_checkpointing=true (the same loss",
        ),
        (
            "phase3_moe",
            3,
            {"gradient_checkpointing": True},
            "--set phases.phase3_moe.batch_size=1",
        ),
        ("phase0_encoder", 32, {}, "--set phases.phase0_encoder.batch_size=16"),
        (
            "phase3_moe",
            1,
            {"gradient_checkpointing": True},
            "--set phases.phase3_moe.max_questions=1, or a machine with more memory",
        ),
    ],
)
def test_the_line_names_what_saves_memory(
    phase: PhaseName, batch: int, settings: dict[str, object], fix: str
) -> None:
    line = refuse(phase, batch, RunSettings(**settings), None)  # type: ignore[arg-type]
    assert line.startswith(f"{phase}: out of memory at batch_size {batch} (")
    assert fix in line


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_every_allocator_is_understood(error: Exception) -> None:
    assert "out of memory" in refuse("phase1_alignment", 4, RunSettings(), error)


def test_other_errors_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        named_out_of_memory("phase1_alignment", 4, RunSettings()),
    ):
        raise RuntimeError("shapes do not fit")
