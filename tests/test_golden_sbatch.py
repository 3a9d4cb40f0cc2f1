"""What Slurm is told is on record, to the letter."""

from __future__ import annotations

from pathlib import Path

import golden_sbatch


def test_the_scripts_are_the_recorded_ones(tmp_path: Path) -> None:
    assert golden_sbatch.scripts(tmp_path) == golden_sbatch.recorded()
