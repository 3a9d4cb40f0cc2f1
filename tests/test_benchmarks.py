"""Computations of the benchmarks that need no measurement: exponents, recorded ratios, overhead, projection to GPUs."""

from __future__ import annotations

import re
from pathlib import Path
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
from overhead import Seconds, overhead
from parts import parts_of, table
from scipy.stats import linregress
from timing import Row

from metapt.config import commandline
from metapt.errors import OperationalError
from metapt.estimate.flops import flops_of_step

FOLDER = Path(fitting.__file__).parent


def test_scripts_import_the_analysis_as_a_part_of_metapt():
    """`python benchmarks/NAME.py` has benchmarks/ in its path, and not the folder of the repository."""
    scripts = sorted(FOLDER.glob("*.py"))
    assert len(scripts) > 20
    assert not [
        path.name for path in scripts if re.search(r"^ *(from|import) analysis\b", path.read_text(), re.M)
    ]


POINTS = st.lists(st.integers(1, 10_000), min_size=3, max_size=8, unique=True)


@given(POINTS, st.floats(-2, 3), st.floats(0.01, 100))
def test_exponent_of_a_power_law_is_exact(points, exponent, level):
    slope, error = fitting.exponent(points, [level * point**exponent for point in points])
    assert slope == pytest.approx(exponent, abs=1e-6)
    assert error == pytest.approx(0, abs=1e-5)


@given(POINTS, st.data())
def test_exponent_and_error_equal_those_of_scipy(points, data):
    times = data.draw(st.lists(st.floats(0.1, 10), min_size=len(points), max_size=len(points)))
    assume(max(times) > 1.01 * min(times))  # scipy has no error for a constant
    expected = linregress(np.log(points), np.log(times))
    slope, error = fitting.exponent(points, times)
    assert slope == pytest.approx(expected.slope, abs=1e-9)
    assert error == pytest.approx(expected.stderr, rel=1e-4, abs=1e-6)


def test_two_points_have_no_error():
    assert fitting.exponent([1, 2], [4, 2]) == (pytest.approx(-1), None)


@pytest.mark.parametrize(
    ("growth", "verdict"),
    [(1.0, "as operations do"), (0.5, "larger is more efficient"), (1.5, "larger is less efficient")],
)
def test_sentence_compares_time_with_operations(growth, verdict):
    values = (1.0, 2.0, 4.0, 8.0)
    curve = Curve("a step", "width", values, tuple(value**growth for value in values), values)
    assert verdict in fitting.sentence(curve)
    assert f"Doubling the width takes {2**growth:.2f}x the time" in fitting.sentence(curve)
    assert "2.00x the operations (exponent 1.00)" in fitting.sentence(curve)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Ratios of two kinds of CPU, in place of those in the repository."""
    monkeypatch.setattr(ratios, "FILE", tmp_path / "ratios.json")
    ratios.FILE.write_text("{}")
    ratios.record("old", "a machine", "2026-01-01", [Row("ours", "baseline", 0.9)])
    rows = [Row("ours", "baseline", 0.5), Row("ours, long", "baseline", 0.25)]
    ratios.record("old", "a machine", "2026-01-02", rows)
    ratios.record("new", "another", "2026-01-03", [Row("ours", "baseline", 0.1)])


def test_ratios_are_recorded_by_kind_of_cpu(recorded):
    lines = ratios.table(ratios.recorded()).splitlines()
    assert "- old: a machine; 2026-01-02" in lines
    assert "- new: another; 2026-01-03" in lines
    assert lines[-4:] == [
        "| measured | baseline | old | new |",
        "|---|---|---|---|",
        "| ours | baseline | 0.5 | 0.1 |",
        "| ours, long | baseline | 0.25 | – |",
    ]


@pytest.mark.parametrize(("cpu", "fails"), [("old", False), ("new", True), ("unknown", False)])
def test_smoke_compares_with_the_same_kind_of_cpu(cpu, fails, recorded, monkeypatch, capsys):
    monkeypatch.setattr(run, "bf16_support", lambda: cpu)
    monkeypatch.setattr(run, "short_rows", lambda: [Row("ours", "baseline", 0.3)])
    if fails:
        with pytest.raises(OperationalError, match=r"more than 2 times the ratio in ratios\.json: ours"):
            run.smoke()
    else:
        run.smoke()
    comparison = "not recorded for unknown" if cpu == "unknown" else "recorded: 0."
    assert f"ours: 0.30 of the time of baseline ({comparison}" in capsys.readouterr().out


def test_short_rows_are_recorded():
    """`make bench-smoke` finds recorded ratios by the names of the rows."""
    cases = [run.output_layer("fp32"), run.output_layer("bf16")]
    cases += [run.tiled_attention(512), run.tiled_attention(128)]
    for recording in ratios.recorded().values():
        assert {ratios.key(case.name, case.baseline) for case in cases} <= recording["ratios"].keys()


def test_readme_is_generated_from_the_recorded_ratios():
    readme = ratios.FILE.with_name("README.md").read_text(encoding="utf-8")
    assert readme == ratios.table(ratios.recorded())


def test_section_and_figure_of_a_curve():
    curves = [
        Curve("a step", "width", (96, 192, 384), (0.2, 0.5, 1.1), (3, 6, 12)),
        Curve("b", "n", (1, 2), (3, 3)),
    ]
    text = "\n".join(fitting.section(curves[0]))
    assert "| width | 96 | 192 | 384 |" in text
    assert "| time | 1.00 | 2.50 | 5.50 |" in text
    assert "| operations | 1.00 | 2.00 | 4.00 |" in text
    assert "operations" not in "\n".join(fitting.section(curves[1]))
    image = fitting.figure(curves)
    assert image.startswith("<svg")
    assert "exponent 1.23" in image


def test_flops_equal_a_count_by_hand():
    """A block of tiny has 2 x 96^2 + 2 x 96 x 32 + 3 x 96 x 384 = 135,168 weights; its scores take 96 (T + 1) products per token."""
    config = commandline.load("pretrain", ["model=tiny", "objective=maml_paper"])
    forward = 2 * (12 * (135_168 + 96 * 2049) + 96 * 50_304)  # per token of a sequence of 2,048
    assert flops_of_step(config, False) == 3 * forward * 4 * 256 * 2048
    windows = 2 * 12 * (135_168 + 96 * 129)  # per token of a window of 128
    assert flops_of_step(config, True) == (4 + 3 * 4) * windows * 4 * 32 * 128


@pytest.mark.parametrize("size", projection.PUBLISHED_HOURS)
def test_flops_are_near_the_rule_of_thumb(size):
    """6 N D counts the embedding (d x 50,304) as well, but not attention scores."""
    config = projection.configuration(size, "vanilla")
    tokens = config.train.micro_batch * config.train.micro_batches_per_update * config.train.seq_len
    assert tokens == {"tiny": 1024, "small": 2048, "medium": 2048, "large": 2048}[size] * 2048
    d, blocks = config.model.hidden_size, config.model.num_layers
    embedding = 6 * d * config.model.vocab_size * tokens
    scores = 6 * blocks * d * (config.train.seq_len + 1) * tokens
    rest = projection.six_n_d(config) - embedding + scores
    assert flops_of_step(config, False) == pytest.approx(
        rest, rel=1e-3
    )  # 6 N D counts the gains of the norms as well


def test_overhead_equals_a_count_by_hand():
    """1,000 updates with rho = 0.5, a = 10, t = 2 have 500 x 10 micro-batches, 500 x 2 episodes, 10 checkpoints and 20 measurements."""
    arguments = [
        "objective=maml_paper",
        "train.micro_batches_per_update=10",
        "meta.tasks_per_step=2",
        "train.checkpoint_every=100",
        "train.dynamics_every=50",
    ]
    config = commandline.load("pretrain", arguments)
    seconds = Seconds(
        batch=0.01,
        sampling=0.02,
        micro_batch=2,
        episode=3,
        optimizer_step=0.5,
        metrics_line=0.001,
        dynamics=7,
        checkpoint=20,
    )
    data, training = 5000 * 0.01 + 1000 * 0.02, 5000 * 2 + 1000 * 3 + 1000 * 0.5
    parts = {"dynamics": 20 * 7, "checkpoints": 10 * 20, "metrics": 1000 * 0.001}
    parts["total"] = sum(parts.values())
    run_seconds = data + training + parts["total"]
    expected = {name: part / run_seconds for name, part in {**parts, "data": data}.items()}
    assert overhead(config, seconds) == pytest.approx(expected)


def test_overhead_without_episodes():
    config = commandline.load("pretrain", ["objective=vanilla"])
    seconds = Seconds(
        batch=1,
        sampling=1e9,
        micro_batch=1,
        episode=1e9,
        optimizer_step=0,
        metrics_line=0,
        dynamics=0,
        checkpoint=0,
    )
    assert overhead(config, seconds)["data"] == pytest.approx(0.5)


def test_medians_interleave_runs_after_a_warm_up(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "REPETITIONS", 2)
    clock = iter([0, 100, 100, 300, 300, 301, 301, 303, 303, 306, 306, 310])  # before and after each run
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert timing.medians(lambda: order.append("a"), lambda: order.append("b")) == [2, 3]
    assert order == ["a", "b"] * 3


def test_projected_hours_equal_a_count_by_hand():
    config = projection.configuration("large", "maml_paper")
    flops = 6000 * (flops_of_step(config, False) + flops_of_step(config, True)) / 2
    assert projection.hours_at(config, 4 * 312, 0.2) == pytest.approx(flops / (0.2 * 3600 * 4 * 312e12))


def test_projection_page_is_up_to_date():
    assert projection.FILE.read_text(encoding="utf-8") == projection.text()


@pytest.mark.parametrize(("distance", "separable"), [(3.0, True), (0.0, False)])
def test_probe_learns_separable_classes(distance, separable):
    """Eight classes of four states each, whose centres differ or do not."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(4)
    centres = distance * torch.randn(8, 16, generator=generator)
    support, query = (centres[labels] + torch.randn(32, 16, generator=generator) for _ in range(2))
    states = probe.EpisodeStates(support, labels, query, labels)
    accuracies = [probe.regression(states)]
    accuracies += [probe.inner_loop(states, layers, 0.3) for layers in (1, 2)]
    assert all((accuracy > 0.8) is separable for accuracy in accuracies)
    assert probe.inner_loop(states, 1, 1e-9) < 0.5


def test_profiled_operations_by_part():
    matrix = torch.rand(64, 64)
    seconds = parts_of(lambda: torch.softmax(matrix @ matrix, -1))
    assert seconds["matrix products"] > 0
    assert seconds["softmax and loss"] > 0
    assert seconds["torch's attention"] == 0
    lines = table("tiny", "fp32", {"matrix products": (0.25, 0.5), "all else": (0.25, 0.5)})
    assert lines[-2] == "| whole update | 0.50 | 1.00 |"
