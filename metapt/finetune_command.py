"""The command `metapt finetune`: one fine-tuning run, or one for each fold of a cross-validation."""

from __future__ import annotations

import os
from collections.abc import Sequence

from metapt.config import FinetuneConfig, commandline
from metapt.errors import run_command
from metapt.launch.run_checks import check_run
from metapt.runs import Run
from metapt.training.experiment_trackers import require_packages
from metapt.training.progress_line import log
from metapt.training.signals import StopRequest


def main(argv: Sequence[str]) -> None:
    """Start or resume the run of these arguments; a finished run is left as it is.

    Raises:
        UserError: an error in the arguments, the model or the data, or the folder holds another run.
        Interrupted: a signal arrived, and a checkpoint was saved; or a device failed.
    """
    stop = StopRequest().listen()  # before the slow imports, during which a signal would kill the process
    config: FinetuneConfig = commandline.load("finetune", argv)
    require_packages(config.log)
    if config.check:
        check_run(config, ranks=int(os.environ.get("WORLD_SIZE", "1")))
        print(f"{config.run_dir}: nothing to refuse")
        return
    if os.environ.get("RANK", "0") == "0":
        log(f"finetune {config.checkpoint}, tuning {config.tuning}, source {config.source}: {config.run_dir}")
    # imports torch, so only after the arguments are checked
    from metapt.finetuning.cross_validation import fold_configs, summarize
    from metapt.finetuning.run_finetuning import finetune

    runs = fold_configs(config)
    for run in runs:
        with stop.watched(Run(run.run_dir), run.train.hang_timeout_s):
            finetune(run, stop)
    if config.folds and os.environ.get("RANK", "0") == "0":
        summarize(config, runs)


if __name__ == "__main__":
    run_command(main)
