"""A fast fake of the programs of a grid, and a submitter for it, for the tests of metapt.launch.

python launch_fakes.py job RUN_DIR KIND BEHAVIOUR     one job: ok, fail, fail-once, slow, killed, silent, stoppable,
                                                      slow-stop, fruitless, sick-device, hung
python launch_fakes.py submit ROOT CLUSTER [JOB=BEHAVIOUR ...] [code=snapshot]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from metapt import atomic_folders
from metapt.errors import Interrupted, run_command
from metapt.launch.jobs import Job, Plan
from metapt.runs import ENGINE_DIR, MODEL_DIR, MetricsWriter, Run

if TYPE_CHECKING:
    from metapt.config import ClusterConfig
    from metapt.launch.grid_dir import GridDir

PROGRAM = (str(Path(__file__).resolve()),)
NEEDS = {  # job id: the jobs that it needs
    "prepare/demo": [],
    "pretrain/a": ["prepare/demo"],
    "pretrain/b": ["prepare/demo"],
    "finetune/a": ["pretrain/a"],
    "finetune/b": ["pretrain/b"],
    "report": ["prepare/demo", "pretrain/a", "pretrain/b", "finetune/a", "finetune/b"],
}

SAVING_SECONDS = {"stoppable": 0, "slow-stop": 8}


def fake_plan(root: Path, behaviours: dict[str, str] | None = None, margin: float = 2.0) -> Plan:
    """Two pretraining runs on one corpus, a fine-tuning run of each, and a report."""
    jobs = []
    for name, needs in NEEDS.items():
        kind, behaviour = name.split("/")[0], (behaviours or {}).get(name, "ok")
        argv = ("job", str(root / name), kind, behaviour)
        jobs.append(Job(name, kind, tuple(needs), program=PROGRAM, argv=argv))
    return Plan("fake", tuple(jobs), margin=margin)


def starts(root: Path) -> list[str]:
    """The ids of the jobs that have started, in order."""
    log = root / "starts.log"
    return log.read_text().split() if log.exists() else []


def submitted_ids(grid_dir: GridDir) -> dict[str, str]:
    """The Slurm job id under which each job was last submitted, by job id."""
    from metapt.launch.slurm_queue import submissions

    return {name: record.slurm_id for name, record in submissions(grid_dir).items()}


def squeue_output(root: Path) -> str:
    """A command that prints lines of squeue; jobs without a comment get that of this grid."""
    return f"sed -E 's#^([^|]*[|][^|]*[|][^|]*)[|]?$#\\1|metapt {root}#'"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def run_fake(
    root: Path,
    cluster: ClusterConfig,
    behaviours: dict[str, str] | None = None,
    code: str = "live",
    margin: float = 2.0,
) -> None:
    """Runs or submits the fake grid."""
    from metapt.config import GridConfig, SubmitConfig  # here: a job's process should start fast
    from metapt.launch.grid_dir import GridDir
    from metapt.launch.submission import run_plan

    config = SubmitConfig(grid=GridConfig(name="fake"), cluster=cluster, root=str(root), code=code)
    grid_dir = GridDir(root)
    with grid_dir.locked():
        run_plan(fake_plan(root, behaviours, margin), grid_dir, config)


def job(run_dir: Path, kind: str, behaviour: str) -> None:
    """The program of a job."""
    run = Run(run_dir)
    root = run_dir.parent if kind == "report" else run_dir.parent.parent
    if int(os.environ.get("RANK", 0)):
        return
    with (root / "starts.log").open("a") as log:
        log.write(f"{run_dir.relative_to(root)}\n")
    if kind == "report":
        print("F1 of all runs, and the page")
    if kind not in ("pretrain", "finetune"):
        _behave(run, behaviour)
        return
    with run.locked():
        run.start({"train": {"max_steps": 4}}, {})
        metrics = MetricsWriter(run)
        for step in range(1, 5):
            metrics.write(step, "lm", lm_loss_nats=5.0 / step, seconds=0.01, tokens_per_second=100.0)
        metrics.close()
        _behave(run, behaviour)
        if kind == "pretrain":
            save_checkpoint(run, 4)
        run.finish({"kind": kind, "steps": 4})


def save_checkpoint(run: Run, step: int) -> None:
    """A complete checkpoint, of no real model."""
    folder = atomic_folders.staging(run.checkpoint(step))
    (folder / MODEL_DIR).mkdir()
    (folder / MODEL_DIR / "model.safetensors").write_text(f"weights of step {step}")
    (folder / ENGINE_DIR).mkdir()
    (folder / ENGINE_DIR / "state").write_text(f"optimizer of step {step}")
    atomic_folders.commit(folder, run.checkpoint(step))


def _behave(run: Run, behaviour: str) -> None:
    if behaviour == "slow":
        time.sleep(1.0)
    elif behaviour == "fail" or (behaviour == "fail-once" and not (run.path / "tried").exists()):
        (run.path / "tried").touch()
        print("a first line\nsomething is wrong with the data", file=sys.stderr)
        sys.exit(1)
    elif behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "silent":
        sys.exit(0)
    elif behaviour in ("sick-device", "hung"):
        _fail_on_the_first_node(run, behaviour)
    elif behaviour == "fruitless" or (behaviour in SAVING_SECONDS and not (run.path / "saved").exists()):
        _work_until_signalled(run, SAVING_SECONDS.get(behaviour, 0))


def _fail_on_the_first_node(run: Run, behaviour: str) -> None:
    """A device error or a hang at the first start. Writes the node of each start to `nodes`."""
    from metapt.training.signals import StopRequest

    with (run.path / "nodes").open("a") as log:
        log.write(f"{os.environ['SLURMD_NODENAME']}\n")
    if (run.path / "nodes").read_text().count("\n") > 1:
        return
    with StopRequest().watched(run, 1.0 if behaviour == "hung" else 0):
        if behaviour == "hung":
            time.sleep(600)
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")


def _work_until_signalled(run: Run, saving_seconds: float) -> None:
    """Like training: saves and exits with 75 on a signal. The next start succeeds unless the job is fruitless."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: received.append(number))
    (run.path / "started").touch()
    while not received:
        time.sleep(0.02)
    time.sleep(saving_seconds)
    (run.path / "saved").touch()
    raise Interrupted("saved")


def main(argv: list[str]) -> None:
    if argv[0] == "job":
        job(Path(argv[1]), argv[2], argv[3])
    else:
        from metapt.config import ClusterConfig

        behaviours = dict(word.split("=") for word in argv[3:])
        cluster = ClusterConfig(name=argv[2], max_parallel=2, timeout_min=30, cpus_per_task=1, mem_gb=1)
        run_fake(Path(argv[1]), cluster, behaviours, behaviours.pop("code", "live"))


if __name__ == "__main__":
    run_command(main)
