"""Let the pretraining runs of a longer grid begin with the finished runs of a shorter one, instead of with random weights.

    python benchmarks/continue_runs.py runs/study2 grid=study2_longer     the words of `metapt submit` for the longer grid
    metapt submit grid=study2_longer cluster=inline

A grid names runs by their configuration, so that a longer run is another run in another folder. For each pretraining run of the longer grid, this command copies
a finished run that differs in its length alone (with equal learning rates so far), with its newest checkpoint and without its result. `metapt submit` then
resumes it, and it ends as if it had had the greater length from the start. Folders that exist are left as they are.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from metapt.config import PretrainConfig, commandline, identity_in
from metapt.errors import UserError
from metapt.launch.grid import plan
from metapt.runs import Run


def continues(run: Run, config: PretrainConfig) -> bool:
    """Whether a finished run is the beginning of the run of a configuration."""
    try:
        run.check_identity(identity_in(config, run))
    except UserError:
        return False
    return run.result()["steps"] < config.train.max_steps


def copy_beginning(run: Run, target: Path) -> None:
    """Copy a run without its result, and of its checkpoints the newest alone."""
    _, newest = run.checkpoints()[-1]
    left_out = {path.name for _, path in run.checkpoints()} - {newest.name}
    left_out |= {run.result_file.name, run.lock_file.name}
    staging = target.with_name(f"{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(run.path, staging, ignore=lambda folder, names: left_out.intersection(names))
    staging.rename(target)


def main(shorter: Path, words: Sequence[str]) -> None:
    """Print what becomes of each pretraining run of the longer grid.

    Raises:
        UserError: the words describe no grid.
    """
    config = commandline.load("submit", words)
    finished = [run for path in sorted((shorter / "pretrain").iterdir()) if (run := Run(path)).is_done]
    grid_plan = plan(config)
    for job in grid_plan.jobs:
        target = Path(config.root) / job.run_dir
        if job.kind != "pretrain":
            continue
        found = next((run for run in finished if continues(run, grid_plan.configs[job.id])), None)
        if target.exists():
            print(f"{target}: exists, and is left as it is")
        elif found is None:
            print(f"{target}: {shorter} has no finished run that it continues")
        else:
            copy_beginning(found, target)
            print(f"{target}: continues {found.path} after {found.result()['steps']} updates")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
