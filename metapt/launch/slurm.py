"""Handing a plan to Slurm: one submission per job, ordered by dependencies. Returns at once.

A job waits with `afterok` for what it needs, the report with `afterany` for all; a job whose need has failed is
taken from the queue (`--kill-on-invalid-dep`). Which job got which number stands in ROOT/jobs.jsonl, and squeue says
whether it is still queued or running; sacct, which many clusters lack, is not asked. What a job does on its nodes,
and how it is queued again after its time limit, is in metapt.launch.task.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metapt.config import ClusterConfig
from metapt.errors import OperationalError, UserError
from metapt.launch.jobs import Job, Plan
from metapt.launch.root import Root
from metapt.runs import read_jsonl

if TYPE_CHECKING:
    import submitit


def hand_over(plan: Plan, todo: Sequence[Job], root: Root, cluster: ClusterConfig) -> str:
    """Submits the jobs that are not in the queue already; what to tell the user.

    Raises:
        UserError: there is no Slurm here.
        OperationalError: sbatch refuses a job; those before it stay submitted and recorded.
    """
    numbers = dict(queued(root))
    before = len(numbers)
    jobs = {job.id: job for job in plan.jobs}
    for job in todo:
        lost = [name for name in job.needs if name not in numbers and not root.run(jobs[name]).is_done]
        if lost and not job.runs_after_failures:
            raise OperationalError(f"{job.id}: {lost[0]} has just left the queue unfinished; submit again")
        needs = [numbers[name] for name in job.needs if name in numbers]
        if job.id in numbers:  # an earlier report that waits for fewer runs: not both at once
            needs.append(numbers[job.id])
        numbers[job.id] = _submit(job, needs, root, cluster)
        _record(root, job, numbers[job.id])
    return (
        f"{root.path}: {len(todo)} jobs handed to Slurm, {before} were in its queue already\n"
        f"follow them with: python -m metapt.status root={root.path}"
    )


@dataclass(frozen=True)
class Entry:
    """What squeue says of a job."""

    number: str
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits: Dependency, Priority, Resources, ...


def queue(root: Root) -> dict[str, Entry]:
    """The jobs of a grid that are queued or running now, by job id.

    Raises:
        OperationalError: jobs were handed to Slurm and squeue does not say what became of them.
    """
    numbers = recorded(root)
    if not numbers:
        return {}
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        raise OperationalError(
            f"{root.submitted_file}: cannot ask squeue about these jobs: {reason}"
        ) from None
    entries = [Entry(*line.strip().split("|", 2)) for line in answer.splitlines() if line.count("|") >= 2]
    present = {entry.number: entry for entry in entries}
    return {name: present[number] for name, number in numbers.items() if number in present}


def queued(root: Root) -> dict[str, str]:
    """Slurm's numbers of the jobs of a grid that are queued or running now, by job id. Raises as `queue`."""
    return {name: entry.number for name, entry in queue(root).items()}


def recorded(root: Root) -> dict[str, str]:
    """The number under which each job was handed to Slurm last, by job id."""
    return {line["job"]: line["slurm_id"] for line in read_jsonl(root.submitted_file)}


def executor(job: Job, needs: Sequence[str], root: Root, cluster: ClusterConfig) -> submitit.SlurmExecutor:
    """submitit's executor for one job, with all that the job asks for."""
    import submitit

    if not shutil.which("sbatch"):
        raise UserError("cluster=slurm: there is no sbatch here; cluster=local runs on this machine")
    condition = "afterany" if job.runs_after_failures else "afterok"
    options: dict[str, Any] = {
        "job_name": job.id,
        "time": cluster.timeout_min,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": job.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{cluster.mem_gb}GB" if cluster.mem_gb else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "signal_delay_s": cluster.signal_delay_s,
        "dependency": f"{condition}:{':'.join(needs)}" if needs else None,
        "setup": cluster.setup or None,
        # since Slurm 22.05 srun does not take this over from sbatch
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}"],
        "additional_parameters": {"kill-on-invalid-dep": "yes", **cluster.extra},
    }
    made = submitit.SlurmExecutor(root.submitit_dir, max_num_timeout=cluster.max_requeues)
    made.update_parameters(**{name: value for name, value in options.items() if value is not None})
    return made


def _submit(job: Job, needs: Sequence[str], root: Root, cluster: ClusterConfig) -> str:
    from submitit.core.utils import FailedJobError

    from metapt.launch.task import Task

    threads = cluster.threads or cluster.cpus_per_task
    try:
        return executor(job, needs, root, cluster).submit(Task(root.path, job, threads)).job_id
    except FailedJobError as error:
        raise OperationalError(f"{job.id}: sbatch refuses it: {str(error).strip()}") from None


def _record(root: Root, job: Job, number: str) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    with root.submitted_file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"job": job.id, "slurm_id": number, "submitted": now}) + "\n")
