"""The ways in which a job is stopped on a real Slurm, and how far one is that is to be stopped."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from real_slurm import wait_until

from metapt.runs import Run


def warn(number: str) -> None:
    """As before the time limit."""
    subprocess.run(["scancel", "--signal=USR2", number], check=True)


def preempt(number: str) -> None:
    """By a job of a partition with more priority: Slurm sends USR2, as the development cluster is set."""
    competitor = ["--partition=main", "--nodes=2", "--exclusive", "--mem=100", "--output=/dev/null"]
    subprocess.run(["sbatch", *competitor, "--wrap=true"], check=True, capture_output=True)


def preempt_with_term(number: str) -> None:
    """As at preemption on other sites: TERM comes while the job stays running for its time of grace."""
    subprocess.run(["scancel", "--signal=TERM", number], check=True)


def requeue(number: str) -> None:
    subprocess.run(["scontrol", "requeue", number], check=True)


def fail_last_node(number: str) -> None:
    """What Slurm does when it hears no more of a node. The job is run again on the others, or when it is back: emptied, as
    a node is that has failed. Until then this one takes no jobs, although it answers."""
    node = last_node(number)
    update = ["scontrol", "update", f"nodename={node}", "reason=test"]
    for state in ("drain", "down"):
        subprocess.run([*update, f"state={state}"], check=True)
    wait_until(lambda: not processes(number, node) and not watchers(number))
    subprocess.run([*update, "state=resume"], check=True)


def last_node(number: str) -> str:
    nodes = subprocess.check_output(["squeue", "--noheader", f"--jobs={number}", "--format=%N"], text=True)
    return subprocess.check_output(["scontrol", "show", "hostnames", nodes.strip()], text=True).split()[-1]


def processes(number: str, node: str) -> set[int]:
    """Of a job on a pretended node of this machine, and what Slurm has started there to watch over them."""
    marks, found = {f"SLURM_JOB_ID={number}", f"SLURMD_NODENAME={node}"}, set()
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


def watchers(number: str) -> list[str]:
    """Slurm's own processes, on any of the pretended nodes, that see a job's steps to their end."""
    found = subprocess.run(["pgrep", "--full", rf"^slurmstepd: \[{number}\."], capture_output=True, text=True)
    return found.stdout.split()


INTERRUPTIONS = {
    "warning": warn,
    "preemption": preempt,
    "TERM": preempt_with_term,
    "scontrol requeue": requeue,
    "failed node": fail_last_node,
}


def restarts(number: str) -> int:
    """How often it was queued again, if it runs; else -1."""
    told = subprocess.run(["scontrol", "show", "job", "--oneliner", number], capture_output=True, text=True)
    found = re.search(r"JobState=RUNNING .*Restarts=(\d+)", told.stdout)
    return int(found[1]) if found else -1


def last_step(run: Run) -> int:
    return max((line["step"] for line in run.metrics()), default=0)


def at_work(run: Run, number: str, times: int, updates: int = 2) -> Callable[[], bool]:
    """Tells when a job that was queued again so often has made so many updates since it was first seen to run."""
    first: list[int] = []

    def look() -> bool:
        if restarts(number) != times:
            return False
        first[:] = first or [last_step(run)]
        return last_step(run) >= first[0] + updates

    return look
