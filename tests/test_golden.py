"""Losses equal the recorded ones: bit for bit on the same kind of machine, up to rounding elsewhere."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest


@pytest.mark.commands
@pytest.mark.parametrize("objective", golden.OBJECTIVES)
def test_losses_equal_the_recording(objective: str, tmp_path: Path, corpus_cache: Path):
    losses = golden.train(objective, tmp_path / "run", corpus_cache)
    recorded = {tuple(one["machine"].values()): one["losses"][objective] for one in golden.recordings()}
    same_machine = recorded.get(tuple(golden.machine().values()))
    if same_machine is not None:
        assert losses == same_machine
    assert all(golden.agree(losses, other) for other in recorded.values())


def test_recordings_of_other_machines_are_deleted_when_losses_change():
    lines = [{"kind": "lm", "step": 1, "lm_loss_nats": 2.0}]
    slightly_other, wrong = ([{**lines[0], "lm_loss_nats": loss}] for loss in (2.0 + 1e-12, 3.0))
    others = [{"losses": {"vanilla": lines}}, {"losses": {"vanilla": wrong}}]
    assert golden.still_valid({"vanilla": lines}, {"vanilla": lines}, others) == others
    assert golden.still_valid({"vanilla": slightly_other}, {"vanilla": lines}, others) == []
    assert golden.still_valid({"vanilla": slightly_other}, None, others) == others[:1]
