"""What the jobs of a grid read from the Hugging Face hub, downloaded before they are submitted.

Compute nodes of many clusters have no internet. The submitter therefore puts models, tokenizers and labelled sets into
a cache on the shared file system, each at one commit, and writes the token shards of corpora on the hub. The jobs run
with HF_HUB_OFFLINE=1 and read nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from metapt.config import ClusterConfig, PretrainConfig, SetsConfig, SubmitConfig
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


def shell_lines(cluster: ClusterConfig, root: str | Path) -> list[str]:
    """The lines of a batch script that let its job read the cache only; none with `cluster.online`."""
    if cluster.online:
        return []
    settings = [f"{name}={shlex.quote(value)}" for name, value in _variables(cluster, root).items()]
    return [f"export {' '.join(settings)} {OFFLINE}=1"]


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
    hub = Path(_variables(cluster, root)[HUB_CACHE])
    lines, problems = [], []
    for files in hub_files(plan, jobs):
        try:
            lines.append(f"{files}: commit {fetch(files, hub)}")
        except (UserError, OperationalError) as error:
            problems.append(error)
    if problems:
        kind = OperationalError if any(isinstance(item, OperationalError) for item in problems) else UserError
        listed = "\n".join(map(str, problems))
        raise kind(
            f"{listed}\nthe jobs need these files in {hub}, and none was submitted. Repeat this command, or "
            "`metapt prepare` with the same arguments, where the hub can be reached, or set cluster.online=true if the "
            "compute nodes can reach it"
        )
    for job in corpora_on_hub(plan, jobs):
        _prepare(job, cluster, root)
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
    found: dict[HubFiles, None] = {}
    for job in jobs:
        config = plan.configs.get(job.id)
        if isinstance(config, PretrainConfig):
            found |= dict.fromkeys(_tokenizer(config))
        elif config is not None:
            found |= dict.fromkeys(_labelled_sets(config.data))
        if job.model.startswith(HUB_PREFIX):
            found[model_files(job.model.removeprefix(HUB_PREFIX))] = None
    return list(found)


def corpora_on_hub(plan: Plan, jobs: Sequence[Job]) -> list[Job]:
    """The prepare jobs among `jobs` whose corpus is a data set of the hub."""
    on_hub = {
        name
        for job in plan.jobs
        if job.kind == "pretrain" and job.id in plan.configs and plan.configs[job.id].data.name == "hub"
        for name in job.needs
    }
    return [job for job in jobs if job.id in on_hub]


def _tokenizer(config: PretrainConfig) -> Iterator[HubFiles]:
    from metapt.data.tokenizers import is_path  # imports transformers

    name = config.data.tokenizer
    if name != "train" and not is_path(name):
        yield tokenizer_files(name)


def _labelled_sets(data: SetsConfig) -> Iterator[HubFiles]:
    from metapt.data.labelled_sets import hub_tables

    for table in hub_tables(data):
        yield table.files()


def _prepare(job: Job, cluster: ClusterConfig, root: str | Path) -> None:
    """Runs a prepare job here, with access to the hub. Its output is shown: this may take hours."""
    environment = {**os.environ, **_variables(cluster, root)}
    code = subprocess.run(job.command, env=environment, check=False).returncode
    if code:
        raise OperationalError(f"{job.id}: the corpus could not be prepared (exit code {code}, see above)")


def _variables(cluster: ClusterConfig, root: str | Path) -> dict[str, str]:
    """The environment variables that name the caches of the hub's client and of `datasets`."""
    cache = cache_folder(cluster, root).absolute()
    return {HUB_CACHE: str(cache / "hub"), DATASETS_CACHE: str(cache / "datasets")}
