"""The sbatch scripts are equal to the recorded ones, byte for byte."""

from __future__ import annotations

from pathlib import Path

import golden_sbatch


def test_sbatch_scripts_are_the_recorded_ones(tmp_path: Path) -> None:
    assert golden_sbatch.scripts(tmp_path) == golden_sbatch.recorded()
