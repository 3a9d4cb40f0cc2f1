"""Helpers of the tests on a real Slurm: skipping without one, waiting (on squeue and files, never sacct), comparing runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from metapt.launch import slurm_queue
from metapt.launch.grid_dir import GridDir
from metapt.runs import Run


def _reason_to_skip() -> str | None:
    if not shutil.which("sbatch"):
        return "sbatch is not installed; slurm/dev_cluster.sh starts a Slurm on one machine"
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    if " is UP" in ping.stdout:
        return None
    lines = (ping.stdout + ping.stderr).strip().splitlines()
    return f"slurmctld does not answer: {lines[-1] if lines else 'no output of scontrol ping'}"


REASON = _reason_to_skip()
MARKS = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, subprocess.check_output(["squeue"], text=True)
        time.sleep(0.3)


def wait_for_end(*slurm_ids: str) -> None:
    """Waits until none of these jobs is in the queue."""

    def present() -> set[str]:
        queue = subprocess.check_output(["squeue", "-h", "--format=%A"], text=True)
        return set(slurm_ids) & set(queue.split())

    wait_until(lambda: not present(), seconds=400)


@contextmanager
def second_cluster(settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another development cluster with these settings, which the commands of Slurm use in the block."""
    script = Path(__file__).parents[2] / "slurm/dev_cluster.sh"
    environment = {**os.environ, "PORT": "16981", **settings}
    with TemporaryDirectory() as temporary:  # not in tmp_path, which the daemons may not access
        Path(temporary).chmod(0o755)
        folder = Path(temporary, "slurm")
        subprocess.run(["bash", script, "start", folder], env=environment, check=True)
        try:
            monkeypatch.setenv("SLURM_CONF", str(folder / "etc/slurm.conf"))
            yield
        finally:
            subprocess.run(["bash", script, "stop", folder], check=True)


def wait_for_empty_queue(root: Path) -> None:
    """Waits until no job of a grid is in the queue."""
    wait_until(lambda: not slurm_queue.queue_entries(GridDir(root)))


def losses(run: Run) -> list[object]:
    """The values of every line of the metrics, without times."""
    names = ("step", "kind", "lm_loss_nats", "query_loss_nats", "grad_norm", "eval_loss_nats")
    return [[line.get(name) for name in names] for line in run.metrics()]


def weights(run: Run) -> str:
    """The SHA-256 of the weights in the last checkpoint."""
    manifest = json.loads((run.checkpoints()[-1][1] / "manifest.json").read_text())
    return manifest["files"]["model/model.safetensors"]["sha256"]
