"""The batch scripts: what a dry run prints, GPU options, the environment, and what submitit pickles."""

from __future__ import annotations

import os
import pickletools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launch_fakes import fake_plan, run_fake

from metapt.config import ClusterConfig, commandline
from metapt.errors import OperationalError, UserError
from metapt.launch import slurm
from metapt.launch.code_snapshot import live_code
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources
from metapt.launch.submission import submit

CLUSTER = ClusterConfig(name="slurm")
LIVE = JobSources(live_code())


def batch_scripts(folder: Path) -> list[str]:
    return [(folder / f"batch_{n}").read_text() for n in range(len(list(folder.glob("batch_*"))))]


def test_a_dry_run_prints_the_submitted_scripts(tmp_path: Path, slurm_commands: Path) -> None:
    plan, grid_dir = fake_plan(tmp_path / "r"), GridDir(tmp_path / "r")
    shown = slurm.batch_scripts(plan, plan.jobs, grid_dir, CLUSTER, LIVE)
    assert not grid_dir.path.exists()
    run_fake(grid_dir.path, CLUSTER)
    numbered = [re.sub(r"(?<=:)@(\d+)", lambda match: str(99 + int(match[1])), script) for _, script in shown]
    assert numbered == batch_scripts(slurm_commands)
    assert shown[1][0] == "pretrain/a .. pretrain/b (2 jobs)"


def test_a_test_run_asks_sbatch_and_submits_nothing(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["grid=demo", "grid.sources=[]", "cluster=slurm", f"root={tmp_path / 'r'}", "dry_run=test"]
    submit(commandline.load("submit", words))
    printed = capsys.readouterr().out
    assert printed.count("accepted: sbatch: Job 7 to start now") == 3
    assert "#SBATCH --dependency" not in printed  # on jobs that do not exist
    assert (slurm_commands / "tested").read_text() in printed
    script = slurm_commands / "sbatch"
    script.write_text("#!/bin/bash\ngrep -q array || exit 0\necho Invalid qos specification >&2; exit 1\n")
    with pytest.raises(OperationalError, match="would refuse 1 of these"):
        submit(commandline.load("submit", words))
    assert "REFUSED: Invalid qos specification" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()
    assert not list(slurm_commands.glob("batch_*"))


@pytest.mark.usefixtures("slurm_commands")
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"gpus-per-node": "2"}),
        ({"gpu_type": "a100"}, {"gpus-per-node": "a100:2"}),
        ({"gpu_request": "gres"}, {"gres": "gpu:2"}),
        ({"gpu_request": "gres", "gpu_type": "a100"}, {"gres": "gpu:a100:2"}),
        ({"gpu_request": "constraint", "gpu_type": "gpu"}, {"constraint": "gpu"}),
        ({"gpu_request": "none"}, {}),
        (
            {"gpu_request": "gres", "gpu_type": "a100", "extra": {"gres": "lscratch:100"}},
            {"gres": "gpu:a100:2,lscratch:100"},
        ),
        (
            {"gpu_request": "constraint", "gpu_type": "gpu", "extra": {"constraint": "ib"}},
            {"constraint": "gpu&ib"},
        ),
    ],
)
def test_gpu_options(tmp_path: Path, settings: dict[str, Any], options: dict[str, str]) -> None:
    plan, grid_dir = fake_plan(tmp_path), GridDir(tmp_path)
    jobs = [plan.jobs[0], replace(plan.jobs[1], gpus_per_node=2)]
    scripts = slurm.batch_scripts(plan, jobs, grid_dir, replace(CLUSTER, **settings), LIVE)
    without_gpus, with_gpus = (
        [line for line in text.splitlines() if re.match("#SBATCH --(gpu|gres|constraint)", line)]
        for _, text in scripts
    )
    assert [line.replace("'", "") for line in with_gpus] == [
        f"#SBATCH --{name}={value}" for name, value in options.items()
    ]
    assert without_gpus == [f"#SBATCH --{name}={value}" for name, value in settings.get("extra", {}).items()]
    assert "#SBATCH --ntasks-per-node=2" in scripts[1][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.extra={kill_on_invalid_dep: no}"], "extra.kill_on_invalid_dep: metapt sets this option"),
        (["cluster.extra={signal: B:TERM@9}"], "metapt sets this option; use cluster.signal_delay_s"),
        (["cluster.extra={gpus-per-node: 2}"], "use cluster.gpus_per_node and cluster.gpu_type"),
        (["cluster.gpu_request=gres", "cluster.extra={gres: gpu:1}"], "requests the GPUs"),
        (
            ["cluster.gpu_request=constraint", "cluster.gpu_type=a", "cluster.extra={constraint: b|c}"],
            "cannot contain |",
        ),
    ],
)
def test_an_option_that_metapt_sets_is_refused_in_extra(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        commandline.load("submit", ["grid=demo", "cluster=slurm", *words])


def test_the_environment_of_a_surrounding_job_is_not_inherited(
    tmp_path: Path, slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_NTASKS_PER_NODE": "3",
        "SRUN_CPUS_PER_TASK": "9",
    }
    inherited |= {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
        "PMIX_RANK": "0",
        "SBATCH_CPU_BIND": "quiet",
    }
    kept = {
        "SLURM_CONF": "/c",
        "SBATCH_PARTITION": "gpu",
        "HF_HOME": "/h",
    }  # how to reach Slurm; settings of the site
    for name, value in (inherited | kept).items():
        monkeypatch.setenv(name, value)
    run_fake(tmp_path / "r", CLUSTER)
    environment = (slurm_commands / "environment").read_text().splitlines()
    assert not {line.partition("=")[0] for line in environment} & set(inherited)
    assert {f"{name}={value}" for name, value in kept.items()} <= set(environment)
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_variables_of_sbatch_change_only_what_the_script_leaves_open(
    tmp_path: Path, slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overriding = ["TIMELIMIT", "MEM_PER_CPU", "PARTITION", "NO_REQUEUE", "JOB_NAME", "OPEN_MODE", "SIGNAL"]
    for name in (*overriding, "RESERVATION", "ACCOUNT"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    run_fake(tmp_path / "r", replace(CLUSTER, partition="main"))
    environment = (slurm_commands / "environment").read_text()
    assert set(re.findall(r"^SBATCH_(\w+)=", environment, re.MULTILINE)) == {"RESERVATION", "ACCOUNT"}
    assert os.environ["SBATCH_PARTITION"] == "1"


def test_submitit_pickles_only_the_task(tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.baselines=[]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", words))
    pickles = list((tmp_path / "r/logs/submitit").glob("*.pkl"))
    assert len(pickles) == 12
    for path in pickles:
        assert path.stat().st_size < 10_000
        texts, globals_ = [], set()
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            assert opcode.name not in ("BINBYTES", "BINBYTES8", "BYTEARRAY8", "PERSID", "BINPERSID", "EXT1")
            if opcode.name == "STACK_GLOBAL":
                globals_.add(".".join(texts[-2:]))
            if isinstance(argument, str):
                texts.append(argument)
        assert globals_ <= {
            "submitit.core.utils.DelayedSubmission",
            "metapt.launch.slurm_task.SlurmTask",
            "metapt.launch.jobs.Job",
            "pathlib.PosixPath",
        }
