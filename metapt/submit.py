"""The command `metapt submit`: run a grid on this machine or on Slurm."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.errors import run_command
from metapt.launch.submission import submit


def main(argv: Sequence[str]) -> None:
    """Submit the jobs of the grid of these arguments that are not done yet.

    Raises:
        UserError: an error in the arguments, or in the command line of a job.
    """
    submit(commandline.load("submit", argv))


if __name__ == "__main__":
    run_command(main)
