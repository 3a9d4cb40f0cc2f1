"""Grids on a real Slurm; `make slurm-test` starts one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import launch_fakes
import pytest
from launch_fakes import NEEDS, fake_plan, run_fake, starts, submitted_ids
from real_slurm import MARKS, second_cluster, wait_for_empty_queue, wait_until

from metapt.config import ClusterConfig
from metapt.errors import OperationalError
from metapt.launch import slurm, slurm_queue
from metapt.launch.code_snapshot import SUBPACKAGES, live_code
from metapt.launch.due_jobs import current_statuses
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import grid_status
from metapt.launch.job_sources import JobSources
from metapt.launch.jobs import Plan

REPOSITORY = Path(__file__).parents[2]
CLUSTER = ClusterConfig(name="slurm", timeout_min=30, cpus_per_task=1, mem_gb=1, visibility_timeout_s=2)


pytestmark = MARKS


@pytest.fixture(autouse=True)
def _jobs_find_metapt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))


def ids_in_queue(root: Path) -> dict[str, str]:
    return {job_id: entry.slurm_id for job_id, entry in slurm_queue.queue_entries(GridDir(root)).items()}


def states(root: Path) -> dict[str, str]:
    statuses = current_statuses(fake_plan(root), GridDir(root))
    return {job_id: status.state for job_id, status in statuses.items()}


def test_a_grid_runs_in_order_and_is_not_submitted_twice(tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow"})
    slurm_ids = ids_in_queue(tmp_path)
    run_fake(tmp_path, CLUSTER)
    assert {**slurm_ids, **ids_in_queue(tmp_path)} == slurm_ids
    wait_for_empty_queue(tmp_path)
    order = starts(tmp_path)
    assert sorted(order) == sorted(NEEDS)
    for name, needs in NEEDS.items():
        assert all(order.index(need) < order.index(name) for need in needs)
    assert set(states(tmp_path).values()) == {"done"}


def test_a_failure_spares_the_other_jobs_and_is_repaired_by_the_next_call(tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "fail-once"})
    wait_for_empty_queue(tmp_path)
    assert set(starts(tmp_path)) == set(NEEDS) - {"finetune/a"}
    shown = {status.job.id: status.state for status in grid_status(GridDir(tmp_path)).jobs}
    assert shown == dict.fromkeys(NEEDS, "done") | {"pretrain/a": "failed", "finetune/a": "blocked"}
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "fail-once"})
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}


def test_repaired_at_once_what_waits_for_the_failed_job_is_replaced(tmp_path: Path) -> None:
    """Before Slurm has taken it from the queue."""
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "fail-once", "pretrain/b": "slow"})
    numbers = ids_in_queue(tmp_path)
    subprocess.run(["scontrol", "hold", numbers["finetune/a"]], check=True)  # so that it is there still
    wait_until(lambda: states(tmp_path)["pretrain/a"] == "failed")
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "fail-once"})
    assert numbers["finetune/a"] not in ids_in_queue(tmp_path).values()
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    assert starts(tmp_path).count("finetune/a") == 1


def test_jobs_run_the_source_of_their_submission(tmp_path: Path) -> None:
    """Submitted from inside a job, from a copy of the source that is damaged afterwards, into a folder with a space."""
    source, root = tmp_path / "source", tmp_path / "the grid"
    for package in ("metapt", *SUBPACKAGES):
        shutil.copytree(REPOSITORY / package, source / package)
    command = ["srun", "--mem-per-cpu=300", "--time=5", "env", "SLURM_NTASKS_PER_NODE=7"]
    command += [sys.executable, launch_fakes.__file__]
    command += ["submit", str(root), "slurm", "prepare/demo=slow", "code=snapshot"]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run(command, check=True, cwd=source, env=environment, timeout=120)
    for module in ("slurm_task", "process", "grid_dir"):
        (source / "metapt" / "launch" / f"{module}.py").write_text("raise SystemExit('changed')\n")
    wait_for_empty_queue(root)
    assert set(states(root).values()) == {"done"}
    assert len(list((root / "code").iterdir())) == 1


@pytest.fixture
def site_with_small_arrays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second Slurm, whose arrays have at most two jobs."""
    with second_cluster({"MAX_ARRAY_SIZE": "2", "NODES": "1", "GPUS": "0"}, monkeypatch):
        yield


@pytest.mark.nightly
@pytest.mark.skipif(os.getuid() != 0, reason="the development cluster is started by root")
@pytest.mark.usefixtures("site_with_small_arrays")
def test_a_grid_fits_a_site_with_small_arrays(tmp_path: Path) -> None:
    plan, grid_dir = fake_plan(tmp_path), GridDir(tmp_path)
    prepare, first, *_, report = plan.jobs
    two = [replace(first, id=name, needs=()) for name in ("one", "two")]
    script = slurm.batch_scripts(plan, two, grid_dir, CLUSTER, JobSources(live_code()))[0][1]
    accepted, answer = slurm.check_with_sbatch(script.replace("--array=0-1", "--array=0-2"))
    assert (accepted, "array" in answer) == (False, True), answer  # so a larger one would be refused
    runs = [
        replace(first, id=name, argv=("job", str(tmp_path / name), "pretrain", "ok"))
        for name in (f"pretrain/{number}" for number in range(5))
    ]
    plan = Plan("fake", (prepare, *runs, replace(report, needs=tuple(job.id for job in (prepare, *runs)))))
    grid_dir.write_plan(plan)
    slurm.submit(plan, plan.jobs, grid_dir, CLUSTER, JobSources(live_code()))
    slurm_ids = ids_in_queue(tmp_path)
    arrays = Counter(slurm_ids[job.id].partition("_")[0] for job in runs)
    assert sorted(arrays.values()) == [1, 2, 2]
    wait_for_empty_queue(tmp_path)
    assert {status.state for status in current_statuses(plan, grid_dir).values()} == {"done"}
    assert starts(tmp_path)[-1] == "report"


def test_a_rejected_request_cancels_the_earlier_ones(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path)
    jobs = [replace(job, nodes=99) if job.id == "finetune/a" else job for job in plan.jobs]
    grid_dir, live = GridDir(tmp_path), JobSources(live_code())
    with pytest.raises(OperationalError, match=r"finetune/a: sbatch refuses.*More processors"):
        slurm.submit(plan, jobs, grid_dir, CLUSTER, live)
    comments = subprocess.check_output(["squeue", "-h", "-t", "pending,running", "-o", "%k"], text=True)
    assert slurm_queue.job_comment(grid_dir) not in comments
    assert not submitted_ids(grid_dir)
    answers = [
        slurm.check_with_sbatch(script)
        for _, script in slurm.batch_scripts(plan, jobs, grid_dir, CLUSTER, live, is_test=True)
    ]
    assert [accepted for accepted, _ in answers] == [True, True, False, True, True]
    assert "to start at" in answers[0][1]
    assert "More processors requested" in answers[2][1]


def test_a_signalled_job_saves_is_requeued_and_resumes(tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "stoppable"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    slurm_id = ids_in_queue(tmp_path)["pretrain/a"]
    # as Slurm does before the time limit: to the processes, not to the batch shell, which it would kill
    subprocess.run(["scancel", f"--signal={signal.SIGUSR2.name[3:]}", slurm_id], check=True)
    wait_until((tmp_path / "pretrain/a/saved").exists)
    assert ids_in_queue(tmp_path)["pretrain/a"] == slurm_id
    wait_for_empty_queue(tmp_path)
    assert starts(tmp_path).count("pretrain/a") == 2
    assert set(states(tmp_path).values()) == {"done"}


@pytest.mark.parametrize("limit", [0, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_job_without_progress_is_abandoned_and_the_report_runs_without_it(
    limit: int, tmp_path: Path
) -> None:
    cluster = replace(CLUSTER, max_requeues_without_progress=limit)
    run_fake(tmp_path, cluster, {"pretrain/a": "fruitless"})
    for _ in range(limit + 1):
        started = tmp_path / "pretrain/a/started"  # and it handles signals
        wait_until(started.exists)
        started.unlink()
        slurm_id = ids_in_queue(tmp_path)["pretrain/a"]
        subprocess.run(["scancel", "--signal=USR2", slurm_id], check=True)
    wait_for_empty_queue(tmp_path)
    seen = {status.job.id: status for status in grid_status(GridDir(tmp_path)).jobs}
    message = f"requeued {limit + 1} times in a row without a new checkpoint (newest: none); abandoned"
    assert seen["pretrain/a"].run.last_error_line == message
    states = {name: status.state for name, status in seen.items()}
    assert states == dict.fromkeys(NEEDS, "done") | {"pretrain/a": "failed", "finetune/a": "blocked"}
    assert starts(tmp_path).count("pretrain/a") == limit + 1


def test_a_job_on_two_nodes_has_one_process_per_gpu_with_its_rank(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)\n"
        "(folder / os.environ['RANK']).write_text(' '.join(os.environ[name] for name in names))\n"
        "(folder / 'result.json').write_text('{}')\n"
    )
    grid_dir, folder = GridDir(tmp_path), tmp_path / "pretrain/a"
    pretrain = fake_plan(tmp_path).jobs[1]
    job = replace(pretrain, program=(str(script),), argv=(str(folder),), needs=(), nodes=2, gpus_per_node=2)
    slurm.submit(fake_plan(tmp_path), [job], grid_dir, CLUSTER, JobSources(live_code()))
    wait_for_empty_queue(tmp_path)
    found = [(folder / str(rank)).read_text().split() for rank in range(4)]
    assert [line[:3] for line in found] == [[str(rank), "4", str(rank % 2)] for rank in range(4)]
    assert len({tuple(line[3:]) for line in found}) == 1


def test_a_cancelled_job_stops_and_is_not_requeued(tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "stoppable"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    subprocess.run(["scancel", ids_in_queue(tmp_path)["pretrain/a"]], check=True)
    wait_for_empty_queue(tmp_path)
    assert states(tmp_path)["pretrain/a"] == "interrupted"
    assert (
        next(seen.state for seen in grid_status(GridDir(tmp_path)).jobs if seen.job.id == "finetune/a")
        == "blocked"
    )
    assert starts(tmp_path).count("pretrain/a") == 1
    assert "finetune/a" not in starts(tmp_path)


def test_a_job_that_slurm_is_ending_is_followed_by_its_new_submission(tmp_path: Path) -> None:
    """After scancel the job saves for some seconds; meanwhile the grid is submitted again."""
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow-stop"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    first = ids_in_queue(tmp_path)["pretrain/a"]
    subprocess.run(["scancel", first], check=True)
    assert states(tmp_path)["pretrain/a"] == "ending"
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow-stop"})
    second = ids_in_queue(tmp_path)["pretrain/a"]
    assert second != first
    dependency = subprocess.check_output(["squeue", "-h", f"--jobs={second}", "--format=%E"], text=True)
    assert "afterany:" in dependency
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    assert starts(tmp_path).count("pretrain/a") == 2


def test_a_requeued_job_that_is_still_saving_is_not_submitted_again(tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow-stop"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    slurm_id = ids_in_queue(tmp_path)["pretrain/a"]
    subprocess.run(["scontrol", "requeue", slurm_id], check=True)
    listed = subprocess.check_output(["squeue", "-h", f"--jobs={slurm_id}", "--format=%T"], text=True)
    assert listed.strip() == "COMPLETING"
    assert states(tmp_path)["pretrain/a"] == "queued"
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow-stop"})
    assert ids_in_queue(tmp_path)["pretrain/a"] == slurm_id
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    assert starts(tmp_path).count("pretrain/a") == 2


def test_status_shows_queued_jobs(tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"prepare/demo": "slow"})
    command = [sys.executable, "-m", "metapt.status", f"root={tmp_path}"]
    output = subprocess.check_output(command, text=True, cwd=REPOSITORY)
    assert "queued" in output
    wait_for_empty_queue(tmp_path)
