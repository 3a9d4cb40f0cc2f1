"""python -m metapt.status root=PATH: what of a grid is done, running, waiting or failed, and how far."""

from __future__ import annotations

from collections.abc import Sequence

from metapt import commandline
from metapt.errors import run_command
from metapt.launch.display import print_status
from metapt.launch.root import Root
from metapt.launch.submission import current_states


def main(argv: Sequence[str]) -> None:
    """Prints a table of the jobs of ROOT/plan.json.

    Raises:
        UserError: the folder holds no plan.
    """
    root = Root(commandline.load("status", argv).root)
    plan = root.read_plan()
    print_status(plan, current_states(plan, root), root)


if __name__ == "__main__":
    run_command(main)
