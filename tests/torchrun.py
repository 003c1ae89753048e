"""A program in two processes that talk over gloo, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys


def in_two_processes(*words: str) -> str:
    """Run ``torchrun WORDS`` to its end, one thread in each process; return what it printed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
