"""Runs `metapt.pretrain` for several command lines in one process (on each rank), to pay for the imports once.

usage: python tests/many.py '[["model=nano", ...], ...]'
"""

from __future__ import annotations

import json

from metapt.errors import run_command
from metapt.pretrain import main

if __name__ == "__main__":
    run_command(lambda argv: [main(words) for words in json.loads(argv[0])] and None)
