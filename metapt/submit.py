"""python -m metapt.submit grid=NAME cluster=local|inline|slurm key=value ...: runs a grid. `--help` lists the keys."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.errors import run_command
from metapt.launch.submission import submit


def main(argv: Sequence[str]) -> None:
    submit(commandline.load("submit", argv))


if __name__ == "__main__":
    run_command(main)
