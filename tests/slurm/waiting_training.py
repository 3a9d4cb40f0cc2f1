"""`metapt pretrain` that waits to be stopped in its first starts: python waiting_training.py FOLDER STARTS key=value ...

In the third update of each of the first STARTS starts of its Slurm job, a rank creates FOLDER/START.RANK and waits until it,
or another rank, receives a signal. So a test need not guess how long a run must be to be stopped before its end.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from metapt import pretrain
from metapt.errors import run_command
from metapt.training.trainer import Trainer

folder, starts = Path(sys.argv[1]), int(sys.argv[2])
start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
check_stop = Trainer.check_stop
first: list[int] = []
"""Number of updates at this start."""
calls: list[int] = []
"""Calls of check_stop in the third update; the first one comes before its first unit of work."""


def wait_and_check_stop(trainer: Trainer) -> None:
    """Wait at the second call in the third update, then check as usual."""
    first[:] = first or [trainer.updates_done]
    if trainer.updates_done == first[0] + 2:
        calls.append(trainer.updates_done)
    if len(calls) == 2:
        stopped = folder / f"{start}.stopped"
        (folder / f"{start}.{trainer.engine.rank}").touch()
        while trainer.stop.name is None and not stopped.exists():
            time.sleep(0.05)
        stopped.touch()
    check_stop(trainer)


if start < starts:
    Trainer.check_stop = wait_and_check_stop  # type: ignore[method-assign]
sys.argv = [sys.argv[0], *sys.argv[3:]]
run_command(pretrain.main)
