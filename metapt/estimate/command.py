"""python -m metapt.plan key=value ...: memory, operations and hours of a pretraining run, told in advance.

It takes the keys of metapt.pretrain, and what is known of the machine. `--help` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.errors import run_command
from metapt.estimate.forecast import describe


def main(argv: Sequence[str]) -> None:
    print(describe(commandline.load("plan", argv)))


if __name__ == "__main__":
    run_command(main)
