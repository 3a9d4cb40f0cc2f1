"""Run `metapt pretrain` for several command lines in one process per rank (`forks.Forks.pretrain_many`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from metapt import pretrain


def main(argv: Sequence[str]) -> None:
    for arguments in json.loads(argv[0]):
        pretrain.main(arguments)
