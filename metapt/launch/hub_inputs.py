"""What the jobs of a grid read from the Hugging Face hub, downloaded before they are submitted.

Compute nodes of many clusters have no internet. The submitter therefore puts models, tokenizers and labelled sets into
a cache on the shared file system, each at one commit, and writes the token shards of corpora on the hub. The jobs run
with HF_HUB_OFFLINE=1 and read nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metapt.config import ClusterConfig, FinetuneConfig, PretrainConfig, SubmitConfig, commandline
from metapt.data.hub_files import HubFiles, cached_commit, fetch, model_files, tokenizer_files
from metapt.errors import OperationalError, UserError
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_arguments import cache_folder
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_checks import check_plan
from metapt.models.pretrained import HUB_PREFIX

HUB_CACHE, DATASETS_CACHE, OFFLINE = "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE"


def prepare_grid(config: SubmitConfig) -> None:
    """Downloads what the unfinished jobs of a grid read from the hub, and prepares its corpora on the hub. Submits nothing.

    It needs no Slurm on this machine.

    Raises:
        UserError: the grid has configuration errors, or does not run on Slurm.
        OperationalError: something cannot be downloaded.
    """
    if config.cluster.name != "slurm" or config.cluster.online:
        raise UserError(
            f"cluster={config.cluster.name}, cluster.online={str(config.cluster.online).lower()}: its jobs download "
            "what they read; metapt prepare grid=NAME is for cluster=slurm with cluster.online=false"
        )
    grid_plan, grid_dir = plan(config), GridDir(config.root)
    check_plan(grid_plan)
    todo = [job for job in grid_plan.jobs if not grid_dir.run(job).is_done]
    lines = fetch_inputs(grid_plan, todo, config.cluster, grid_dir.path)
    print("\n".join(lines or [f"{config.root}: its jobs read no file of the hub"]))


def shell_lines(cluster: ClusterConfig, root: str | Path | None) -> list[str]:
    """The lines of a batch script that let its job read the cache only; none with `cluster.online`.

    Args:
        root: the grid folder; None for a run outside of a grid, which reads the user's cache unless there is another.
    """
    if cluster.online:
        return []
    folder = cluster.cache or root
    variables = _variables(cluster, folder) if folder else {}
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return [f"export {' '.join([*settings, f'{OFFLINE}=1'])}"]


def fetch_inputs(plan: Plan, jobs: Sequence[Job], cluster: ClusterConfig, root: str | Path) -> list[str]:
    """Downloads what jobs read from the hub, unless it is in the cache, and prepares the corpora on the hub.

    With `cluster.online` the jobs do so.

    Returns: one line for the user for each repository, with its commit.
    Raises:
        UserError, OperationalError: something cannot be downloaded and is not in the cache; everything that is missing
            is listed, one a line.
    """
    if cluster.online:
        return []
    lines = _fetch(hub_files(plan, jobs), Path(_variables(cluster, root)[HUB_CACHE]))
    for job in corpora_on_hub(plan, jobs):
        _prepare(job.command, _variables(cluster, root))
    return lines


def fetch_run_inputs(command: str, words: Sequence[str], cluster: ClusterConfig) -> list[str]:
    """Does the same for one run, given by the words of `metapt pretrain` or `metapt finetune`.

    Without `cluster.cache` the cache is that of the user.

    Raises:
        UserError: the words have errors; and see `fetch_inputs`.
    """
    if cluster.online:
        return []
    from huggingface_hub.constants import HF_HUB_CACHE

    config = commandline.load(command, words)
    variables = _variables(cluster, cluster.cache) if cluster.cache else {}
    lines = _fetch(list(dict.fromkeys(_files_read(config))), Path(variables.get(HUB_CACHE, HF_HUB_CACHE)))
    if isinstance(config, PretrainConfig) and config.data.name == "hub":
        _prepare([sys.executable, "-m", "metapt.prepare", *words], variables)
    return lines


def _fetch(files: Sequence[HubFiles], hub: Path) -> list[str]:
    """Puts files into a cache. Returns one line for each repository, with its commit."""
    lines, problems = [], []
    for item in files:
        try:
            lines.append(f"{item}: commit {fetch(item, hub)}")
        except (UserError, OperationalError) as error:
            problems.append(error)
    if problems:
        kind = OperationalError if any(isinstance(item, OperationalError) for item in problems) else UserError
        listed = "\n".join(map(str, problems))
        raise kind(
            f"{listed}\nthe jobs need these files in {hub}, and none was submitted. Repeat this command, or "
            "`metapt prepare` with the arguments of the grid, where the hub can be reached, or set cluster.online=true if "
            "the compute nodes can reach it"
        )
    return lines


def missing_inputs(plan: Plan, jobs: Sequence[Job], cluster: ClusterConfig, root: str | Path) -> list[str]:
    """What `fetch_inputs` would download or prepare, one line each. Does not reach the hub."""
    if cluster.online:
        return []
    hub = Path(_variables(cluster, root)[HUB_CACHE])
    files = [str(item) for item in hub_files(plan, jobs) if cached_commit(item, hub) is None]
    return [*files, *(f"corpus of {job.id}" for job in corpora_on_hub(plan, jobs))]


def hub_files(plan: Plan, jobs: Sequence[Job]) -> list[HubFiles]:
    """The models, tokenizers and data sets of the hub that jobs read as files, each one once."""
    configs = (plan.configs[job.id] for job in jobs if job.id in plan.configs)
    return list(dict.fromkeys(files for config in configs for files in _files_read(config)))


def corpora_on_hub(plan: Plan, jobs: Sequence[Job]) -> list[Job]:
    """The prepare jobs of the corpora on the hub that jobs are or need, and that the cache does not have.

    That a corpus was prepared in another cache, or before this one was emptied, does not count.
    """
    due = {job.id: job for job in jobs}
    configs = {  # by the id of the prepare job
        name: plan.configs[job.id]
        for job in plan.jobs
        if job.kind == "pretrain"
        and job.id in plan.configs
        and (job.id in due or not due.keys().isdisjoint(job.needs))
        for name in job.needs
    }
    on_hub = {
        name: config.data
        for name, config in configs.items()
        if config.data.name == "hub" and not Path(config.data.hub_name).is_dir()
    }
    if not on_hub:
        return []
    from metapt.data.corpus import is_in_cache  # imports transformers

    return [due.get(job.id, job) for job in plan.jobs if job.id in on_hub and not is_in_cache(on_hub[job.id])]


def _files_read(config: Any) -> Iterator[HubFiles]:
    """The files of the hub that a run reads."""
    if isinstance(config, PretrainConfig):
        if config.init and config.init.startswith(HUB_PREFIX):
            yield model_files(config.init.removeprefix(HUB_PREFIX))
        if config.data.tokenizer != "train":
            from metapt.data.tokenizers import is_path  # imports transformers

            if not is_path(config.data.tokenizer):
                yield tokenizer_files(config.data.tokenizer)
        return
    from metapt.data.labelled_sets import hub_tables

    yield from (table.files() for table in hub_tables(config.data))
    if isinstance(config, FinetuneConfig) and config.checkpoint.startswith(HUB_PREFIX):
        yield model_files(config.checkpoint.removeprefix(HUB_PREFIX))


def _prepare(command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Runs a command that prepares a corpus, with access to the hub. Its output is shown: this may take hours."""
    code = subprocess.run(command, env={**os.environ, **variables}, check=False).returncode
    if code:
        raise OperationalError(
            f"the corpus could not be prepared (exit code {code}, see above): {shlex.join(command)}"
        )


def _variables(cluster: ClusterConfig, root: str | Path) -> dict[str, str]:
    """The environment variables that name the caches of the hub's client and of `datasets`."""
    cache = cache_folder(cluster, root).absolute()
    return {HUB_CACHE: str(cache / "hub"), DATASETS_CACHE: str(cache / "datasets")}
