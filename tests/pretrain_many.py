"""Run `metapt.pretrain` for several command lines in one process (per rank), so that imports are paid for once.

usage: python tests/pretrain_many.py '[["model=nano", ...], ...]'
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from metapt import pretrain
from metapt.errors import run_command


def main(argv: Sequence[str]) -> None:
    for arguments in json.loads(argv[0]):
        pretrain.main(arguments)


if __name__ == "__main__":
    run_command(main)
