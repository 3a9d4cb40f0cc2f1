"""The batch script of an array of similar jobs: all options of sbatch, and the environment of the jobs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from metapt.config import ClusterConfig
from metapt.launch import hub_inputs, site_settings, slurm_queue
from metapt.launch.code_snapshot import CodeSnapshot
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job
from metapt.launch.resources import minutes_of, partition

if TYPE_CHECKING:
    import submitit


def build_executor(
    array: Sequence[Job],
    dependencies: Sequence[str],
    grid: str,
    grid_dir: GridDir,
    cluster: ClusterConfig,
    code: CodeSnapshot,
) -> submitit.SlurmExecutor:
    """submitit's executor for an array of similar jobs, with all sbatch options."""
    import submitit

    from metapt.launch.slurm_task import UNLIMITED_TIMEOUTS

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """The value on a cluster, so that a dry run works anywhere."""
            return 2

    job, size = array[0], len(array)
    python = site_settings.python_command(cluster)
    executor = Executor(grid_dir.submitit_dir, max_num_timeout=UNLIMITED_TIMEOUTS, python=python)
    options = {
        "job_name": job.id if size == 1 else f"{grid}/{job.kind}",
        **_requested(job, cluster),
        "dependency": ",".join(dependencies) or None,
        "array_parallelism": min(size, cluster.max_running or size),
        "setup": [
            *site_settings.setup_lines(cluster),
            *hub_inputs.shell_lines(cluster, grid_dir.path),
            *code.shell_lines(cluster.visibility_timeout_s),
            *site_settings.launcher_check(cluster),
        ],
        "srun_args": _srun_arguments(cluster),
        "comment": slurm_queue.job_comment(grid_dir),
    }
    given = {name: value for name, value in options.items() if value is not None}
    # submitit's own wckey would be refused at sites that enforce such keys
    executor.update_parameters(**given, wckey=None)
    return executor


def _requested(job: Job, cluster: ClusterConfig) -> dict[str, Any]:
    """What a job requests from Slurm, by submitit's names; None: the site decides."""
    return {
        "time": minutes_of(job, cluster),
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{job.mem_gb}GB" if job.mem_gb else None,
        "partition": partition(job, cluster),
        "exclude": cluster.exclude,
        "account": cluster.account,
        "qos": cluster.qos,
        "signal_delay_s": cluster.signal_delay_s,
        "additional_parameters": {
            "kill-on-invalid-dep": "yes",
            "requeue": True,  # a site may disable requeues for jobs that do not ask for them
            **site_settings.gpu_and_extra_options(job.gpus_per_node, cluster),
        },
    }


def _srun_arguments(cluster: ClusterConfig) -> list[str]:
    """The options of srun.

    --export: after SBATCH_EXPORT=NONE srun would pass no variables on. --cpus-per-task: since Slurm 22.05 srun does not
    inherit it from sbatch. --wait: seconds that the other processes live on after one has died. It is longer than Slurm
    takes to notice a failed node, whose jobs it requeues.
    """
    return ["--export=ALL", f"--cpus-per-task={cluster.cpus_per_task}", "--wait=600", *cluster.srun_args]


def script_text(executor: submitit.SlurmExecutor, size: int) -> str:
    """The text that submitit writes for sbatch, for which it has no public function."""
    executor = copy(executor)  # the parameter that it gets here is refused by its own submission
    executor.parameters = executor.parameters | ({"map_count": size} if size > 1 else {})
    return executor._make_submission_file_text(executor._submitit_command_str, "")
