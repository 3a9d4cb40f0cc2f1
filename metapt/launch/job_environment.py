"""The environment of a submission: without a surrounding Slurm job, and without what would override the batch script."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = {  # what follows SBATCH_ in the variables of an option, where that is not its name, or not it alone
    "array": ["ARRAY_INX"],
    "mem": ["MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"],  # which exclude one another
    "requeue": ["REQUEUE", "NO_REQUEUE"],
    "time": ["TIMELIMIT"],
}


@contextmanager
def without_job_environment(script: str = "") -> Iterator[None]:
    """Removes the variables of a surrounding Slurm job from the environment of the block.

    Otherwise a new job would inherit them: srun would take them for its options, and torch for a rank. SBATCH_*
    variables are settings of the site and the user. sbatch prefers them to the options in a batch script, so they are
    kept only for what the script leaves open.

    Args:
        script: the text of the batch script that the block submits.
    """
    before = dict(os.environ)
    of_a_job = ("SLURM_", "SLURMD_", "SRUN_", "PMI", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
    of_a_rank = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {"SLURM_CONF", "SLURM_CLUSTERS"}
    if "SLURM_JOB_ID" in before:
        for name in before.keys() - kept:
            if name.startswith(of_a_job) or name in of_a_rank:
                del os.environ[name]
    for option in re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE):
        for name in VARIABLES.get(option, [option.replace("-", "_").upper()]):
            os.environ.pop(f"SBATCH_{name}", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
