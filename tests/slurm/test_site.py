"""A site file on a real Slurm: grids without the submitter's environment, and without internet."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from fake_hub import NOWHERE, serve, use_hub, write_repositories
from launch_fakes import NEEDS, fake_plan, run_fake, starts
from real_slurm import MARKS, wait_for_empty_queue

from metapt.config import ClusterConfig, commandline
from metapt.data.corpus import Corpus
from metapt.launch import slurm
from metapt.launch.code_snapshot import live_code
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources
from metapt.launch.jobs import Plan
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


STAND_IN = """\
#!/bin/bash
printf '%s\\n' "$*" >>"$SEEN/apptainer.calls"
while [[ $1 != *.sif ]]; do shift; done
shift; exec "$@"
"""
PYTHON = """\
#!/bin/bash
echo "$SITE $SLURM_JOB_PARTITION $NCCL_SOCKET_IFNAME" >>"$SEEN/started"
exec "%s" "$@"
"""


def documented_sites(folder: Path) -> dict[str, Path]:
    """The site files that docs/slurm.md shows, with folders and partitions of this machine."""
    texts = re.findall(
        r"^```yaml\n(.*?)^```$", (REPOSITORY / "docs/slurm.md").read_text(), re.DOTALL | re.MULTILINE
    )
    files = {}
    for name, text in zip(("venv", "module", "apptainer"), texts, strict=True):
        for documented in ("/project/nlp/metapt/.venv/bin", "/opt/venv/bin"):
            text = text.replace(documented, str(folder))
        text = text.replace("/scratch/nlp", str(folder)).replace("partition: gpu", "partition: low")
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(text)
    return files


def test_the_documented_sites_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment, a module, and Apptainer, replaced by a stand-in that records its words and runs the command."""
    for name, text in {"python": PYTHON % sys.executable, "apptainer": STAND_IN}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "activate").write_text(f"PATH={tmp_path}:$PATH SITE=activated\nexport SITE\n")
    monkeypatch.setenv("SEEN", str(tmp_path))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{tmp_path}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
    monkeypatch.setenv("BASH_FUNC_module%%", '() { echo "$@" >>"$SEEN/modules"; }')  # as Lmod defines it
    files = documented_sites(tmp_path)
    for name, file in files.items():
        monkeypatch.setenv("SITE", name)
        words = ["grid=demo", f"cluster={file}", "cluster.cpus_per_task=1", "cluster.mem_gb=1"]
        cluster = commandline.load("submit", [*words, "cluster.timeout_min=30"]).cluster
        root = tmp_path / f"grid {name}"
        (prepare,) = (job for job in fake_plan(root).jobs if job.kind == "prepare")
        slurm.submit(Plan("one", (prepare,)), [prepare], GridDir(root), cluster, JobSources(live_code()))
    for name in files:
        wait_for_empty_queue(tmp_path / f"grid {name}")
        assert starts(tmp_path / f"grid {name}") == ["prepare/demo"]
    assert sorted((tmp_path / "started").read_text().splitlines()) == [
        "activated low ib0",
        "apptainer low ",
        "venv low ",
    ]
    check, run = (tmp_path / "apptainer.calls").read_text().splitlines()
    container = "exec --nv --bind /scratch,/project --bind /usr/bin/scontrol,"
    assert check.startswith(container)
    assert check.endswith("/project/nlp/metapt.sif sh -c command -v scontrol && command -v squeue")
    assert run.startswith(container)
    assert f"/project/nlp/metapt.sif {tmp_path}/python -u -m submitit.core._submit " in run
    assert (tmp_path / "modules").read_text().splitlines() == [
        "load gcc/13",
        "load cuda/12.4",
        "load python/3.11",
    ]


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
