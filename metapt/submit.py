"""The command `metapt submit`: run a grid on this machine or on Slurm."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.config.composition import describe_option, group_options
from metapt.errors import UserError, run_command
from metapt.launch.submission import submit


def main(argv: Sequence[str]) -> None:
    """Submit the jobs of the grid of these arguments that are not done yet.

    Raises:
        UserError: an error in the arguments, or in the command line of a job.
    """
    config = commandline.load("submit", argv)
    if not any(word.startswith("grid=") for word in argv):
        raise UserError(choices_of_grid())
    submit(config)


def choices_of_grid() -> str:
    """What `metapt submit` answers where no grid is given: the grids, and what to type."""
    grids = group_options("submit")["grid"]
    width = max(map(len, grids))
    return "\n".join(
        [
            "metapt submit: grid= is required, the runs to do. Shipped grids:",
            *(f"  {name:{width}}  {describe_option('submit', 'grid', name)}" for name in grids),
            "or a file of your own, grid=./mine.yaml (docs/configuration.md). See what it would run:",
            "  metapt submit grid=demo dry_run=true",
        ]
    )


if __name__ == "__main__":
    run_command(main)
