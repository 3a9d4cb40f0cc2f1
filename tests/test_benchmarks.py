"""What the benchmarks compute without measuring: exponents and what is said of them, and the projection to GPUs."""

from __future__ import annotations

from types import SimpleNamespace

import fitting
import numpy as np
import probe
import projection
import pytest
import ratios
import run
import timing
import torch
from fitting import Curve
from hypothesis import assume, given
from hypothesis import strategies as st
from parts import parts_of, table
from scipy.stats import linregress
from shares import Seconds, shares

from metapt.config import commandline
from metapt.errors import OperationalError
from metapt.estimate.flops import flops_of_step
from metapt.estimate.forecast import Machine, hours, implied_mfu
from metapt.estimate.memory import Ranks

POINTS = st.lists(st.integers(1, 10_000), min_size=3, max_size=8, unique=True)


@given(POINTS, st.floats(-2, 3), st.floats(0.01, 100))
def test_a_power_law_is_found_exactly(points, exponent, level):
    found, error = fitting.exponent(points, [level * point**exponent for point in points])
    assert found == pytest.approx(exponent, abs=1e-6)
    assert error == pytest.approx(0, abs=1e-5)


@given(POINTS, st.data())
def test_exponent_and_error_are_those_of_scipy(points, data):
    times = data.draw(st.lists(st.floats(0.1, 10), min_size=len(points), max_size=len(points)))
    assume(max(times) > 1.01 * min(times))  # scipy has no error of a constant
    expected = linregress(np.log(points), np.log(times))
    found, error = fitting.exponent(points, times)
    assert found == pytest.approx(expected.slope, abs=1e-9)
    assert error == pytest.approx(expected.stderr, rel=1e-4, abs=1e-6)


def test_two_points_have_no_error():
    assert fitting.exponent([1, 2], [4, 2]) == (pytest.approx(-1), None)


@pytest.mark.parametrize(
    ("time", "verdict"),
    [(1.0, "as they do"), (0.5, "larger is more efficient"), (1.5, "larger is less efficient")],
)
def test_the_sentence_compares_with_the_operations(time, verdict):
    points = (1.0, 2.0, 4.0, 8.0)
    curve = Curve("a step", "width", points, tuple(point**time for point in points), points)
    assert verdict in fitting.sentence(curve)
    assert f"Twice the width, {2**time:.2f} times the time" in fitting.sentence(curve)
    assert "operations: 2.00 times (1.00)" in fitting.sentence(curve)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Shares of two kinds of processor, in place of those that are committed."""
    monkeypatch.setattr(ratios, "FILE", tmp_path / "ratios.json")
    ratios.FILE.write_text("{}")
    ratios.record("old", "a machine", "2026-01-01", [("ours", "theirs", 0.9)])
    ratios.record("old", "a machine", "2026-01-02", [("ours", "theirs", 0.5), ("ours, long", "theirs", 0.25)])
    ratios.record("new", "another", "2026-01-03", [("ours", "theirs", 0.1)])


def test_shares_are_kept_by_kind_of_processor(recorded):
    lines = ratios.table(ratios.recorded()).splitlines()
    assert "- old: a machine; 2026-01-02" in lines
    assert "- new: another; 2026-01-03" in lines
    assert lines[-4:] == [
        "| what | against | old | new |",
        "|---|---|---|---|",
        "| ours | theirs | 0.5 | 0.1 |",
        "| ours, long | theirs | 0.25 | – |",
    ]


@pytest.mark.parametrize(("kind", "fails"), [("old", False), ("new", True), ("unknown", False)])
def test_a_share_is_compared_with_those_of_its_kind_of_processor(kind, fails, recorded, monkeypatch, capsys):
    monkeypatch.setattr(run, "kind", lambda: kind)
    monkeypatch.setattr(run, "short_rows", lambda: [("ours", "theirs", 0.3)])
    if fails:
        with pytest.raises(OperationalError, match=r"half as fast as recorded.*: ours"):
            run.smoke()
    else:
        run.smoke()
    said = "nothing recorded with unknown" if kind == "unknown" else "recorded: 0."
    assert f"ours: 0.30 of theirs ({said}" in capsys.readouterr().out


def test_a_curve_is_told_by_ratios_and_drawn():
    curves = [
        Curve("a step", "width", (96, 192, 384), (0.2, 0.5, 1.1), (3, 6, 12)),
        Curve("b", "n", (1, 2), (3, 3)),
    ]
    text = "\n".join(fitting.section(curves[0]))
    assert "| width | 96 | 192 | 384 |" in text
    assert "| time | 1.00 | 2.50 | 5.50 |" in text
    assert "| operations | 1.00 | 2.00 | 4.00 |" in text
    assert "operations" not in "\n".join(fitting.section(curves[1]))
    drawn = fitting.figure(curves)
    assert drawn.startswith("<svg")
    assert "exponent 1.23" in drawn


def test_operations_agree_with_a_count_by_hand():
    """tiny: a block has 2 x 96^2 + 2 x 96 x 32 + 3 x 96 x 384 = 135,168 weights, and its scores 96 (T + 1) products a token."""
    config = commandline.load("pretrain", ["model=tiny", "objective=maml"])
    forward = 2 * (12 * (135_168 + 96 * 2049) + 96 * 50_304)  # a token of a sequence of 2,048
    assert flops_of_step(config, False) == 3 * forward * 4 * 256 * 2048
    windows = 2 * 12 * (135_168 + 96 * 129)  # a token of a window of 128
    assert flops_of_step(config, True) == (4 + 3 * 4) * windows * 4 * 32 * 128


@pytest.mark.parametrize("size", projection.PUBLISHED_HOURS)
def test_operations_are_near_the_rule_of_thumb(size):
    """6 N D also counts the embedding (d x 50,304), and does not count attention scores."""
    config = projection.configuration(size, "vanilla")
    tokens = config.train.micro_batch * config.train.micro_batches_per_update * config.train.seq_len
    assert tokens == {"tiny": 1024, "small": 2048, "medium": 2048, "large": 2048}[size] * 2048
    d, blocks = config.model.hidden_size, config.model.num_layers
    embedding = 6 * d * config.model.vocab_size * tokens
    scores = 6 * blocks * d * (config.train.seq_len + 1) * tokens
    rest = projection.six_n_d(config) - embedding + scores
    assert flops_of_step(config, False) == pytest.approx(rest, rel=1e-3)  # 6 N D has the norms' gains, too


def test_shares_are_those_of_a_count_by_hand():
    """1,000 updates with rho = 0.5, a = 10, t = 2: 500 x 10 micro-batches, 500 x 2 episodes, 10 checkpoints, 20 measurements."""
    words = ["objective=maml", "train.micro_batches_per_update=10", "meta.tasks_per_step=2"]
    config = commandline.load("pretrain", [*words, "train.checkpoint_every=100", "train.dynamics_every=50"])
    one = Seconds(
        batch=0.01, draw=0.02, micro_batch=2, task=3, optimizer=0.5, line=0.001, dynamics=7, checkpoint=20
    )
    data, training = 5000 * 0.01 + 1000 * 0.02, 5000 * 2 + 1000 * 3 + 1000 * 0.5
    parts = {"dynamics": 20 * 7, "checkpoints": 10 * 20, "metrics": 1000 * 0.001}
    parts["the three"] = sum(parts.values())
    total = data + training + parts["the three"]
    expected = {name: part / total for name, part in {**parts, "data": data}.items()}
    assert shares(config, one) == pytest.approx(expected)


def test_without_episodes_they_cost_nothing():
    config = commandline.load("pretrain", ["objective=vanilla"])
    one = Seconds(batch=1, draw=1e9, micro_batch=1, task=1e9, optimizer=0, line=0, dynamics=0, checkpoint=0)
    assert shares(config, one)["data"] == pytest.approx(0.5)


def test_runs_are_timed_in_turn_and_the_first_round_is_left_out(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "REPETITIONS", 2)
    clock = iter([0, 100, 100, 300, 300, 301, 301, 303, 303, 306, 306, 310])  # seconds before and after each
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert timing.medians(lambda: order.append("a"), lambda: order.append("b")) == [2, 3]
    assert order == ["a", "b"] * 3


def test_the_implied_share_gives_the_hours_back():
    config = projection.configuration("large", "maml")
    machine = Machine(Ranks(4, "cuda"), tflops=312)
    share = implied_mfu(config, machine, 25)
    assert hours(config, Machine(Ranks(4, "cuda"), tflops=312, mfu=share)) == pytest.approx(25)
    by_hand = (
        6000 * (flops_of_step(config, False) + flops_of_step(config, True)) / 2 / (25 * 3600 * 4 * 312e12)
    )
    assert share == pytest.approx(by_hand)


def test_the_projection_in_the_documentation_is_that_of_the_present_count():
    assert projection.FILE.read_text(encoding="utf-8") == projection.text()


@pytest.mark.parametrize(("spread", "found"), [(3.0, True), (0.0, False)])
def test_the_probe_finds_classes_where_states_hold_them(spread, found):
    """Eight classes of four states each; those of a class have a common centre, or do not."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(4)
    centres = spread * torch.randn(8, 16, generator=draw)
    support, query = (centres[labels] + torch.randn(32, 16, generator=draw) for _ in range(2))
    sides = support, labels, query, labels
    accuracies = [probe.regression(sides), probe.inner_loop(sides, 1, 0.3), probe.inner_loop(sides, 2, 0.3)]
    assert all((accuracy > 0.8) is found for accuracy in accuracies)
    assert probe.inner_loop(sides, 1, 1e-9) < 0.5


def test_operations_are_told_by_their_part():
    side = torch.rand(64, 64)
    found = parts_of(lambda: torch.softmax(side @ side, -1))
    assert found["matrix products"] > 0
    assert found["softmax and loss"] > 0
    assert found["torch's attention"] == 0
    lines = table("tiny", "fp32", {"matrix products": (0.25, 0.5), "all else": (0.25, 0.5)})
    assert lines[-2] == "| the update | 0.50 | 1.00 |"
