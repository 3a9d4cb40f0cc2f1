"""The settings of a site in a batch script: environment modules, variables, setup lines, interpreter and launcher.

`metapt submit cluster=./site.yaml` writes them into the scripts of a grid, `metapt sbatch cluster=./site.yaml` into
slurm/pretrain.sh and slurm/finetune.sh. A script contains all of them, so it does not matter whether Slurm passes the
environment of the submitter on.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection

from metapt.config import ClusterConfig

# Bash functions are not in the environment of a batch job at every site; /etc/profile defines this one.
MODULE_COMMAND = "type module >/dev/null 2>&1 || . /etc/profile"
NO_SLURM_INSIDE = "error: cluster.launcher: jobs are requeued with scontrol and squeue, which are not in the container; bind them"


def setup_lines(cluster: ClusterConfig) -> list[str]:
    """The lines that load the environment of a job. The first one that fails ends the job, with a message.

    They run before anything that reads variables under `set -u`.
    """
    lines = [f"module load {shlex.quote(name)}" for name in cluster.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.exports.items()]
    lines += cluster.setup
    if not lines:
        return []
    first = [MODULE_COMMAND] if cluster.modules else []
    trap = """trap 'echo "error: the setup of the site failed: $BASH_COMMAND" >&2' EXIT"""
    return [*first, "set -e", trap, *lines, "set +e", "trap - EXIT"]


def launcher_check(cluster: ClusterConfig) -> list[str]:
    """Lines that end a job whose launcher hides the commands with which the job requeues itself at its time limit."""
    if not cluster.launcher:
        return []
    test = f"{cluster.launcher} sh -c 'command -v scontrol && command -v squeue' >/dev/null"
    return [f"{test} || {{ echo {shlex.quote(NO_SLURM_INSIDE)} >&2; exit 1; }}"]


def python_command(cluster: ClusterConfig) -> str:
    """How a batch script starts Python: the launcher, and the interpreter of the site or else of this process."""
    python = shlex.quote(cluster.python or sys.executable)
    return f"{cluster.launcher} {python}" if cluster.launcher else python


def sbatch_options(cluster: ClusterConfig, written: Collection[str]) -> dict[str, str | bool]:
    """The options of sbatch that a site sets for a single run, by long name; True: without argument.

    Args:
        written: the keys that the user has set; the batch scripts have defaults of their own.
    """
    options = {
        "partition": ("partition", cluster.partition),
        "account": ("account", cluster.account),
        "qos": ("qos", cluster.qos),
        "exclude": ("exclude", cluster.exclude),
        "timeout_min": ("time", cluster.timeout_min),
        "signal_delay_s": ("signal", f"USR1@{cluster.signal_delay_s}"),
        "mem_gb": ("mem", cluster.mem_gb and f"{cluster.mem_gb}GB"),
        "cpus_per_task": ("cpus-per-task", cluster.cpus_per_task),
    }
    given = {name: str(value) for key, (name, value) in options.items() if key in written and value}
    return given | extra_options(cluster)


def extra_options(cluster: ClusterConfig) -> dict[str, str | bool]:
    """The options of `cluster.extra`; True: without argument, which is written as an empty value or as true."""
    return {
        name.replace("_", "-"): value.lower() in ("", "true") or value
        for name, value in cluster.extra.items()
    }


def gpu_and_extra_options(gpus: int, cluster: ClusterConfig) -> dict[str, str | bool]:
    """The options that request a number of GPUs per node, and those of `cluster.extra`. Both may name resources or features."""
    requested, extra = gpu_options(gpus, cluster), extra_options(cluster)
    joined = {
        name: f"{requested[name]}{mark}{extra[name]}"
        for name, mark in (("gres", ","), ("constraint", "&"))
        if name in requested and name in extra
    }
    return {**requested, **extra, **joined}


def gpu_options(gpus: int, cluster: ClusterConfig) -> dict[str, str]:
    """The sbatch option that requests a number of GPUs per node at this site."""
    if not gpus or cluster.gpu_request == "none":
        return {}
    if cluster.gpu_request == "constraint":
        return {"constraint": str(cluster.gpu_type)}
    typed = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else str(gpus)
    return {"gres": f"gpu:{typed}"} if cluster.gpu_request == "gres" else {"gpus-per-node": typed}


def script_lines(cluster: ClusterConfig) -> list[str]:
    """The lines with the settings of a site in slurm/pretrain.sh and slurm/finetune.sh."""
    launcher = f"LAUNCH=({cluster.launcher or ''}) SRUN_ARGS=({shlex.join(cluster.srun_args)})"
    return [*setup_lines(cluster), f"PYTHON={shlex.quote(cluster.python or sys.executable)}", launcher]
