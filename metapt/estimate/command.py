"""The command `metapt estimate`: memory, FLOPs and hours of a pretraining run before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.estimate.forecast import describe, machine_of
from metapt.estimate.update_split import with_numbers


def main(argv: Sequence[str]) -> None:
    """Print the estimate for the run and the machine of these arguments.

    Raises:
        UserError: an error in the arguments.
    """
    config = commandline.load("estimate", argv)
    machine = machine_of(config)
    print(describe(with_numbers(config, machine.ranks, machine.budget)))
