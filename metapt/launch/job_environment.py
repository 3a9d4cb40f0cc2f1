"""The environment of a submission from inside a Slurm job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_job_environment() -> Iterator[None]:
    """Removes the variables of a surrounding Slurm job from the environment of the block.

    Otherwise a new job would inherit them: srun would take them for its options, and torch for a rank. SBATCH_*
    variables are settings of the site and the user, and are kept.
    """
    before = dict(os.environ)
    of_a_job = ("SLURM_", "SLURMD_", "SRUN_", "PMI", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
    of_a_rank = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {"SLURM_CONF", "SLURM_CLUSTERS"}
    if "SLURM_JOB_ID" in before:
        for name in before.keys() - kept:
            if name.startswith(of_a_job) or name in of_a_rank:
                del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
