"""slurm/pretrain.sh and slurm/finetune.sh on a real Slurm: processes, ranks, site settings, signals, requeue, training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import run_module
from real_slurm import MARKS, losses, second_cluster, wait_for_end, wait_until, weights

from metapt.__main__ import COMMANDS
from metapt.config import ClusterConfig
from metapt.launch.code_snapshot import live_code
from metapt.launch.run_status import run_status
from metapt.provenance import git_commit
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[2]
pytestmark = MARKS

FAKE_PYTHON = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
start = os.environ.get("SLURM_RESTART_COUNT", "0")
if sys.argv[3] == "after":
    print((folder / "avoided").read_text() if (folder / "avoided").exists() else "")
    sys.exit(0)
if sys.argv[2] == "metapt.launch.requeues":
    (folder / f"checked{{start}}").write_text(json.dumps(sys.argv[3:]))
    sys.exit(0)
rank = os.environ["RANK"]
received = []
signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "MARK")
seen = [*map(os.environ.get, names), *sys.argv[1:]]
(folder / f"start{{start}}.{{rank}}").write_text(json.dumps(seen))
while start == "0" and not received:
    time.sleep(0.05)
sys.exit(75 if received else 0)
"""


def sbatch(
    site: Path, script: Path, options: list[str], words: list[str], folder: Path, **environment: str
) -> str:
    """Submits a script with the settings of a site, without the environment of this process. Returns its Slurm job id."""
    command = [
        sys.executable,
        "-m",
        "metapt.sbatch",
        f"cluster={site}",
        "--parsable",
        "--time=10",
        "--mem=1000",
    ]
    variables = {**os.environ, "SBATCH_EXPORT": "NONE", "PYTHONPATH": str(REPOSITORY), **environment}
    output = subprocess.check_output(
        [*command, *options, str(script), *words], text=True, cwd=folder, env=variables
    )
    return output.splitlines()[-1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository in a folder with a space, whose site.yaml sets a fake interpreter."""
    clone = tmp_path / "a clone"
    shutil.copytree(REPOSITORY / "slurm", clone / "slurm")
    (clone / "slurm/python").write_text(FAKE_PYTHON)
    (clone / "slurm/python").chmod(0o755)
    write_site(
        clone / "site.yaml",
        python=f"{clone}/slurm/python",
        launcher="env 'MARK=of the site'",
        exports={"FOLDER": str(clone)},
        setup=["[ -n $UNSET_AT_THIS_SITE ]"],
    )
    return clone


def write_site(file: Path, **settings: object) -> Path:
    file.write_text(yaml.safe_dump({"defaults": ["slurm", "_self_"], "online": True, **settings}))
    return file


CASES = {  # script, options, processes per node, nodes, whether sbatch is called in the clone
    "gpus, elsewhere": ("pretrain", ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=1"], 2, 2, False),
    "ntasks": ("pretrain", ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-gpu=1"], 2, 1, True),
    "finetune": ("finetune", ["--gpus-per-node=2", "--cpus-per-task=1"], 1, 1, True),
    "finetune on two": ("finetune", ["--ntasks-per-node=2", "--cpus-per-task=1"], 2, 1, True),
}


@pytest.mark.parametrize("case", CASES)
def test_every_process_has_its_rank_and_is_signalled_and_restarted(
    case: str, clone: Path, tmp_path: Path
) -> None:
    name, options, per_node, nodes, in_clone = CASES[case]
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    # as a surrounding job would leave in the environment
    variables = {"SLURM_NTASKS_PER_NODE": "3", "SLURM_NTASKS": "7", "SLURM_GPUS_ON_NODE": "7"}
    words = ["model=large", "run_dir=runs/a b"]
    folder = clone if in_clone else elsewhere
    number = sbatch(clone / "site.yaml", clone / f"slurm/{name}.sh", options, words, folder, **variables)
    world = per_node * nodes
    wait_until(lambda: len(list(clone.glob("start0.*"))) == world)
    subprocess.run(["scancel", "--signal=USR1", number], check=True)  # as Slurm before the time limit
    wait_for_end(number)
    for start in (0, 1):
        assert json.loads((clone / f"checked{start}").read_text()) == [COMMANDS[name].module, *words]
        seen = [json.loads((clone / f"start{start}.{rank}").read_text()) for rank in range(world)]
        assert [line[:3] for line in seen] == [
            [str(rank), str(world), str(rank % per_node)] for rank in range(world)
        ]
        assert len({tuple(line[3:5]) for line in seen}) == 1  # all have the same address
        assert {tuple(line[5:]) for line in seen} == {("of the site", "-m", COMMANDS[name].module, *words)}
    assert len(list(clone.glob("start*"))) == 2 * world
    assert (folder / f"slurm-{number}.out").exists()


def test_a_requeued_job_avoids_a_node_that_has_failed(clone: Path) -> None:
    (clone / "avoided").write_text("node1")
    script = clone / "slurm/finetune.sh"
    number = sbatch(clone / "site.yaml", script, ["--cpus-per-task=1"], ["run_dir=a"], clone)
    wait_until((clone / "start0.0").exists)
    subprocess.run(["scancel", "--signal=USR1", number], check=True)
    wait_until(lambda: "Restarts=1" in shown(number))
    assert "ExcNodeList=node1" in shown(number)
    subprocess.run(["scancel", number], check=True)


def shown(number: str) -> str:
    return subprocess.check_output(["scontrol", "show", "job", number], text=True)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_a_run_that_would_be_refused_ends_at_once(name: str, tmp_path: Path) -> None:
    """With exit code 2 and one line, on one process, and without a requeue."""
    words = {
        "pretrain": ["model=nano", "data=text", "data.text_dir=nowhere", "run_dir=run"],
        "finetune": ["checkpoint=nowhere", "source=en_demo", "data=demo", "run_dir=run"],
    }
    script = REPOSITORY / f"slurm/{name}.sh"
    options = ["--nodes=2"] if name == "pretrain" else []
    number = sbatch(this_site(tmp_path), script, options, words[name], tmp_path)
    wait_for_end(number)
    shown = subprocess.check_output(["scontrol", "show", "job", number], text=True)
    assert "ExitCode=2:0" in shown
    assert "Restarts=0" in shown
    log = (tmp_path / f"slurm-{number}.out").read_text()
    assert log.count("error: ") == 1, log
    assert not (tmp_path / "run").exists()


SITES = {  # settings of a development cluster, and options of sbatch beside --nodes=2
    "no gpus": ({"GPUS": "0", "CPUS": "4"}, ["--cpus-per-task=1"]),
    "no gpus, plain sbatch": ({"GPUS": "0", "CPUS": "4"}, ["--ntasks-per-node=1", "--cpus-per-task=1"]),
    "two cpus a node": ({"GPUS": "0", "CPUS": "2"}, []),
    "gpus": ({"GPUS": "2", "CPUS": "4"}, ["--gpus-per-node=2", "--cpus-per-gpu=1"]),
    "gpus and the site's cpus": ({"GPUS": "2", "CPUS": "4"}, ["--gpus-per-node=2"]),
}


@pytest.mark.nightly
@pytest.mark.skipif(os.getuid() != 0, reason="the development cluster is started by root")
@pytest.mark.parametrize("site", SITES)
def test_the_scripts_run_on_each_site(site: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, options = SITES[site]
    per_node = 2 if "--gpus-per-node=2" in options else 1
    with second_cluster(settings, monkeypatch):
        script, options = clone / "slurm/pretrain.sh", ["--nodes=2", *options]
        if "plain sbatch" in site:  # without a site file: the python of the environment runs
            monkeypatch.setenv("PATH", f"{clone}/slurm{os.pathsep}{os.environ['PATH']}")
            monkeypatch.setenv("FOLDER", str(clone))
            command = [
                "sbatch",
                "--parsable",
                "--mem=1000",
                *options,
                str(script),
                "model=nano",
                "run_dir=run",
            ]
            number = subprocess.check_output(command, text=True, cwd=clone).strip()
        else:
            number = sbatch(clone / "site.yaml", script, options, ["run_dir=run"], clone)
        wait_until(lambda: len(list(clone.glob("start0.*"))) == 2 * per_node)
        subprocess.run(["scancel", "--signal=USR1", number], check=True)
        wait_for_end(number)
    assert len(list(clone.glob("start1.*"))) == 2 * per_node
    shares = "processes per node share 1 CPU(s)" in (clone / f"slurm-{number}.out").read_text()
    assert shares == (site == "gpus and the site's cpus")


@pytest.mark.nightly
def test_a_job_without_progress_is_abandoned(tmp_path: Path) -> None:
    """After as many requeues as cluster.max_requeues_without_progress allows by default."""
    python = tmp_path / "python"  # its training is always interrupted at once
    python.write_text(
        f'#!/bin/bash\n[ "$2" = metapt.launch.requeues ] && exec "{sys.executable}" "$@"\necho start\nexit 75\n'
    )
    python.chmod(0o755)
    site = write_site(tmp_path / "site.yaml", python=str(python), exports={"PYTHONPATH": str(REPOSITORY)})
    words = ["model=nano", "objective=maml_paper", "data=demo", "run_dir=run"]
    options = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-gpu=1"]
    number = sbatch(site, REPOSITORY / "slurm/pretrain.sh", options, words, tmp_path)
    wait_for_end(number)
    limit = ClusterConfig.max_requeues_without_progress
    log = (tmp_path / f"slurm-{number}.out").read_text()
    message = f"requeued {limit + 1} times in a row without a new checkpoint (newest: none); abandoned"
    assert log.splitlines().count("start") == limit + 1, log
    assert message in log
    assert run_status(tmp_path / "run").last_error_line == message


def this_site(folder: Path) -> Path:
    """A site file with which the real programs run."""
    return write_site(
        folder / "site.yaml", exports={"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPOSITORY)}
    )


def test_signalled_training_on_two_nodes_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    """ZeRO-2 on 2 nodes x 2 processes: the signalled job saves, is requeued, and ends with bit-identical results."""
    site = this_site(tmp_path)
    words = [
        "model=nano",
        "device=cpu",
        "objective=maml_paper",
        "data=demo",
        "ds=zero2",
        "data.cache_dir=corpus",
    ]
    words += [
        "train.max_steps=30",
        "train.micro_batches_per_update=4",
        "train.micro_batch=2",
        "train.seq_len=32",
    ]
    words += [
        "meta.tasks_per_step=4",
        "meta.n_way=4",
        "train.eval_every=1000",
        "train.checkpoint_every=1000",
    ]
    options = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=1", "--time=30"]
    script = REPOSITORY / "slurm/pretrain.sh"
    signalled, whole = Run(tmp_path / "signalled"), Run(tmp_path / "whole")

    def start(run: Run) -> str:
        return sbatch(site, script, options, [*words, f"run_dir={run.path.name}"], tmp_path)

    first = start(signalled)
    wait_until(lambda: any(line["step"] >= 3 for line in signalled.metrics()), seconds=300)
    subprocess.run(["scancel", "--signal=USR1", first], check=True)
    second = start(whole)
    wait_for_end(first, second)

    log = (tmp_path / f"slurm-{first}.out").read_text()
    assert log.count("interrupted: ") == 4, log
    assert log.count(str(live_code())) == 2  # at both starts
    assert signalled.provenance()["git_commit"] == git_commit()
    assert len(signalled.checkpoints()) == 3  # of the first step, at the signal, of the last step
    assert [step for step, _ in whole.checkpoints()] == [0, 30]
    assert losses(signalled) == losses(whole)
    assert weights(signalled) == weights(whole)


def test_signalled_fine_tuning_ends_like_one_without_slurm(tmp_path: Path, nano_arguments: list[str]) -> None:
    model = tmp_path / "model"
    assert run_module("metapt.pretrain", [*nano_arguments, f"run_dir={model}"]).returncode == 0
    words = [f"checkpoint={model}", "source=en_demo", "tuning=full", "data=demo", "ner.lr=1e-3"]
    words += ["ner.max_epochs=3", "data.max_train_sentences=400"]
    signalled, whole = Run(tmp_path / "signalled"), Run(tmp_path / "whole")
    site = this_site(tmp_path)
    script, options = REPOSITORY / "slurm/finetune.sh", ["--time=30", "--cpus-per-task=1"]
    number = sbatch(site, script, options, [*words, "run_dir=signalled"], tmp_path)
    wait_until(lambda: any(line["step"] >= 5 for line in signalled.metrics()), seconds=300)
    subprocess.run(["scancel", "--signal=USR1", number], check=True)
    assert run_module("metapt.finetune_command", [*words, f"run_dir={whole.path}"]).returncode == 0
    wait_for_end(number)

    log = (tmp_path / f"slurm-{number}.out").read_text()
    assert log.count("interrupted: ") == 1, log
    assert {**signalled.result(), "seconds_total": 0} == {**whole.result(), "seconds_total": 0}
    for part in ("predictions", "tagger"):
        files = [path.name for path in (whole.path / part).iterdir()]
        assert len(files) > 2
        for name in files:
            assert (signalled.path / part / name).read_bytes() == (whole.path / part / name).read_bytes(), (
                name
            )
