"""python -m metapt.status root=PATH [--watch] [--json]: what of a grid is done, running, waiting or failed, and how far."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from metapt.config import StatusConfig, commandline
from metapt.errors import run_command
from metapt.launch.grid_dir import Root
from metapt.launch.grid_status import Overview, overview

WORDS = {"--watch": "watch=true", "--json": "json=true"}
ROWS_BESIDE_THE_TABLE = 12  # header, counts, errors


def main(argv: Sequence[str]) -> None:
    """Shows the jobs of ROOT/plan.json: once, or again and again until all are done or Ctrl-C.

    Raises:
        UserError: the folder holds no plan.
    """
    config: StatusConfig = commandline.load("status", [WORDS.get(word, word) for word in argv])
    root = Root(config.root)
    if not config.watch:
        _print(overview(root), config.json)
        return
    try:
        _watch(root, config)
    except KeyboardInterrupt:
        return


def _watch(root: Root, config: StatusConfig) -> None:
    if config.json or not sys.stdout.isatty():
        while not _print(overview(root), config.json).is_finished:
            time.sleep(config.every_s)
        return
    from rich.console import Console
    from rich.live import Live

    from metapt.launch.display import status_view

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seen = overview(root)
            rows = max(1, console.height - ROWS_BESIDE_THE_TABLE)
            live.update(status_view(seen, rows), refresh=True)
            if seen.is_finished:
                return
            time.sleep(config.every_s)


def _print(seen: Overview, as_json: bool) -> Overview:
    if as_json:
        print(seen.to_json(), flush=True)
    else:
        from rich.console import Console  # here: it takes longer than all else, and JSON needs none of it

        from metapt.launch.display import status_view

        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(status_view(seen))
    return seen


if __name__ == "__main__":
    run_command(main)
