"""python -m metapt.baseline key=value ...: a baseline's scores in a run folder. `--help` lists the keys."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.errors import run_command
from metapt.evaluation.run_baseline import baseline


def main(argv: Sequence[str]) -> None:
    """Makes the run that the arguments describe, or leaves it alone if it is done.

    Raises:
        UserError: a mistake in the arguments or the data; or the folder holds another run.
    """
    baseline(commandline.load("baseline", argv))


if __name__ == "__main__":
    run_command(main)
