"""metapt estimate key=value ...: memory, operations and hours of a pretraining run, told in advance.

It takes the keys of metapt.pretrain, and what is known of the machine. `--help` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.estimate.forecast import describe


def main(argv: Sequence[str]) -> None:
    print(describe(commandline.load("estimate", argv)))
