"""Handing a plan to Slurm, ordered by dependencies. Returns at once.

Jobs that are alike, such as the fine-tuning runs of one pretraining run, are one array. A job waits with `afterok` for
what it needs, the report with `afterany` for all; a job whose need has failed is taken from the queue
(`--kill-on-invalid-dep`). All is handed over or nothing: if sbatch refuses a request, what the call has submitted is
cancelled. What a job does on its nodes, and how it is queued again after its time limit, is in metapt.launch.slurm_task;
what is in the queue already in metapt.launch.slurm_queue.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from metapt.config import ClusterConfig
from metapt.errors import OperationalError, UserError
from metapt.launch import slurm_queue
from metapt.launch.code_snapshot import Code
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job, Plan

if TYPE_CHECKING:
    import submitit

MAX_ARRAY_SIZE = 1001  # where a site has not set it
# takes jobs that are alike and the numbers of the jobs that they wait for, and gives their own
Hand = Callable[[Sequence[Job], Sequence[str]], Sequence[str]]


def hand_over(plan: Plan, todo: Sequence[Job], root: Root, cluster: ClusterConfig, code: Code) -> str:
    """Submits the jobs; those of them that wait in the queue for what will never come are replaced. What to tell the user.

    Raises:
        UserError: there is no Slurm here.
        OperationalError: sbatch refuses a job, or a job that is needed has left the queue; nothing is submitted.
    """
    if not shutil.which("sbatch"):
        raise UserError("cluster=slurm: there is no sbatch here; cluster=local runs on this machine")
    present = slurm_queue.entries(root)
    slurm_queue.cancel(slurm_queue.strays(root))
    made: list[tuple[Job, str]] = []

    def submit(array: Sequence[Job], needs: Sequence[str]) -> list[str]:
        numbers = _submit(array, needs, plan.grid, root, cluster, code)
        made.extend(zip(array, numbers, strict=True))
        return numbers

    try:
        with outside_of_any_job():
            count = _in_order(plan, todo, root, present, submit)
    except (Exception, KeyboardInterrupt) as error:
        _take_back(root, [number for _, number in made], error)
        raise
    slurm_queue.record(root, made)
    replaced = {present[job.id].number for job in todo if job.id in present and present[job.id].waits}
    slurm_queue.cancel(replaced)
    return (
        f"{root.path}: {len(todo)} jobs handed to Slurm in {count} submissions, "
        f"{len(present) - len(replaced)} were in its queue already\n"
        f"follow them with: python -m metapt.status root={root.path}"
    )


def _take_back(root: Root, numbers: Sequence[str], reason: BaseException) -> None:
    """Cancels what a call has submitted before it failed. Raises OperationalError, with both reasons, if that fails."""
    try:
        slurm_queue.cancel({*numbers, *slurm_queue.strays(root)})
    except OperationalError as error:
        raise OperationalError(
            f"{reason}\nwhat was submitted before could not be cancelled: {error}"
        ) from reason


def scripts(
    plan: Plan, todo: Sequence[Job], root: Root, cluster: ClusterConfig, code: Code, *, is_test: bool = False
) -> list[tuple[str, str]]:
    """What `hand_over` would give to sbatch, as (jobs, batch script), without a Slurm. Writes nothing.

    The number that the n-th submission will get is written @n; with `is_test` such dependencies are left out.
    """
    made: list[tuple[str, str]] = []

    def collect(array: Sequence[Job], needs: Sequence[str]) -> list[str]:
        known = [number for number in needs if not (is_test and number.startswith("@"))]
        name = array[0].id if len(array) == 1 else f"{array[0].id} .. {array[-1].id} ({len(array)} jobs)"
        text = _script(executor(array, known, plan.grid, root, cluster, code), len(array))
        made.append((name, text))
        number = f"@{len(made)}"
        return [number] if len(array) == 1 else [f"{number}_{index}" for index in range(len(array))]

    _in_order(plan, todo, root, slurm_queue.entries(root), collect)
    return made


def asked(script: str) -> tuple[bool, str]:
    """Whether sbatch would take a script, and its answer (when and where the job would start, or why not)."""
    with outside_of_any_job():
        answer = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    return answer.returncode == 0, (answer.stderr + answer.stdout).strip()


def _in_order(
    plan: Plan, todo: Sequence[Job], root: Root, present: Mapping[str, slurm_queue.Entry], hand: Hand
) -> int:
    """Gives arrays of jobs to `hand`, each with the numbers of the jobs that it has to wait for; how many arrays."""
    due = {job.id for job in todo}
    numbers = {name: entry.number for name, entry in present.items() if not (name in due and entry.waits)}
    jobs = {job.id: job for job in plan.jobs}
    arrays = alike(todo, max_array_size())
    for array in arrays:
        first = array[0]  # what holds for one holds for all
        lost = [name for name in first.needs if name not in numbers and not root.run(jobs[name]).is_done]
        if lost and not first.runs_after_failures:
            raise OperationalError(f"{first.id}: {lost[0]} has just left the queue unfinished; submit again")
        needs = [numbers[name] for name in first.needs if name in numbers]
        if first.runs_after_failures:  # an earlier report at work, too: not both at once
            needs += [numbers[first.id]] if first.id in numbers else []
            needs = list(dict.fromkeys(number.partition("_")[0] for number in needs))  # all of an array
        numbers |= zip((job.id for job in array), hand(array, needs), strict=True)
    return len(arrays)


def max_array_size() -> int:
    """How many jobs an array may have at this site, as scontrol tells; where it does not, what Slurm sets by itself.

    It answers at once or tries for a minute, where its configuration or the controller is missing: that is not waited for.
    """
    try:
        command = ["scontrol", "show", "config"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        answer = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE  # 0: there are no arrays


def alike(jobs: Sequence[Job], most: int) -> list[list[Job]]:
    """The jobs in their order, those that need the same jobs and ask for the same resources put together, up to `most`."""
    found: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        key = (job.kind, job.needs, job.nodes, job.gpus_per_node, job.hours, job.mem_gb)
        found.setdefault(key, []).append(job)
    return [array[start : start + most] for array in found.values() for start in range(0, len(array), most)]


def executor(
    array: Sequence[Job], needs: Sequence[str], grid: str, root: Root, cluster: ClusterConfig, code: Code
) -> submitit.SlurmExecutor:
    """submitit's executor for jobs that are alike, with all that each of them asks for."""
    import submitit

    from metapt.launch.slurm_task import ANY_NUMBER_OF_TIMEOUTS

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """As on a cluster: a dry run works anywhere."""
            return 2

    job, size = array[0], len(array)
    condition = "afterany" if job.runs_after_failures else "afterok"
    memory = job.mem_gb or cluster.mem_gb
    options: dict[str, Any] = {
        "job_name": job.id if size == 1 else f"{grid}/{job.kind}",
        "time": round(job.hours * 60) if job.hours else cluster.timeout_min,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{memory}GB" if memory else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "signal_delay_s": cluster.signal_delay_s,
        "dependency": f"{condition}:{':'.join(needs)}" if needs else None,
        "array_parallelism": min(size, cluster.max_running or size),
        "setup": [*cluster.setup, *code.shell_lines(cluster.visibility_timeout_s)],
        # since Slurm 22.05 srun does not take the first over from sbatch; --wait: the seconds that a dead process is survived
        # by the others, longer than Slurm takes to see that a node has failed, whose jobs it queues again
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}", "--wait=600"],
        "comment": slurm_queue.mark(root),
        "additional_parameters": {
            "kill-on-invalid-dep": "yes",
            "requeue": True,  # a site may have set that jobs are not queued again unless they say so
            **_gpu_options(job.gpus_per_node, cluster),
            **cluster.extra,
        },
    }
    made = Executor(root.submitit_dir, max_num_timeout=ANY_NUMBER_OF_TIMEOUTS)
    given = {name: value for name, value in options.items() if value is not None}
    made.update_parameters(
        **given, wckey=None
    )  # submitit's own would be refused where such keys are enforced
    return made


def _gpu_options(gpus: int, cluster: ClusterConfig) -> dict[str, str]:
    """How so many GPUs of a node are asked for at this site."""
    if not gpus or cluster.gpu_request == "none":
        return {}
    if cluster.gpu_request == "constraint":
        return {"constraint": str(cluster.gpu_type)}
    typed = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else str(gpus)
    return {"gres": f"gpu:{typed}"} if cluster.gpu_request == "gres" else {"gpus-per-node": typed}


def _script(made: submitit.SlurmExecutor, size: int) -> str:
    """The text that submitit writes for sbatch: it has no public function for it."""
    if size > 1:
        made.parameters["map_count"] = size
    return made._make_submission_file_text(made._submitit_command_str, "")


def _submit(
    array: Sequence[Job], needs: Sequence[str], grid: str, root: Root, cluster: ClusterConfig, code: Code
) -> list[str]:
    """The numbers under which Slurm now has the jobs: N, or N_0, N_1, ... if there are several."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from metapt.launch.slurm_task import Task

    threads = cluster.threads or cluster.cpus_per_task
    most, patience = cluster.max_requeues_without_progress, cluster.visibility_timeout_s
    tasks = [Task(root.path, job, threads, most, patience) for job in array]
    try:
        made = executor(array, needs, grid, root, cluster, code)
        return [submitted.job_id for submitted in made.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        others = f" and {len(array) - 1} like it" if len(array) > 1 else ""
        raise OperationalError(
            f"{array[0].id}{others}: sbatch refuses, and nothing is submitted: {str(error).strip()}"
        ) from None


@contextmanager
def outside_of_any_job() -> Iterator[None]:
    """Submitting from inside a job: what that job is and has is taken from the environment of the block.

    Left there it would be handed on, and srun in the new job take it for its options, torch for a rank. SBATCH_* are
    the site's and the user's settings, and stay.
    """
    before = dict(os.environ)
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    for name in before:
        is_of_job = name.startswith(
            ("SLURM_", "SLURMD_", "SRUN_", "PMI", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
        )
        if (
            "SLURM_JOB_ID" in before
            and (is_of_job or name in ranks)
            and name not in ("SLURM_CONF", "SLURM_CLUSTERS")
        ):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
