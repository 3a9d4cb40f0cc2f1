"""What the commands of Slurm say about the site, its users and their jobs. Each answer is empty or None without Slurm."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

COMMAND_SECONDS = 60  # the longest wait for a command of Slurm
SETTING_SECONDS = 10
_answers: dict[str, tuple[float, dict[str, str] | None]] = {}  # of squeue: user to time and jobs


def call(command: Sequence[str], *, timeout: float = COMMAND_SECONDS) -> str:
    """What a command of Slurm prints. Variables with its name, such as SQUEUE_STATES, would filter it and are not passed on.

    Raises:
        OSError, subprocess.SubprocessError: it is not there, fails, or does not answer in time.
    """
    prefix = f"{command[0].upper()}_"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=timeout)
    return done.stdout


def user_name() -> str:
    """The user of this process."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in some containers
        return str(os.getuid())


def site_setting(name: str) -> str:
    """A setting of the cluster according to scontrol; empty if it does not answer.

    Without a configuration or a controller, scontrol may retry for a minute, so it gets only ten seconds.
    """
    try:
        answer = call(["scontrol", "show", "config"], timeout=SETTING_SECONDS)
    except (OSError, subprocess.SubprocessError):
        answer = ""
    found = re.search(rf"^{name}\s*=\s*(\S+)", answer, re.MULTILINE)
    return found[1] if found else ""


def cluster_name() -> str:
    """The name of the cluster that the commands of Slurm on this machine belong to; empty if it is not known."""
    return site_setting("ClusterName")


def jobs_in_queue(user: str, max_age: float = 0.0) -> dict[str, str] | None:
    """The jobs of a user in Slurm's queue: raw job id (SLURM_JOB_ID in the job) to state. None if squeue fails.

    Sites may hide the jobs of other users.

    Args:
        max_age: seconds; an answer that squeue gave no longer ago will do.
    """
    if user in _answers and time.monotonic() - _answers[user][0] <= max_age:
        return _answers[user][1]
    asked = time.monotonic()
    command = ["squeue", f"--user={user}", "--noheader", "--array", "--format=%A|%T"]
    try:
        jobs = _states(call(command))
    except (OSError, subprocess.SubprocessError):
        jobs = None
    _answers[user] = (asked, jobs)
    return jobs


def _states(listing: str) -> dict[str, str]:
    states: dict[str, str] = {}
    for line in listing.splitlines():
        slurm_id, _, state = line.strip().partition("|")
        # pending tasks of an array have the id of the array, as one of its running tasks may have
        if states.get(slurm_id, "PENDING") == "PENDING":
            states[slurm_id] = state
    return states


def excludable(nodes: Sequence[str]) -> list[str]:
    """The nodes and those that this job avoids already, as Slurm expects the whole list.

    None, if its partition has too few others for it: it would wait for ever.
    """
    if not nodes:
        return []
    nodes = sorted({*nodes, *_avoided_nodes()})
    partition, needed = (
        os.environ.get("SLURM_JOB_PARTITION", ""),
        int(os.environ.get("SLURM_JOB_NUM_NODES", "1")),
    )
    if not partition:
        return list(nodes)
    command = ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N"]
    try:
        listed = call(command, timeout=SETTING_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return list(nodes)
    if len(set(listed.split()) - set(nodes)) >= needed:
        return list(nodes)
    print(
        f"partition {partition} has no {needed} other node(s) than {','.join(nodes)}",
        file=sys.stderr,
        flush=True,
    )
    return []


def _avoided_nodes() -> list[str]:
    """The nodes that this job was submitted or requeued without."""

    def ask(*words: str) -> str:
        return call(["scontrol", "show", *words], timeout=SETTING_SECONDS)

    try:
        found = re.search(r"\bExcNodeList=(\S+)", ask("job", os.environ.get("SLURM_JOB_ID", "")))
        return ask("hostnames", found[1]).split() if found and found[1] != "(null)" else []
    except (OSError, subprocess.SubprocessError):
        return []


def exclude_nodes(slurm_id: str, nodes: Sequence[str]) -> None:
    """Keep a pending job off some nodes. A refusal by Slurm is printed.

    A job may do this for itself after its requeue, while Slurm ends all of its processes with TERM.
    """
    command = ["scontrol", "update", f"JobId={slurm_id}", f"ExcNodeList={','.join(nodes)}"]
    try:
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=SETTING_SECONDS,
            preexec_fn=_ignore_term,
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        print(f"failed: {' '.join(command)}: {reason.strip()}", file=sys.stderr, flush=True)


def _ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
