"""A site file on a real Slurm: grids without the submitter's environment, and without internet."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from fake_hub import NOWHERE, serve, use_hub, write_repositories
from launch_fakes import NEEDS, run_fake, starts
from real_slurm import MARKS, wait_for_empty_queue

from metapt.config import ClusterConfig, commandline
from metapt.data.corpus import Corpus
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.submission import submit

REPOSITORY = Path(__file__).parents[2]
pytestmark = MARKS


def test_a_grid_runs_with_the_settings_of_its_site_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SBATCH_EXPORT=NONE nothing of the submitter's environment reaches the jobs."""
    python = tmp_path / "the site" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/bash\nenv >"$SEEN/$SLURM_JOB_ID"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    seen = tmp_path / "seen"
    seen.mkdir()
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    cluster = ClusterConfig(
        name="slurm",
        timeout_min=30,
        cpus_per_task=1,
        mem_gb=1,
        exclude="node1",
        python=str(python),
        launcher="env 'STARTED_BY=the launcher'",
        exports={"SEEN": str(seen), "PYTHONPATH": paths},
        setup=['export LOADED="by $SEEN"'],
    )
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    monkeypatch.setenv("OF_THE_SUBMITTER", "1")
    root = tmp_path / "a grid"
    run_fake(root, cluster)
    wait_for_empty_queue(root)
    assert sorted(starts(root)) == sorted(NEEDS)
    environments = [
        dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
        for file in seen.iterdir()
    ]
    assert len(environments) == len(NEEDS)
    for environment in environments:
        names = ("STARTED_BY", "LOADED", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "SLURMD_NODENAME")
        wanted = ["the launcher", f"by {seen}", "1", f"{root}/hub", "node2"]
        assert [environment.get(name) for name in names] == wanted
        assert "OF_THE_SUBMITTER" not in environment


@pytest.mark.nightly
def test_jobs_need_no_internet(small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpus, tokenizer and labelled sets of the hub; in the jobs the hub and every proxy are unreachable."""
    root, site = tmp_path / "grid", tmp_path / "site.yaml"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT"), NOWHERE)
    settings = {"gpus_per_node": 0, "cpus_per_task": 1, "mem_gb": 2, "exports": proxies}
    site.write_text(json.dumps({"defaults": ["slurm", "_self_"], **settings}))  # JSON is YAML
    pretrain = [
        "data=hub",
        "data.hub_name=some/corpus",
        "data.hub_column=text",
        "data.tokenizer=some/tokenizer",
    ]
    pretrain += ["data.eval_fraction=0.2", "classes.sizes=[]", "train.max_steps=2", "train.warmup_steps=1"]
    pretrain += ["train.seq_len=16", "train.micro_batch=2", "train.micro_batches_per_update=1"]
    finetune = ["data=uner", "data.hub_name=some/uner", "data.hub_revision=main", "data.eval_sets=[tl_trg]"]
    words = ["grid=demo", "grid.per_size={}", "grid.objectives=[vanilla]", "grid.tunings=[head_only]"]
    words += ["grid.baselines=[]", "grid.sources=[en_ewt]", f"cluster={site}", f"root={root}"]
    words += [f"grid.pretrain={json.dumps(pretrain)}", f"grid.finetune={json.dumps(finetune)}"]
    with serve() as hub:
        for name, files in write_repositories(small_corpus, tmp_path).items():
            hub.push(name, files)
        use_hub(hub.url, tmp_path, monkeypatch)
        config = commandline.load("submit", words)
        submit(config)
        fetched = len(hub.requests)
        wait_for_empty_queue(root)
        assert len(hub.requests) == fetched
    grid_dir = GridDir(root)
    for job in plan(config).jobs:
        assert grid_dir.run(job).is_done, grid_dir.run(job).path
