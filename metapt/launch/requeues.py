"""A limit on how often Slurm restarts a job that makes no progress.

A requeued job resumes from its newest checkpoint. A job that is stopped every time before it has written a new one
would be requeued for ever: after a number of requeues in a row without a new checkpoint it is abandoned. Slurm counts
all requeues of a job: after a time limit, a preemption, `scontrol requeue` or a node failure.

RUN/requeues.json is {"job": SLURM_ID, "start": n, "step": s}. At start n of the job (0: the first) the newest
checkpoint was that of step s (-1: none), and no start since has found a newer one. A first record that is written at
a later start has "start": 0, because the earlier starts were stopped before they could write one.

A job that ended because a node failed (metapt.node_failures) is requeued without that node, at most twice.

The batch scripts run `python -m metapt.launch.requeues metapt.COMMAND key=value ...` at each start of their job. It
prints which source the job runs, exits with 2 if the run would refuse its configuration or data, and with 1 if the job
is abandoned. With `after` as the first word, at the end of a start that has failed or was interrupted, it prints the nodes
that the job has to avoid, and exits with 1 if nodes have failed too often.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from metapt.config import ClusterConfig
from metapt.errors import OperationalError, run_command
from metapt.files import parsed_object, write_atomically, write_json
from metapt.launch.code_snapshot import live_code
from metapt.launch.process import GRACE_SECONDS
from metapt.leases import wait_until_free
from metapt.node_failures import NodeFailure, culprits, recorded
from metapt.runs import Run
from metapt.slurm_commands import excludable

MAX_NODE_FAILURES = 2  # requeues of a job because a node failed


def check_requeue_limit(run: Run, slurm_id: str, start: int, max_requeues: int, is_lead: bool = True) -> None:
    """Records a start of a job, and stops the job if too many requeues have brought no new checkpoint.

    All ranks reach the same decision, whether they look before or after the lead rank has written its record.

    Args:
        slurm_id: the Slurm job id, which a requeue does not change.
        start: how often the job was requeued before this start.
        max_requeues: the number of requeues in a row that may pass without a new checkpoint.
        is_lead: whether this is the one rank that writes.
    Raises:
        OperationalError: the job is abandoned; error.txt of the run has the same message.
    """
    checkpoints = run.checkpoints()
    step = checkpoints[-1][0] if checkpoints else -1
    record = _recorded_start(run, slurm_id)
    # without a record no earlier start got as far as this function, so none has trained
    since, recorded_step = record or (0, step)
    if step > recorded_step:
        since = start
    requeues = start - since
    if requeues > max_requeues:
        newest = "none" if step < 0 else f"step {step}"
        message = f"requeued {requeues} times in a row without a new checkpoint (newest: {newest}); abandoned"
        if is_lead:
            write_atomically(run.error_file, f"{message}\n")
        raise OperationalError(f"{run.path}: {message}")
    if is_lead and (record is None or step > recorded_step):
        write_json(run.requeues_file, {"job": slurm_id, "start": since, "step": step})


def _recorded_start(run: Run, slurm_id: str) -> tuple[int, int] | None:
    """The (start, step) that an earlier start of this job, or the lead rank at this one, has recorded; None also if the
    record is damaged.
    """
    record = parsed_object(run.requeues_file.read_bytes()) if run.requeues_file.exists() else None
    return (record["start"], record["step"]) if record and record["job"] == slurm_id else None


def nodes_to_avoid(run: Run, slurm_id: str, start: int, is_lead: bool = True) -> list[str] | None:
    """The nodes that a job has to avoid when it starts again, after this start ended because a node failed.

    Args:
        slurm_id: SLURM_JOB_ID, as in the records of failures.
        start: how often the job was requeued before this start.
    Returns: the nodes that failed at any start, sorted; none if no node is known to be at fault, or if the partition has
        too few others. None: no node failed.
    Raises:
        OperationalError: nodes have failed at more than `MAX_NODE_FAILURES` starts; error.txt of the run has the message.
    """
    starts: dict[int, list[NodeFailure]] = {}
    for failure in recorded(run, slurm_id):
        starts.setdefault(failure.start, []).append(failure)
    if start not in starts:
        return None
    blamed = [failure for failures in starts.values() for failure in culprits(failures)]
    if len(starts) > MAX_NODE_FAILURES:
        known = blamed or starts[start]
        message = f"nodes have failed at {len(starts)} starts; abandoned\n" + "\n".join(map(str, known))
        if is_lead:
            write_atomically(run.error_file, f"{message}\n")
        raise OperationalError(f"{run.path}: {message}")
    return excludable(sorted({failure.node for failure in blamed}))


def main(argv: Sequence[str]) -> None:
    """Checks a run and its requeue limit by its command line, inside a Slurm job and on one process.

    Raises:
        UserError: what the run would refuse.
        OperationalError: see `check_requeue_limit`.
    """
    # here: slurm_task does not need them, and Hydra is slow to import
    from metapt.config import commandline
    from metapt.launch.run_checks import check_run

    has_ended = argv[0] == "after"
    command, *words = argv[has_ended:]
    config = commandline.load(command.removeprefix("metapt.").removesuffix("_command"), words)
    run, job, start = (
        Run(config.run_dir),
        os.environ["SLURM_JOB_ID"],
        int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )
    if has_ended:
        print(",".join(nodes_to_avoid(run, job, start) or []))
        return
    print(live_code(), flush=True)
    check_run(config, ranks=int(os.environ.get("WORLD_SIZE", "1")))
    wait_until_free(
        run.lock_file, GRACE_SECONDS
    )  # the previous start may run on a node that Slurm took for dead
    check_requeue_limit(run, job, start, ClusterConfig.max_requeues_without_progress)


if __name__ == "__main__":
    run_command(main)
