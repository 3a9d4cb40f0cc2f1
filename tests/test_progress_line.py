"""The progress line of a run, in a log and on a terminal."""

from __future__ import annotations

import io

import pytest

from metapt.training import progress_line
from metapt.training.progress_line import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_five_steps(out: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, stops_early: bool = False) -> str:
    """Show steps 1 to 5 of 5, one every 4 seconds."""
    clock = iter(range(100, 200, 4))
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: float(next(clock)))
    line = ProgressLine(5, stops_early=stops_early, out=out)
    for step in range(1, 6):
        line.show(step, [f"loss {step}"])
    line.close()
    return out.getvalue()


def test_log_gets_a_line_every_ten_seconds_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show_five_steps(io.StringIO(), monkeypatch).splitlines()
    assert lines == ["step 1/5  loss 1", "step 4/5  loss 4  0:00:04 left", "step 5/5  loss 5  0:00:00 left"]


def test_terminal_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show_five_steps(Terminal(), monkeypatch, stops_early=True)
    assert shown.count("\r") == 5
    assert shown.endswith("\r\n")
    assert "step 2/5  loss 2  at most 0:00:12 left\r" in shown
