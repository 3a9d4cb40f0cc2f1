"""The command `metapt baseline`: score a baseline tagger, in a run folder like that of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import commandline
from metapt.errors import run_command
from metapt.evaluation.run_baseline import run_baseline


def main(argv: Sequence[str]) -> None:
    """Run the baseline of these arguments; a finished run is left as it is.

    Raises:
        UserError: an error in the arguments or the data, or the folder holds another run.
    """
    run_baseline(commandline.load("baseline", argv))


if __name__ == "__main__":
    run_command(main)
