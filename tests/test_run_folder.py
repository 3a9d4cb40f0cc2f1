"""Run folders that a power failure has damaged, and who can read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_fakes import save_checkpoint
from safetensors.torch import save_file

from metapt import atomic_folders
from metapt.errors import UserError
from metapt.launch.run_status import run_status
from metapt.runs import MetricsWriter, Run

STEPS = range(1, 6)


def with_metrics(path: Path) -> Run:
    run = Run(path)
    run.start({"train": {"max_steps": 9}}, {})
    run.metrics_file.unlink(missing_ok=True)
    metrics = MetricsWriter(run)
    for step in STEPS:
        metrics.write(step, "lm", lm_loss_nats=1 / step, seconds=1.0, tokens_per_second=2.0)
    metrics.close()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, bytes]:
    run = with_metrics(tmp_path_factory.mktemp("cut"))
    return run, run.metrics_file.read_bytes()


@settings(deadline=None)
@given(st.integers(0, 600))
def test_what_a_kill_cut_off_is_left_out(whole: tuple[Run, bytes], length: int) -> None:
    run, content = whole
    run.metrics_file.write_bytes(content[:length])
    steps = [line["step"] for line in run.metrics()]
    assert steps == list(STEPS)[: run.metrics_file.read_bytes().count(b"\n")]
    assert run_status(run.path).step == (steps[-1] if steps else 0)


@pytest.mark.parametrize("damage", [b"\0" * 20, b'{"step": 3, "ki', b"\xff\xfe{}", b"[3]", b""])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_damaged_line_is_named_and_dropped_when_the_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes, number: int
) -> None:
    run = with_metrics(tmp_path)
    lines = run.metrics_file.read_bytes().splitlines()
    lines[number - 1] = damage
    run.metrics_file.write_bytes(b"".join(line + b"\n" for line in lines))
    named = f"metrics.jsonl, line {number}: damaged"
    with pytest.raises(UserError, match=named):
        list(run.metrics())
    assert run_status(tmp_path).step == (4 if number == 5 else 5)
    run.repair_metrics()
    assert named in capsys.readouterr().err
    assert [line["step"] for line in run.metrics()] == [step for step in STEPS if step != number]
    run.trim_metrics(3)  # as a run does that goes on from the checkpoint of step 3
    assert [line["step"] for line in run.metrics()] == [step for step in (1, 2, 3) if step != number]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_committed_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors writes files that only their owner can read."""
    before = os.umask(umask)
    try:
        folder = atomic_folders.staging(tmp_path / "step_000001")
        (folder / "engine").mkdir()
        save_file({"weight": torch.zeros(2)}, folder / "engine" / "state.safetensors")
        (folder / "state.json").write_text("{}")
        atomic_folders.commit(folder, tmp_path / "step_000001")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(("state.safetensors", "state.json", "manifest.json"), 0o666 & ~umask)


def test_every_start_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a line that a kill cut off; starts before one at step 0 do not count."""
    run = Run(tmp_path)

    def start(*gpus: str) -> None:
        run.start({"train": {"max_steps": 9}}, {}, circumstances={"gpus": list(gpus), "ranks": len(gpus)})

    start("T4")
    run.error_file.write_text("out of memory\n")
    start("A100", "A100")
    save_checkpoint(run, 3)
    with run.starts_file.open("a") as file:
        file.write('{"time": "2026-')
    start("A100", "A100")
    assert run.mixture() is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    start("A100", "H100")
    starts = run.starts()
    assert [(entry["step"], entry["reason"]) for entry in starts] == [
        (0, "new"),
        (0, "after a failure"),
        (3, "resumed"),
        (3, "requeue 2"),
    ]
    assert (starts[-1]["job"], starts[-1]["ranks"], starts[0]["job"]) == ("77", 2, None)
    assert run.mixture() == "1 source, 2 types of GPU"
    assert run_status(run.path).mixture == run.mixture()
    file = run.checkpoint(3) / "engine" / "state"
    file.write_text(file.read_text().replace("step 3", "step 4"))  # damaged, so the run begins again
    start("H100")
    assert run.starts()[-1]["step"] == 0
    assert run.mixture() is None
    assert {"git_commit", "source", "code", "versions", "time", "nodes"} <= starts[0].keys()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2000), st.sampled_from([b"", b"\0", b"\xff"]))
def test_a_damaged_configuration_is_refused_by_name(
    whole: tuple[Run, bytes], length: int, filler: bytes
) -> None:
    """A file that was cut off, and one whose end is zeros or no text."""
    run, _ = whole
    content = run.config_file.read_bytes()
    recorded, length = run.provenance(), min(length, len(content))
    run.config_file.write_bytes(content[:length] + filler * (len(content) - length))
    try:
        if run.config_file.read_bytes().strip() == content.strip():
            assert run.provenance() == recorded
        else:
            with pytest.raises(UserError, match=r"config\.yaml: damaged"):
                run.provenance()
        assert run_status(run.path).state == "interrupted"
    finally:
        run.config_file.write_bytes(content)
