"""`metapt pretrain` in which something goes wrong at its first start: python faulty_training.py MARKER FAULT key=value ...

MARKER is created at the first start, so that later ones are undisturbed. FAULT is the JSON of forks.Fault, at one of
its fault points. Further actions than there, at "unit": DEVICE (an error of the device); WAIT (for a signal) and HANG, at which
MARKER.reached appears.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forks

from metapt import pretrain
from metapt.errors import run_command

original = forks.trigger


def trigger(action: str, args: Sequence[Any]) -> None:
    if action == "DEVICE":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if action in ("HANG", "WAIT"):
        marker.with_suffix(".reached").touch()
        while action == "HANG" or args[0].stop.name is None:  # of the Trainer
            time.sleep(0.02)
    else:
        original(action, args)


marker = Path(sys.argv[1])
if not marker.exists():
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    forks.trigger = trigger
    forks.install(forks.Fault(**json.loads(sys.argv[2])))
sys.argv = [sys.argv[0], *sys.argv[3:]]
run_command(pretrain.main)
