"""metapt status root=PATH [--watch] [--json]: the state and progress of every job of a grid."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from metapt.config import StatusConfig, commandline
from metapt.errors import run_command
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import GridStatus, grid_status

LINES_BELOW_TABLE = 12  # counts and errors
LOG_WIDTH = 160  # columns, where the output is no terminal


def main(argv: Sequence[str]) -> None:
    """Shows the jobs of a grid's plan once, or with --watch repeatedly until all are done or Ctrl-C.

    Raises:
        UserError: the folder holds no plan.
    """
    config: StatusConfig = commandline.load("status", argv)
    grid_dir = GridDir(config.root)
    if not config.watch:
        _print(grid_status(grid_dir), config.json)
        return
    try:
        _watch(grid_dir, config)
    except KeyboardInterrupt:
        return


def _watch(grid_dir: GridDir, config: StatusConfig) -> None:
    if config.json or not sys.stdout.isatty():
        while not _print(grid_status(grid_dir), config.json).is_finished:
            time.sleep(config.every_s)
        return
    from rich.console import Console
    from rich.live import Live

    from metapt.launch.display import status_view

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            status = grid_status(grid_dir)
            rows = max(1, console.height - LINES_BELOW_TABLE)
            live.update(status_view(status, rows), refresh=True)
            if status.is_finished:
                return
            time.sleep(config.every_s)


def _print(status: GridStatus, as_json: bool) -> GridStatus:
    if as_json:
        print(status.to_json(), flush=True)
    else:
        from rich.console import Console  # here: it is slow to import, and JSON output does not need it

        from metapt.launch.display import status_view

        width = None if sys.stdout.isatty() else LOG_WIDTH
        Console(width=width, highlight=False).print(status_view(status))
    return status


if __name__ == "__main__":
    run_command(main)
