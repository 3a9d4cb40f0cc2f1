"""What the tests on a real Slurm share: whether there is one, and waiting. Never for sacct, only for squeue and files."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable

import pytest


def _reason_to_skip() -> str | None:
    if not shutil.which("sbatch"):
        return "no sbatch here; slurm/dev_cluster.sh starts a Slurm on one machine"
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    if " is UP" in ping.stdout:
        return None
    said = (ping.stdout + ping.stderr).strip().splitlines()
    return f"slurmctld does not answer: {said[-1] if said else 'scontrol ping says nothing'}"


REASON = _reason_to_skip()
MARKS = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


def wait_until(what: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, subprocess.check_output(["squeue"], text=True)
        time.sleep(0.3)


def wait_for_the_end(*numbers: str) -> None:
    """Waits until none of these jobs is queued or running."""

    def present() -> set[str]:
        queue = subprocess.check_output(["squeue", "-h", "--format=%A"], text=True)
        return set(numbers) & set(queue.split())

    wait_until(lambda: not present(), seconds=400)
