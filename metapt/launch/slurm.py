"""Handing a plan to Slurm, ordered by dependencies. Returns at once.

Jobs that are alike, such as the fine-tuning runs of one pretraining run, are one array. A job waits with `afterok` for what it needs, the report with `afterany` for all; a job whose need has failed is
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

MOST_IN_AN_ARRAY = 1000  # Slurm's MaxArraySize, where a site has not set it


def hand_over(plan: Plan, todo: Sequence[Job], root: Root, cluster: ClusterConfig) -> str:
    """Submits the jobs that are not in the queue already; what to tell the user.

    Raises:
        UserError: there is no Slurm here.
        OperationalError: sbatch refuses a job; those before it stay submitted and recorded.
    """
    numbers = dict(queued(root))
    before = len(numbers)
    jobs = {job.id: job for job in plan.jobs}
    arrays = alike(todo)
    for array in arrays:
        first = array[0]  # what holds for one holds for all
        lost = [name for name in first.needs if name not in numbers and not root.run(jobs[name]).is_done]
        if lost and not first.runs_after_failures:
            raise OperationalError(f"{first.id}: {lost[0]} has just left the queue unfinished; submit again")
        needs = [numbers[name] for name in first.needs if name in numbers]
        if first.runs_after_failures:  # an earlier report, too, that waits for fewer runs: not both at once
            needs += [numbers[first.id]] if first.id in numbers else []
            needs = list(dict.fromkeys(number.partition("_")[0] for number in needs))  # all of an array
        for job, number in zip(array, _submit(array, needs, plan.grid, root, cluster), strict=True):
            numbers[job.id] = number
            _record(root, job, number)
    return (
        f"{root.path}: {len(todo)} jobs handed to Slurm in {len(arrays)} submissions, {before} were in its queue already\n"
        f"follow them with: python -m metapt.status root={root.path}"
    )


def alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in their order, those that need the same jobs and ask for the same resources put together."""
    found: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        key = (job.kind, job.needs, job.nodes, job.gpus_per_node, job.hours, job.mem_gb)
        found.setdefault(key, []).append(job)
    return [
        array[start : start + MOST_IN_AN_ARRAY]
        for array in found.values()
        for start in range(0, len(array), MOST_IN_AN_ARRAY)
    ]


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


def executor(
    array: Sequence[Job], needs: Sequence[str], grid: str, root: Root, cluster: ClusterConfig
) -> submitit.SlurmExecutor:
    """submitit's executor for jobs that are alike, with all that each of them asks for."""
    import submitit

    from metapt.launch.task import ANY_NUMBER_OF_TIMEOUTS

    if not shutil.which("sbatch"):
        raise UserError("cluster=slurm: there is no sbatch here; cluster=local runs on this machine")
    job, size = array[0], len(array)
    condition = "afterany" if job.runs_after_failures else "afterok"
    memory = job.mem_gb or cluster.mem_gb
    options: dict[str, Any] = {
        "job_name": job.id if size == 1 else f"{grid}/{job.kind}",
        "time": round(job.hours * 60) if job.hours else cluster.timeout_min,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": job.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{memory}GB" if memory else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "signal_delay_s": cluster.signal_delay_s,
        "dependency": f"{condition}:{':'.join(needs)}" if needs else None,
        "array_parallelism": min(size, cluster.max_running or size),
        "setup": cluster.setup or None,
        # since Slurm 22.05 srun does not take the first over from sbatch; --wait: the seconds that a dead process is survived
        # by the others, longer than Slurm takes to see that a node has failed, whose jobs it queues again
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}", "--wait=600"],
        # a site may have set that jobs are not queued again unless they say so
        "additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True, **cluster.extra},
    }
    made = submitit.SlurmExecutor(root.submitit_dir, max_num_timeout=ANY_NUMBER_OF_TIMEOUTS)
    made.update_parameters(**{name: value for name, value in options.items() if value is not None})
    return made


def _submit(
    array: Sequence[Job], needs: Sequence[str], grid: str, root: Root, cluster: ClusterConfig
) -> list[str]:
    """The numbers under which Slurm now has the jobs: N, or N_0, N_1, ... if there are several."""
    from submitit.core.utils import FailedJobError

    from metapt.launch.task import Task

    threads = cluster.threads or cluster.cpus_per_task
    most = cluster.max_requeues_without_progress
    tasks = [Task(root.path, job, threads, most) for job in array]
    try:
        return [made.job_id for made in executor(array, needs, grid, root, cluster).submit_array(tasks)]
    except FailedJobError as error:
        others = f" and {len(array) - 1} like it" if len(array) > 1 else ""
        raise OperationalError(f"{array[0].id}{others}: sbatch refuses: {str(error).strip()}") from None


def _record(root: Root, job: Job, number: str) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    with root.submitted_file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"job": job.id, "slurm_id": number, "submitted": now}) + "\n")
