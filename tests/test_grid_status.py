"""metapt status: states from run folders and a fake squeue, the cost of a call, and the output."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from launch_fakes import fake_plan, save_checkpoint, squeue_output

from metapt import status
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import grid_status
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import TAIL_BYTES
from metapt.launch.slurm_queue import job_comment
from metapt.runs import MetricsWriter, Run
from metapt.slurm_commands import user_name

SLURM_IDS = {name: str(100 + index) for index, name in enumerate(job.id for job in fake_plan(Path()).jobs)}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose file `queue` is the output of squeue; `calls` has a line for each call."""
    folder = tmp_path / "commands"
    folder.mkdir()
    shown = squeue_output(tmp_path / "grid")
    script = folder / "squeue"
    script.write_text(f"#!/bin/bash\necho >> '{folder}/calls'\n{shown} '{folder}/queue'\n")
    script.chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def grid_dir(tmp_path: Path) -> GridDir:
    """The grid of launch_fakes, submitted to Slurm; no job has started."""
    grid_dir = GridDir(tmp_path / "grid")
    grid_dir.write_plan(fake_plan(grid_dir.path))
    grid_dir.submitted_file.write_text("".join(submitted(*item) for item in SLURM_IDS.items()))
    return grid_dir


def submitted(name: str, slurm_id: str, user: str = user_name(), cluster: str = "") -> str:
    """A line of jobs.jsonl."""
    return json.dumps({"job": name, "slurm_id": slurm_id, "user": user, "cluster": cluster}) + "\n"


def started(grid_dir: GridDir, name: str, updates: int = 4) -> Run:
    run = Run(grid_dir.path / name)
    run.start({"train": {"max_steps": 1000}}, {})
    metrics = MetricsWriter(run)
    for step in range(1, updates + 1):
        metrics.write(step, "lm", lm_loss_nats=5.0, seconds=1.0, tokens_per_second=100.0)
    metrics.close()
    return run


def states(grid_dir: GridDir) -> dict[str, str]:
    return {seen.job.id: seen.state for seen in grid_status(grid_dir).jobs}


def test_jobs_in_the_queue_have_their_slurm_id_and_reason(grid_dir: GridDir, squeue: Path) -> None:
    Run(grid_dir.path / "prepare/demo").finish({})
    started(grid_dir, "pretrain/a")  # another node holds its lock, which may not be visible from here
    queue = {"pretrain/a": "RUNNING|None", "pretrain/b": "PENDING|Resources"}
    queue |= dict.fromkeys(("finetune/a", "finetune/b", "report"), "PENDING|Dependency")
    (squeue / "queue").write_text("".join(f"{SLURM_IDS[name]}|{entry}\n" for name, entry in queue.items()))
    assert states(grid_dir) == {
        "prepare/demo": "done",
        "pretrain/a": "running",
        "pretrain/b": "queued",
        "finetune/a": "queued",
        "finetune/b": "queued",
        "report": "queued",
    }
    entries = {seen.job.id: seen.entry for seen in grid_status(grid_dir).jobs}
    assert entries["pretrain/b"] is not None
    assert (entries["pretrain/b"].slurm_id, entries["pretrain/b"].reason) == (
        SLURM_IDS["pretrain/b"],
        "Resources",
    )


def test_a_job_that_left_the_queue_is_lost_and_blocks_the_jobs_that_need_it(
    grid_dir: GridDir, squeue: Path
) -> None:
    Run(grid_dir.path / "prepare/demo").finish({})
    failed = started(grid_dir, "pretrain/a")
    failed.error_file.write_text("Traceback\nOSError: no space left\n")
    assert states(grid_dir) == {
        "prepare/demo": "done",
        "pretrain/a": "failed",
        "pretrain/b": "lost",
        "finetune/a": "blocked",
        "finetune/b": "blocked",
        "report": "lost",  # the jobs that it needs have all ended or will never start
    }
    with grid_dir.locked():  # a submitter on this machine may still start it
        assert states(grid_dir)["pretrain/b"] == "waiting"


def test_json_has_progress_error_log_and_queue(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(grid_dir, "pretrain/a", updates=10)
    started(grid_dir, "pretrain/b").error_file.write_text("OSError: no space left\n")
    (squeue / "queue").write_text(f"{SLURM_IDS['pretrain/a']}|RUNNING|None\n")
    status.main([f"root={grid_dir.path}", "--json"])
    output = json.loads(capsys.readouterr().out)
    jobs = {entry["job"]: entry for entry in output["jobs"]}
    a, b = jobs["pretrain/a"], jobs["pretrain/b"]
    assert (a["state"], a["step"], a["max_steps"], a["loss"]) == ("running", 10, 1000, 5.0)
    assert (a["tokens_per_second"], a["seconds_left"]) == (100.0, 990.0)
    assert a["slurm"] == {"slurm_id": SLURM_IDS["pretrain/a"], "state": "RUNNING", "reason": "None"}
    assert (b["state"], b["error"]) == ("failed", "OSError: no space left")
    assert b["log"] == str(grid_dir.path / "logs/pretrain/b.err")
    assert output["queue_error"] is None


def test_without_squeue_the_folders_and_the_error_are_shown(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (squeue / "squeue").write_text("#!/bin/bash\necho the controller is away >&2; exit 1\n")
    finished = Run(grid_dir.path / "pretrain/b")
    save_checkpoint(finished, 7)
    finished.finish({"kind": "pretrain", "steps": 7, "eval_loss_nats": 2.5})
    status.main([f"root={grid_dir.path}"])
    output = capsys.readouterr().out
    assert "the controller is away" in output
    assert "1 of 6 done, 5 waiting" in output
    row = next(line for line in output.splitlines() if line.startswith("pretrain/b"))
    assert row.split() == ["pretrain/b", "done", "step", "7/7", "2.500"]


def test_the_f1_of_a_finished_tagger_is_shown(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"tl_trg": {"f1": 0.25}, "ceb_gja": {"f1": 0.5}}
    result = {"kind": "finetune", "epochs": 7, "dev_f1": 0.75, "sets": sets}
    Run(grid_dir.path / "finetune/a").finish(result)
    status.main([f"root={grid_dir.path}"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("finetune/a"))
    assert "epoch 7/7" in row
    assert "0.375 on 2 test sets, 0.750 on dev" in row
    status.main([f"root={grid_dir.path}", "--json"])
    (job,) = (job for job in json.loads(capsys.readouterr().out)["jobs"] if job["job"] == "finetune/a")
    assert (job["dev_f1"], job["test_f1"]) == (0.75, {"tl_trg": 0.25, "ceb_gja": 0.5})


def test_runs_of_an_earlier_plan_are_listed_separately(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(grid_dir, "pretrain/old-0123ab")
    with grid_dir.submitted_file.open("a") as file:
        file.write(submitted("finetune/old-4567cd", "99_1"))
    (squeue / "queue").write_text("99_1|PENDING|Dependency\n")
    status.main([f"root={grid_dir.path}"])
    assert "2 run(s) are not in this plan and not shown, 1 of them in Slurm's queue (99_1), such as" in (
        capsys.readouterr().out
    )
    status.main([f"root={grid_dir.path}", "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output["others"] == {"pretrain/old-0123ab": "", "finetune/old-4567cd": "99_1"}
    assert [entry["job"] for entry in output["jobs"]] == list(SLURM_IDS)


def test_an_interrupted_job_outside_the_queue_blocks_the_jobs_that_need_it(
    grid_dir: GridDir, squeue: Path
) -> None:
    Run(grid_dir.path / "prepare/demo").finish({})
    started(grid_dir, "pretrain/a")
    assert (states(grid_dir)["pretrain/a"], states(grid_dir)["finetune/a"]) == ("interrupted", "blocked")
    (squeue / "queue").write_text(f"{SLURM_IDS['pretrain/a']}|PENDING|BeginTime\n")
    assert (states(grid_dir)["pretrain/a"], states(grid_dir)["finetune/a"]) == ("queued", "waiting")


def test_a_job_that_slurm_is_ending(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(grid_dir.path / "prepare/demo").finish({})
    started(grid_dir, "pretrain/a")
    (squeue / "queue").write_text(f"{SLURM_IDS['pretrain/a']}|COMPLETING|TimeLimit\n")
    assert (states(grid_dir)["pretrain/a"], states(grid_dir)["finetune/a"]) == ("ending", "waiting")
    status.main([f"root={grid_dir.path}"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pretrain/a"))
    assert row.split()[:2] == ["pretrain/a", "ending"]
    Run(grid_dir.path / "pretrain/a").finish({})
    assert states(grid_dir)["pretrain/a"] == "done"


@pytest.mark.parametrize(
    ("times", "state"),
    {
        "0:00 2026-11-30T06:12:08 2026-11-30T06:17:08": "queued",
        "0:00 N/A N/A": "queued",
        "0:00 2026-11-30T06:12:19 2026-11-30T06:12:19": "ending",  # cancelled in its first second
        "0:01 2026-11-30T06:12:19 2026-11-30T06:12:20": "ending",
        "1-00:00:00 2026-11-29T06:12:19 2026-11-30T06:12:19": "ending",
    }.items(),
)
def test_a_requeued_job_is_queued_while_its_last_process_ends(
    times: str, state: str, grid_dir: GridDir, squeue: Path
) -> None:
    started(grid_dir, "pretrain/a")
    (squeue / "queue").write_text(f"{SLURM_IDS['pretrain/a']}|COMPLETING {times}|None\n")
    assert states(grid_dir)["pretrain/a"] == state


def test_a_job_whose_dependency_is_never_satisfied_is_blocked(grid_dir: GridDir, squeue: Path) -> None:
    (squeue / "queue").write_text(f"{SLURM_IDS['finetune/a']}|PENDING|DependencyNeverSatisfied\n")
    assert states(grid_dir)["finetune/a"] == "blocked"


def hide_jobs_of_others(squeue: Path) -> None:
    """squeue shows the file `queue` for the user's own jobs, and the file `others` for jobs that are asked for by id."""
    shown = squeue_output(squeue.parent / "grid")
    script = f"#!/bin/bash\necho >> '{squeue}/calls'\ncase $1 in --jobs=*) echo \"$1\" >>"
    script += f"'{squeue}/asked'; {shown} '{squeue}/others';; *) {shown} '{squeue}/queue';; esac\n"
    (squeue / "squeue").write_text(script)
    (squeue / "others").touch()


def test_jobs_of_another_user_are_asked_for_by_id_and_never_lost(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_jobs_of_others(squeue)
    lines = [submitted(name, number, "ana", "big") for name, number in SLURM_IDS.items()]
    grid_dir.submitted_file.write_text("".join(lines))
    Run(grid_dir.path / "prepare/demo").finish({})
    started(grid_dir, "pretrain/b")
    (squeue / "others").write_text(f"{SLURM_IDS['pretrain/a']}|RUNNING|None|\n")
    assert states(grid_dir) == {
        "prepare/demo": "done",
        "pretrain/a": "running",
        "pretrain/b": "unknown",
        "finetune/a": "unknown",
        "finetune/b": "unknown",
        "report": "unknown",
    }
    asked = {SLURM_IDS[name] for name in SLURM_IDS if name != "prepare/demo"}
    assert set((squeue / "asked").read_text().strip().removeprefix("--jobs=").split(",")) == asked
    status.main([f"root={grid_dir.path}"])
    assert (
        "unknown pretrain/b: submitted by ana on big; squeue does not show it here" in capsys.readouterr().out
    )
    (squeue / "squeue").write_text(
        "#!/bin/bash\ncase $1 in --jobs=*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; esac\n"
    )
    assert states(grid_dir)["pretrain/a"] == "unknown"


def test_jobs_of_this_user_on_another_cluster_are_never_lost(grid_dir: GridDir, squeue: Path) -> None:
    lines = [submitted(name, number, cluster="big") for name, number in SLURM_IDS.items()]
    grid_dir.submitted_file.write_text("".join(lines))
    scontrol = squeue / "scontrol"
    scontrol.write_text("#!/bin/bash\necho 'ClusterName             = small'\n")
    scontrol.chmod(0o755)
    assert set(states(grid_dir).values()) == {"unknown"}
    scontrol.write_text("#!/bin/bash\necho 'ClusterName             = big'\n")
    assert states(grid_dir)["prepare/demo"] == "lost"


def test_an_id_of_another_cluster_or_grid_is_not_taken_for_a_job(
    grid_dir: GridDir, squeue: Path, tmp_path: Path
) -> None:
    scontrol = squeue / "scontrol"
    scontrol.write_text("#!/bin/bash\necho 'ClusterName             = small'\n")
    scontrol.chmod(0o755)
    number = SLURM_IDS["prepare/demo"]
    (squeue / "queue").write_text(f"{number}|PENDING|Priority|my other work\n")
    assert states(grid_dir)["prepare/demo"] == "lost"
    (tmp_path / "link").symlink_to(grid_dir.path)
    (squeue / "queue").write_text(f"{number}|PENDING|Priority|metapt {tmp_path / 'link'}\n")
    assert states(grid_dir)["prepare/demo"] == "queued"
    grid_dir.submitted_file.write_text(submitted("prepare/demo", number, cluster="big"))
    assert states(grid_dir)["prepare/demo"] == "unknown"
    grid_dir.submitted_file.write_text(submitted("prepare/demo", number, cluster="small"))
    for comment, state in (("of the site", "queued"), ("metapt /other/grid", "lost")):
        (squeue / "queue").write_text(f"{number}|PENDING|Priority|{comment}\n")
        assert states(grid_dir)["prepare/demo"] == state


def test_variables_of_squeue_hide_no_job(
    grid_dir: GridDir, squeue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_STATES", "SQUEUE_PARTITION"):
        monkeypatch.setenv(name, "other")
    script = squeue / "squeue"
    script.write_text(script.read_text().replace("\n", "\nenv | grep -q ^SQUEUE_ && exit 0\n", 1))
    (squeue / "queue").write_text(f"{SLURM_IDS['prepare/demo']}|PENDING|Priority\n")
    assert states(grid_dir)["prepare/demo"] == "queued"


def test_a_job_that_fails_before_its_program_starts_has_failed(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log of its batch script says why, or else Slurm's exit code."""
    Run(grid_dir.path / "prepare/demo").finish({})
    grid_dir.submitit_dir.mkdir(parents=True)
    log, empty = (
        grid_dir.submitit_dir / f"{SLURM_IDS[name]}_0_log.err" for name in ("pretrain/a", "pretrain/b")
    )
    log.write_text("/bin/bash: line 12: module: command not found\n")
    empty.touch()
    scontrol = squeue / "scontrol"
    scontrol.write_text("#!/bin/bash\necho 'JobId=101 JobState=FAILED ExitCode=3:0 Restarts=0'\n")
    scontrol.chmod(0o755)
    assert [states(grid_dir)[name] for name in ("pretrain/a", "finetune/a")] == ["failed", "blocked"]
    status.main([f"root={grid_dir.path}"])
    printed = capsys.readouterr().out
    assert "failed  pretrain/a: /bin/bash: line 12: module: command not found" in printed
    assert f"full log: {log}" in printed
    assert "failed  pretrain/b: ended before its program started (exit code 3)" in printed


def test_jobs_left_by_a_killed_submitter_are_shown(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (squeue / "queue").write_text(
        f"{SLURM_IDS['report']}|PENDING|Dependency|{job_comment(grid_dir)}\n"
        f"900_1|PENDING|Priority|{job_comment(grid_dir)}\n901|PENDING|Priority|another\n"
    )
    status.main([f"root={grid_dir.path}"])
    assert "a killed submitter left 1 job(s) in Slurm's queue (900_1)" in capsys.readouterr().out
    grid_dir.submitted_file.unlink()  # killed during the first submission
    status.main([f"root={grid_dir.path}", "--json"])
    assert json.loads(capsys.readouterr().out)["unrecorded"] == sorted([SLURM_IDS["report"], "900_1"])
    with grid_dir.locked():  # a submitter that still works
        status.main([f"root={grid_dir.path}", "--json"])
    assert json.loads(capsys.readouterr().out)["unrecorded"] == []


def test_a_damaged_line_of_jobs_is_named_and_left_out(
    grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = grid_dir.submitted_file.read_text().splitlines(keepends=True)
    lines[2] = lines[2][:25] + lines[3]  # a full disk has cut it off, and another line was appended
    grid_dir.submitted_file.write_text("".join([*lines[:3], *lines[4:], "[1]\n", '{"job": "cut']))
    assert states(grid_dir)["prepare/demo"] == "lost"
    errors = capsys.readouterr().err
    for number in (3, 6, 7):
        assert f"{grid_dir.submitted_file}:{number}: damaged line, left out" in errors


@pytest.mark.parametrize("words", [["--watch", "--json"], ["watch=true", "json=true"]])
def test_watch_repeats_until_every_job_is_done(
    words: list[str], grid_dir: GridDir, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def finish() -> None:
        for job in fake_plan(grid_dir.path).jobs:
            grid_dir.run(job).finish({})

    later = threading.Timer(1.5, finish)
    later.start()
    status.main([f"root={grid_dir.path}", "every_s=1", *words])
    later.join()
    looks = [json.loads(line)["jobs"] for line in capsys.readouterr().out.splitlines()]
    assert len(looks) >= 2
    assert {entry["state"] for entry in looks[0]} == {"lost", "blocked"}
    assert {entry["state"] for entry in looks[-1]} == {"done"}


def test_many_runs_cost_one_call_of_squeue_and_the_ends_of_files(tmp_path: Path, squeue: Path) -> None:
    grid_dir = GridDir(tmp_path / "many")
    names = [f"pretrain/{number}" for number in range(40)]
    grid_dir.write_plan(Plan("many", tuple(Job(name, "pretrain") for name in names)))
    grid_dir.submitted_file.write_text("".join(submitted(name, name) for name in names))
    for name in names:
        started(grid_dir, name, updates=2000)
    long = grid_dir.path / names[0] / "metrics.jsonl"
    assert long.stat().st_size > 10 * TAIL_BYTES
    before = bytes_read()
    assert {seen.run.step for seen in grid_status(grid_dir).jobs} == {2000}
    assert bytes_read() - before < len(names) * (TAIL_BYTES + 8 * 1024)
    assert (squeue / "calls").read_text() == "\n"


def bytes_read() -> int:
    """Bytes that this process has read through system calls so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
