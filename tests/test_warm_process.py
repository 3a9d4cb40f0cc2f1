"""A process that forks for every run: runs end as if each had been started by itself, and share no memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metapt.errors import EXIT_INTERRUPTED
from metapt.launch.code_snapshot import live_code
from metapt.launch.executors import Handle, InlineLauncher
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources
from metapt.launch.jobs import Job
from metapt.launch.warm_process import ForkedProcess, WarmProcess

PROGRAM = """
import os, signal, sys, time
import shared_state
shared_state.uses += 1
print(sys.argv[1:], shared_state.uses, os.getsid(0) == os.getpid(), __name__, flush=True)
print("a warning", file=sys.stderr)
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waiting", flush=True)
    time.sleep(300)
if "abort" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a process which finds the modules `program` and `shared_state`."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "shared_state.py").write_text("uses = 0\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path.cwd())])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def warm(environment: dict[str, str]) -> Iterator[WarmProcess]:
    process = WarmProcess(environment, ["shared_state"])
    yield process
    process.close()


def ended(process: ForkedProcess) -> int:
    deadline = time.monotonic() + 120
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def started(warm: WarmProcess, folder: Path, *argv: str) -> ForkedProcess:
    process = warm.start("program", argv, folder / "out", folder / "err")
    assert process is not None
    return process


def test_runs_share_no_memory_and_have_their_own_output_and_code(warm: WarmProcess, tmp_path: Path) -> None:
    assert [ended(started(warm, tmp_path, "a b", "0")), ended(started(warm, tmp_path, "3"))] == [0, 3]
    assert (tmp_path / "out").read_text() == "['a b', '0'] 1 True __main__\n['3'] 1 True __main__\n"
    assert (tmp_path / "err").read_text().count("a warning") == 2
    assert ended(started(warm, tmp_path, "abort")) == -signal.SIGKILL
    assert ended(started(warm, tmp_path, "text")) == 1
    assert "ValueError: invalid literal" in (tmp_path / "err").read_text()


def wait_for(folder: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "out").exists() or text not in (folder / "out").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_reach_the_run(warm: WarmProcess, tmp_path: Path) -> None:
    process = started(warm, tmp_path, "wait")
    wait_for(tmp_path, "waiting")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 75
    process.kill()  # no process any more
    killed = started(warm, tmp_path, "wait")
    killed.kill()
    assert ended(killed) == -signal.SIGKILL


def test_a_run_is_asked_to_save_when_the_warm_process_is_killed(warm: WarmProcess, tmp_path: Path) -> None:
    process = started(warm, tmp_path, "wait")
    wait_for(tmp_path, "waiting")
    warm._process.kill()
    assert ended(process) == EXIT_INTERRUPTED
    assert warm.start("program", ["0"], tmp_path / "out", tmp_path / "err") is None
    deadline = time.monotonic() + 120
    while (
        Path(f"/proc/{process.pid}").exists()
        and "Z" not in Path(f"/proc/{process.pid}/stat").read_text().split()
    ):
        assert time.monotonic() < deadline, "the run goes on"
        time.sleep(0.01)


def wait_until_over(handle: Handle) -> None:
    deadline = time.monotonic() + 120
    while not handle.is_over():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("kind", "is_warm"), [("finetune", True), ("pretrain", False)])
def test_fine_tuning_jobs_are_forks(
    kind: str, is_warm: bool, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setattr(WarmProcess.__init__, "__defaults__", ((),))
    launcher = InlineLauncher(GridDir(tmp_path / "grid"), JobSources(live_code()), 1)
    job = Job(f"{kind}/a", kind, program=("-m", "program"), argv=("4",))
    (tmp_path / "grid" / kind / "a").mkdir(parents=True)
    wait_until_over(launcher.start(job))
    assert len(launcher._warm) == is_warm
    launcher.close()
    assert "a warning" in (tmp_path / "grid" / kind / "a" / "error.txt").read_text()
    assert "['4'] 1 True __main__" in (tmp_path / "grid" / "logs" / kind / "a.out").read_text()


def test_runs_at_the_same_time_have_a_warm_process_each(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setattr(WarmProcess.__init__, "__defaults__", ((),))
    launcher = InlineLauncher(GridDir(tmp_path), JobSources(live_code()), 1)

    def start(name: str, *argv: str) -> Handle:
        (tmp_path / "finetune" / name).mkdir(parents=True)
        return launcher.start(Job(f"finetune/{name}", "finetune", program=("-m", "program"), argv=argv))

    long, short = start("long", "wait"), start("short", "3")
    wait_until_over(short)
    wait_until_over(start("next", "4"))
    assert not long.is_over()
    assert len(launcher._warm) == 2
    long.stop()
    wait_until_over(long)
    launcher.close()
    logs = {name: (tmp_path / f"logs/finetune/{name}.out").read_text() for name in ("long", "short", "next")}
    assert logs == {
        "long": "['wait'] 1 True __main__\nwaiting\n",
        "short": "['3'] 1 True __main__\n",
        "next": "['4'] 1 True __main__\n",
    }
