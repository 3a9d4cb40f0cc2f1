"""The processes that read run folders and draw figures."""

from __future__ import annotations

import os
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache

MAX_PROCESSES = 8


@cache
def pool() -> Executor:
    """Return the process pool of this program, started at the first call."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ProcessPoolExecutor(min(cores, MAX_PROCESSES))
