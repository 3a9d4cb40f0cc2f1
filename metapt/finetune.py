"""python -m metapt.finetune key=value ...: one fine-tuning run. `--help` lists the keys."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import FinetuneConfig, commandline
from metapt.errors import run_command
from metapt.training.signals import StopRequest


def main(argv: Sequence[str]) -> None:
    """Starts, resumes, or (if it is done) leaves alone the run that the arguments describe.

    Raises:
        UserError: a mistake in the arguments, the checkpoint or the data; or the folder holds another run.
        Interrupted: a signal came, and a checkpoint stands.
    """
    stop = StopRequest().listen()  # before the slow imports, during which a signal would otherwise kill
    config: FinetuneConfig = commandline.load("finetune", argv)
    from metapt.finetuning.run_finetuning import (
        finetune,  # imports torch: not before the arguments are known to be right
    )

    finetune(config, stop)


if __name__ == "__main__":
    run_command(main)
