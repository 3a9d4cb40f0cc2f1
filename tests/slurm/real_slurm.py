"""What the tests on a real Slurm share: whether there is one, waiting (for squeue and files, never for sacct), and what
two runs must have in common."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from metapt.runs import Run


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


def losses(run: Run) -> list[object]:
    """What every line of the metrics says, times excluded."""
    names = ("step", "kind", "lm_loss_nats", "query_loss_nats", "grad_norm", "eval_loss_nats")
    return [[line.get(name) for name in names] for line in run.metrics()]


def weights(run: Run) -> str:
    """The checksum of the last model."""
    manifest = json.loads((run.checkpoints()[-1][1] / "manifest.json").read_text())
    return manifest["files"]["model/model.safetensors"]["sha256"]
