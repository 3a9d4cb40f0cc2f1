"""Failures of a node: a device error, or a run that hangs. They count as interruptions, and name node and device.

    with watched(run, stop, seconds): train()

A rank that finds such a failure leaves a record in its run folder (RUN/node_failures/) and ends with exit code 75. Slurm jobs
are then requeued without the nodes that have failed (metapt.launch.requeues).
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from threading import Event, Thread
from typing import Protocol

from metapt.errors import EXIT_INTERRUPTED, Interrupted
from metapt.files import write_json
from metapt.runs import Run

CAUSED_BY_PROGRAMS = (
    "out of memory|CUBLAS_STATUS_ALLOC_FAILED|device-side assert|no kernel image|invalid (argument|configuration|resource handle)"
    "|too many resources|operation not permitted"
)
DEVICE_ERRORS = re.compile(
    rf"(CUDA|HIP) (driver )?error: (?!{CAUSED_BY_PROGRAMS})|CUDA unknown error|No (CUDA|HIP) GPUs are available"
    r"|(CUDNN|CUBLAS)_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED)|uncorrectable ECC error"
    r"|NCCL.*(unhandled (cuda|system) error|internal error)"
)
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""Timeout of collective operations. It is longer than `train.hang_timeout_s` may be: of a hang, it would not show which rank
is at fault."""
MAX_POLL_SECONDS = 5.0  # how often a hang is looked for


class SignOfLife(Protocol):
    """What `watched` knows of the progress of the main thread (metapt.training.signals.StopRequest)."""

    queries: int  # how often the run has asked whether it should stop

    @property
    def idle_seconds(self) -> float: ...


@dataclass(frozen=True)
class NodeFailure:
    """A failure that a rank has found.

    Attributes:
        job, start: the Slurm job, and how often it was requeued before.
        queries: of a hang: how often the rank has asked whether it should stop; None: a device error.
    """

    job: str
    start: int
    rank: int
    node: str
    device: str
    error: str
    queries: int | None = None

    def __str__(self) -> str:
        return f"{self.device} on node {self.node}: {self.error}"


def device_error(text: str) -> str | None:
    """The line of a text that reports a failed device; None if there is none. Secondary errors, of ranks that lose the
    connection to a failed one, and errors that the program causes, such as a full memory, do not count.
    """
    return next((line.strip() for line in text.splitlines() if DEVICE_ERRORS.search(line)), None)


def node_failure(error: str, queries: int | None = None) -> NodeFailure:
    """A failure of the node and the device of this process."""
    return NodeFailure(
        job=os.environ.get("SLURM_JOB_ID", ""),
        start=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        rank=int(os.environ.get("RANK", "0")),
        node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        device=_device(),
        error=error,
        queries=queries,
    )


def record(run: Run, failure: NodeFailure) -> None:
    """Leave a failure in the run folder."""
    name = f"{failure.job or 'no_job'}-{failure.start}-{failure.rank}.json"
    write_json(run.node_failures_dir / name, asdict(failure))


def recorded(run: Run, job: str) -> list[NodeFailure]:
    """The failures at all starts of a Slurm job, in the order of the starts."""
    files = run.node_failures_dir.glob(f"{job}-*.json")
    found = [NodeFailure(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return sorted(found, key=lambda failure: (failure.start, failure.rank))


def culprits(failures: Sequence[NodeFailure]) -> list[NodeFailure]:
    """The failures of one start that explain the others.

    Device errors come first. If ranks hang, the others wait for the one that has got least far. If all have got equally
    far on several nodes, the network between them may hang, and none of them is known to be at fault.
    """
    errors = [failure for failure in failures if failure.queries is None]
    if errors or not failures:
        return errors
    least = min(failure.queries or 0 for failure in failures)
    slowest = [failure for failure in failures if failure.queries == least]
    nodes = {failure.node for failure in failures}
    return [] if len(slowest) == len(failures) and len(nodes) > 1 else slowest


@contextmanager
def watched(run: Run, stop: SignOfLife, hang_seconds: float) -> Iterator[None]:
    """Record device errors of the block, and end the process if it hangs.

    Args:
        hang_seconds: the run hangs if it has not asked for so long whether it should stop; 0: never.
    Raises:
        Interrupted: a device error.
    """
    done = Event()
    if hang_seconds:
        Thread(target=_watch, args=(run, stop, hang_seconds, done), daemon=True).start()
    try:
        yield
    except Exception as error:
        line = device_error(f"{type(error).__name__}: {error}")
        if line is None:
            raise
        traceback.print_exc()
        failure = node_failure(line)
        record(run, failure)
        raise Interrupted(f"{run.path}: {failure}; the same command resumes the run") from None
    finally:
        done.set()


def _watch(run: Run, stop: SignOfLife, hang_seconds: float, done: Event) -> None:
    poll_seconds = min(MAX_POLL_SECONDS, hang_seconds / 10)
    while not done.wait(poll_seconds):
        if stop.idle_seconds > hang_seconds and not done.is_set():
            failure = node_failure(f"no progress for {hang_seconds:g} s", stop.queries)
            faulthandler.dump_traceback(sys.stderr)
            print(
                f"interrupted: {run.path}: {failure}; the same command resumes the run",
                file=sys.stderr,
                flush=True,
            )
            record(run, failure)
            time.sleep(
                2 * poll_seconds
            )  # other ranks record it too, before they lose the connection to this one
            os._exit(EXIT_INTERRUPTED)  # the main thread hangs, so it cannot raise an exception


def _device() -> str:
    """The device of this process, without a call that a broken device might not answer."""
    visible, torch = os.environ.get("CUDA_VISIBLE_DEVICES"), sys.modules.get("torch")
    if not (torch.cuda.is_initialized() if torch else visible):
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if visible:  # as metapt.models.device.local_device
        return f"cuda:{index % len(visible.split(','))} of CUDA_VISIBLE_DEVICES={visible}"
    return f"cuda:{index}"
