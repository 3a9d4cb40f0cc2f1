"""Ways to stop a job on a real Slurm, and the progress of a job before it is stopped."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from real_slurm import wait_until

from metapt.runs import Run


def warn(slurm_id: str) -> None:
    """As before the time limit."""
    subprocess.run(["scancel", "--signal=USR2", slurm_id], check=True)


def preempt(slurm_id: str) -> None:
    """By a job of a partition with higher priority. The development cluster is configured to send USR2."""
    competitor = ["--partition=main", "--nodes=2", "--exclusive", "--mem=100", "--output=/dev/null"]
    subprocess.run(["sbatch", *competitor, "--wrap=true"], check=True, capture_output=True)


def preempt_with_term(slurm_id: str) -> None:
    """As at preemption on other sites: TERM comes, and the job stays running for its grace time."""
    subprocess.run(["scancel", "--signal=TERM", slurm_id], check=True)


def requeue(slurm_id: str) -> None:
    subprocess.run(["scontrol", "requeue", slurm_id], check=True)


def fail_last_node(slurm_id: str) -> None:
    """What Slurm does when a node no longer answers: the job is requeued and starts on other nodes, or when this one is back.

    The node, which does answer here, accepts no jobs until it is empty, as a failed node would be: a job that it is still
    ending would be held after its requeue ("launch failed requeued held").
    """
    node = last_node(slurm_id)
    update = ["scontrol", "update", f"nodename={node}", "reason=test"]
    subprocess.run([*update, "state=drain"], check=True)
    listing = subprocess.check_output(
        ["squeue", "--noheader", f"--nodelist={node}", "--format=%A"], text=True
    )
    before = watchers(*listing.split())
    subprocess.run([*update, "state=down"], check=True)
    wait_until(lambda: not before & watchers(*listing.split()))
    subprocess.run([*update, "state=resume"], check=True)


def last_node(slurm_id: str) -> str:
    nodes = subprocess.check_output(["squeue", "--noheader", f"--jobs={slurm_id}", "--format=%N"], text=True)
    return subprocess.check_output(["scontrol", "show", "hostnames", nodes.strip()], text=True).split()[-1]


def watchers(*slurm_ids: str) -> set[str]:
    """The slurmstepd processes of jobs on all virtual nodes. Until they have ended, their node refuses the job."""
    pattern = rf"^slurmstepd: \[({'|'.join(slurm_ids)})\."
    found = subprocess.run(["pgrep", "--full", pattern], capture_output=True, text=True)
    return set(found.stdout.split())


def processes(slurm_id: str, node: str) -> set[int]:
    """The processes of a job on a virtual node, and the slurmstepd processes that supervise them."""
    marks, found = {f"SLURM_JOB_ID={slurm_id}", f"SLURMD_NODENAME={node}"}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_text(errors="replace").split("\0")
            parent = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            watcher = [parent] if "slurmstepd" in Path(f"/proc/{parent}/cmdline").read_text() else []
        except OSError:  # it has ended
            continue
        if marks <= set(environment):
            found |= {*watcher, int(folder.name)}
    return found


INTERRUPTIONS = {
    "warning": warn,
    "preemption": preempt,
    "TERM": preempt_with_term,
    "scontrol requeue": requeue,
    "failed node": fail_last_node,
}


def restarts(slurm_id: str) -> int:
    """How often a job was requeued, if it is running; else -1."""
    output = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", slurm_id], capture_output=True, text=True
    )
    found = re.search(r"JobState=RUNNING .*Restarts=(\d+)", output.stdout)
    return int(found[1]) if found else -1


def last_step(run: Run) -> int:
    return max((line["step"] for line in run.metrics()), default=0)


def has_progressed(run: Run, slurm_id: str, times: int, updates: int = 2) -> Callable[[], bool]:
    """A condition: the job was requeued `times` times, and has since made `updates` updates while it was watched."""
    first: list[int] = []

    def look() -> bool:
        if restarts(slurm_id) != times:
            return False
        first[:] = first or [last_step(run)]
        return last_step(run) >= first[0] + updates

    return look
