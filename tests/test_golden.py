"""Today's losses are the recorded ones: bit for bit on the same kind of machine, to rounding elsewhere."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest

pytestmark = pytest.mark.commands


@pytest.mark.parametrize("objective", ["vanilla", "maml"])
def test_losses_are_the_recorded_ones(objective: str, tmp_path: Path, corpus_cache: Path):
    found = golden.losses(objective, tmp_path / "run", corpus_cache)
    recorded = {tuple(one["machine"].values()): one["losses"][objective] for one in golden.recordings()}
    same = recorded.get(tuple(golden.machine().values()))
    if same is not None:
        assert found == same
    assert all(golden.agree(found, other) for other in recorded.values())
