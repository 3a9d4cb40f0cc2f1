"""The device of a run: which one is chosen, when a CPU is refused, and what an exhausted memory says."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import Fault, Forks

from metapt import node_failures
from metapt.config import commandline
from metapt.errors import EXIT_USER, UserError
from metapt.finetuning.run_finetuning import finetune
from metapt.models import device
from metapt.models.device import (
    Surroundings,
    granted_gpus,
    local_device,
    memory_errors,
    training_device,
    use_deterministic_algorithms,
)
from metapt.node_failures import device_error
from metapt.pretrain import pretrain
from metapt.runs import Run
from metapt.training.signals import StopRequest

LAPTOP = Surroundings("2.13.0", "12.9", 0, "", None, "laptop", None)
NODE = Surroundings("2.13.0", "12.9", 4, "", "550.54.14", "node7", "SLURM_GPUS_ON_NODE=4")
BLIND = replace(NODE, gpus=0, problem="CUDA unknown error")


@pytest.mark.parametrize(
    ("environment", "grant"),
    [
        ({}, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
        ({"SLURM_GPUS_ON_NODE": "4"}, "SLURM_GPUS_ON_NODE=4"),
        ({"SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),  # the GPU with number 0
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),  # Slurm, for a job without GPUs
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "4"}, None),  # hidden by the user
    ],
)
def test_what_shows_that_a_process_was_given_gpus(
    environment: dict[str, str], grant: str | None, tmp_path: Path
) -> None:
    assert granted_gpus(environment, tmp_path) == grant


def test_device_files_show_gpus_outside_slurm_only(tmp_path: Path) -> None:
    """A node with GPUs also runs jobs that were given none."""
    for name in ("nvidiactl", "nvidia0"):
        (tmp_path / name).touch()
    assert granted_gpus({}, tmp_path) == str(tmp_path / "nvidia0")
    assert granted_gpus({"SLURM_JOB_ID": "1"}, tmp_path) is None
    (tmp_path / "nvidia0").unlink()
    assert granted_gpus({}, tmp_path) is None


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("auto", LAPTOP, "cpu"),
        ("auto", NODE, "cuda:0"),
        ("cuda", NODE, "cuda:0"),
        ("cpu", NODE, "cpu"),
        ("cpu", BLIND, "cpu"),
        ("auto", replace(NODE, grant=None), "cuda:0"),
    ],
)
def test_the_device_of_a_run(name: str, found: Surroundings, expected: str) -> None:
    assert training_device(name, found) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "found", "cause"),
    [
        ("auto", replace(BLIND, cuda=None, torch="2.13.0+cpu"), r"torch 2\.13\.0\+cpu, built for CPUs.*install torch for CUDA"),
        ("auto", replace(BLIND, driver=None), "driver none.*no NVIDIA driver"),
        ("auto", replace(BLIND, problem="The NVIDIA driver on your system is too old (found version 11040)"), "driver is too old"),
        ("cuda", LAPTOP, "driver none"),
        ("cuda", replace(LAPTOP, driver="550.54.14"), "ask Slurm for a GPU"),
    ],
)  # fmt: skip
def test_a_cpu_in_place_of_a_gpu_is_refused(name: str, found: Surroundings, cause: str) -> None:
    with pytest.raises(UserError, match=cause) as raised:
        training_device(name, found)
    line = str(raised.value)
    parts = (f"torch {found.torch}", f"node {found.node}", f"driver {found.driver or 'none'}", "device=cpu")
    assert all(part in line for part in (*parts, found.grant or f"device={name}"))
    assert "\n" not in line


def test_a_node_whose_gpus_do_not_answer_is_a_failed_one() -> None:
    """Wheel and driver are there, so another node may do; the job is requeued without this one."""
    with pytest.raises(RuntimeError, match="CUDA unknown error") as raised:
        training_device("auto", BLIND)
    assert device_error(str(raised.value))


def test_ranks_take_turns_on_the_gpus_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(gpus) for gpus in (8, 4, 2, 1, 0)] == [3, 3, 1, 0, 0]
    assert training_device("auto", replace(NODE, gpus=1)) == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # the only GPU that Slurm shows to this rank
    assert node_failures.node_failure("").device == "cuda:0 of CUDA_VISIBLE_DEVICES=3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert node_failures.node_failure("").device == "cuda:3 of CUDA_VISIBLE_DEVICES=0,1,2,3"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 18.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ],
)  # fmt: skip
def test_an_exhausted_memory_is_one_line_with_the_key(error: RuntimeError) -> None:
    with pytest.raises(UserError) as raised, memory_errors("runs/a", lambda: "set train.micro_batch=2"):
        raise error
    line = str(raised.value)
    assert line.startswith("runs/a: the memory of ")
    assert line.endswith("; set train.micro_batch=2")
    assert "\n" not in line
    assert ("18.00 GiB" in line) == ("18.00" in str(error))
    assert device_error(str(error)) is None  # no fault of the node


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("runs/a", lambda: ""):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_job_with_gpus_refuses_this_cpu_at_once(
    command: str, small_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any data are read: the corpus folder and the model do not exist."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(device, "granted_gpus", lambda environment: "SLURM_GPUS_ON_NODE=4")
    run_dir, corpus = tmp_path / "run", tmp_path / "corpus"
    if command == "pretrain":
        words = [*small_arguments, f"data.cache_dir={corpus}", f"run_dir={run_dir}"]
        start = partial(pretrain, commandline.load(command, words), Run(run_dir))
    else:
        words = [f"checkpoint={tmp_path / 'model'}", "source=en_demo", "data=demo", f"run_dir={run_dir}"]
        start = partial(finetune, commandline.load(command, words))
    with pytest.raises(UserError, match=r"SLURM_GPUS_ON_NODE=4.*device=cpu"):
        start(StopRequest())
    assert not corpus.exists()


def test_an_exhausted_memory_ends_a_run_with_one_line(
    forks: Forks, small_arguments: list[str], tmp_path: Path
) -> None:
    fault = Fault("backward", "MEMORY", call=3)
    done = forks.run([*small_arguments, f"run_dir={tmp_path / 'run'}"], faults=[fault])
    assert done.codes == [EXIT_USER]
    assert "Traceback" not in done.stderr[0]
    assert "set train.micro_batch=1 train.micro_batches_per_update=8 (the same 8 sequences" in done.stderr[0]


def test_deterministic_algorithms_are_all_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor_config

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # an operation without one is an error
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.backends.cudnn.benchmark
    assert inductor_config.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("objective", ["vanilla", "maml_paper"])
def test_a_deterministic_run_uses_no_other_operation_and_has_the_same_losses(
    objective: str, forks: Forks, small_arguments: list[str], tmp_path: Path
) -> None:
    """On a CPU, whose operations are deterministic in both cases."""
    words = [*small_arguments, f"objective={objective}", "train.max_steps=3"]
    runs = {setting: Run(tmp_path / setting) for setting in ("false", "true")}
    for setting, run in runs.items():
        done = forks.run([*words, f"train.deterministic={setting}", f"run_dir={run.path}"])
        assert done.codes == [0], done.stderr
    losses = [
        [value for line in run.metrics() for name, value in line.items() if "loss_nats" in name]
        for run in runs.values()
    ]
    assert losses[0] == losses[1] != []
    assert [run.starts()[0]["deterministic"] for run in runs.values()] == [False, True]
