"""The command `metapt estimate`: memory, FLOPs and hours of a pretraining run before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.estimate.forecast import describe


def main(argv: Sequence[str]) -> None:
    """Print the estimate for the run and the machine of these arguments.

    Raises:
        UserError: an error in the arguments.
    """
    print(describe(commandline.load("estimate", argv)))
