"""Losses equal the recorded ones: bit for bit on the same kind of machine, up to rounding elsewhere."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest

pytestmark = pytest.mark.commands


@pytest.mark.parametrize("objective", ["vanilla", "maml"])
def test_losses_equal_the_recording(objective: str, tmp_path: Path, corpus_cache: Path):
    losses = golden.train(objective, tmp_path / "run", corpus_cache)
    recorded = {tuple(one["machine"].values()): one["losses"][objective] for one in golden.recordings()}
    same_machine = recorded.get(tuple(golden.machine().values()))
    if same_machine is not None:
        assert losses == same_machine
    assert all(golden.agree(losses, other) for other in recorded.values())
