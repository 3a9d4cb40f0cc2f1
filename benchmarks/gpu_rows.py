"""The checks of benchmarks/gpu.py: `python benchmarks/gpu_rows.py ROW SETTINGS` prints outcome and text as JSON.

A row compares with what the CPU tests compare with: losses of runs with each other, memory and time with their estimates.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS: dict[str, str] = json.loads(sys.argv[2]) if __name__ == "__main__" else {}
sys.path[:0] = SETTINGS.get("path", "").split(":")
OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
Outcome = tuple[str, str]
NANO = {
    "model": "nano",
    "data": "demo",
    "objective": "maml_paper",
    "data.cache_dir": "corpus",
    "train.precision": "fp32",
    "train.seq_len": "64",
    "train.micro_batch": "4",
    "train.micro_batches_per_update": "4",
    "train.warmup_steps": "1",
    "train.schedule": "constant",
    "train.max_steps": "8",
    "train.checkpoint_every": "4",
    "train.eval_every": "8",
    "train.eval_sequences": "8",
    "train.dynamics_every": "0",
}
MEMORY_TOLERANCE, LOSS_TOLERANCE, BF16_TOLERANCE = 0.15, 1e-4, 0.02
WARM_UP, REPETITIONS = 3, 10


def environment() -> Outcome:
    """Name, capability, memory and driver of the GPU, and whether bf16 and flash attention are there."""
    import torch

    from metapt.models.device import nvidia_driver

    if not torch.cuda.is_available():
        is_fine = SETTINGS["device"] == "cpu"
        return (
            OK if is_fine else FAILED,
            f"no GPU: torch {torch.__version__}, driver {nvidia_driver() or 'none'}",
        )
    properties = torch.cuda.get_device_properties(0)
    return OK, (
        f"{properties.name}, capability {properties.major}.{properties.minor}, {properties.total_memory / 1e9:.0f} GB, driver "
        f"{nvidia_driver()}, CUDA {torch.version.cuda}, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
    )


def pretrain(name: str, **changes: str) -> list[float]:
    """Run `metapt pretrain` of nano in a process of its own; return the losses of its updates.

    Args:
        changes: values of keys of `train`, or of ds.
    """
    keys = {f"train.{key}" if key != "ds" else key: value for key, value in changes.items()}
    arguments = [f"{key}={value}" for key, value in {**NANO, **keys, "run_dir": name}.items()]
    program = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from metapt.pretrain import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, SETTINGS["path"], *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return losses_of(Path(name))


def losses_of(run: Path, kinds: tuple[str, ...] = ("lm", "episode")) -> list[float]:
    """The loss of each update of some kinds of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] in kinds]
    return [line.get("lm_loss_nats", line.get("query_loss_nats")) for line in updates]


def reference() -> list[float]:
    """The losses of the run with zero0; it is made if it is not there."""
    return (
        losses_of(Path("zero0")) if Path("zero0", "result.json").exists() else pretrain("zero0", ds="zero0")
    )


def compare(losses: list[float], expected: list[float], tolerance: float) -> Outcome:
    """Whether two lists of losses agree; the largest relative difference."""
    difference = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
    verdict = OK if difference <= tolerance else FAILED
    return (
        verdict,
        f"losses of {len(losses)} updates differ by {difference:.1e} at most (limit {tolerance:.0e})",
    )


def zero(stage: str) -> Outcome:
    """A ZeRO stage on one rank against stage 0."""
    if stage == "zero0":
        reference()
        losses = losses_of(Path("zero0"), kinds=("lm",))
        verdict = OK if losses[-1] < losses[0] - 0.1 else FAILED
        return verdict, f"next-token loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} updates"
    return compare(pretrain(stage, ds=stage), reference(), LOSS_TOLERANCE)


def bf16() -> Outcome:
    """bf16 against fp32."""
    return compare(pretrain("bf16", precision="bf16"), reference(), BF16_TOLERANCE)


def compiled() -> Outcome:
    """Compiled against eager."""
    return compare(pretrain("compiled", compile="true"), reference(), 1e-3)


def resume() -> Outcome:
    """A run of four updates that is made longer, against one of eight from the start."""
    pretrain("resumed", max_steps="4")
    losses, expected = pretrain("resumed"), reference()
    verdict, text = compare(losses, expected, LOSS_TOLERANCE)
    return verdict, f"bit-identical: {'yes' if losses == expected else 'no'}; {text}"


def configuration(size: str, *words: str) -> Any:
    """The shipped configuration of a scale; shorter sequences in the reduced form."""
    from metapt.config import commandline

    reduced = ["train.seq_len=64", "train.micro_batch=2"] if SETTINGS["reduced"] == "True" else []
    return commandline.load("pretrain", [f"model={size}", "objective=maml_paper", *reduced, *words])


def micro_batch_step(config: Any, compile_parts: bool = False) -> Callable[[], None]:
    """The forward and backward pass of a next-token micro-batch on the device, with an update by AdamW."""
    import torch

    from metapt.models.meta_lm import build_meta_lm

    device = SETTINGS["device"]
    meta_lm = build_meta_lm(config).to(device)
    if compile_parts:
        meta_lm.compile_parts((config.train.micro_batch, config.train.seq_len))
    optimizer = torch.optim.AdamW(meta_lm.parameters(), fused=True)
    shape = (config.train.micro_batch, config.train.seq_len + 1)
    sequences = torch.randint(0, config.model.vocab_size, shape, device=device)

    def step() -> None:
        meta_lm.lm_loss(sequences).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(step: Callable[[], object]) -> float:
    """Median seconds of a call after a warm-up."""
    import statistics

    import torch

    is_cuda = SETTINGS["device"] == "cuda"
    times = []
    for number in range(WARM_UP + REPETITIONS if is_cuda else 2):
        started = time.perf_counter()
        step()
        if is_cuda:
            torch.cuda.synchronize()
        if number >= (WARM_UP if is_cuda else 1):
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def memory(size: str) -> Outcome:
    """Estimated and measured peak memory of a next-token update with one micro-batch, ZeRO 0."""
    import torch

    from metapt.estimate.memory import Ranks, peak
    from metapt.meta.objectives import next_token_objective
    from metapt.models.meta_lm import build_meta_lm
    from metapt.training.engine import Engine

    config = configuration(size, "train.micro_batches_per_update=1")
    moment, estimate = peak(config, "lm", Ranks(1, SETTINGS["device"]))
    engine = Engine(build_meta_lm(config), config)
    shape = (config.train.micro_batch, config.train.seq_len + 1)
    sequences = torch.randint(0, config.model.vocab_size, shape, device=engine.device)
    for _ in range(2):
        engine.backward(next_token_objective(engine.meta_lm, sequences).loss, last=True)
        engine.step(1e-4)
    text = f"estimated {estimate.total / 2**30:.2f} GiB at the {moment}"
    if engine.device.type != "cuda":
        return SKIPPED, f"{text}; torch does not count the memory of a CPU"
    measured = torch.cuda.max_memory_allocated()
    ratio = estimate.total / measured
    verdict = OK if abs(ratio - 1) <= MEMORY_TOLERANCE else FAILED
    return verdict, f"{text}, measured {measured / 2**30:.2f} GiB, ratio {ratio:.2f}"


def speed(size: str, compile_parts: bool = False) -> Outcome:
    """Time of a micro-batch with its update, MFU, and the estimated time."""
    import torch

    from metapt.estimate.flops import flops_of_step
    from metapt.estimate.gpus import GPUS
    from metapt.estimate.kernels import micro_batch_work, step_work
    from metapt.estimate.memory import Ranks
    from metapt.estimate.speed import Machine

    config = configuration(size, "train.micro_batches_per_update=1")
    seconds = seconds_of(micro_batch_step(config, compile_parts))
    text = f"{config.train.micro_batch} x {config.train.seq_len} tokens, {config.train.precision}: {1000 * seconds:.1f} ms"
    name = torch.cuda.get_device_name(0) if SETTINGS["device"] == "cuda" else "cpu"
    gpu = next((GPUS[key] for part, key in MARKETED.items() if re.search(part, name)), None)
    if gpu is None:
        return OK, f"{text}; the peak of {name} is not known"
    machine = Machine(
        Ranks(1, "cuda"), tflops=gpu.tflops[config.train.precision], bandwidth_gbs=gpu.bandwidth_gbs
    )
    estimate = machine.seconds(micro_batch_work(config, compile_parts)) + machine.seconds(step_work(config))
    utilization = flops_of_step(config, False) / seconds / (gpu.tflops[config.train.precision] * 1e12)
    return OK, f"{text}, MFU {utilization:.1%}; estimated {1000 * estimate:.1f} ms"


MARKETED = {
    "A100.*80GB": "a100-80",
    "A100.*40GB": "a100-40",
    "H200": "h200",
    "H100 PCIe": "h100-pcie",
    "H100": "h100-sxm",
    "L40S": "l40s",
    "L4$": "l4",
    "T4$": "t4",
    "RTX 4090": "rtx4090",
}
"""GPUs by their names in `metapt estimate`, and a part of the name that torch gives them."""


def episode(size: str) -> Outcome:
    """Time of an episode relative to a micro-batch."""
    from steps import random_task

    from metapt.meta.window_episodes import episode_objective
    from metapt.models.meta_lm import build_meta_lm

    is_reduced = SETTINGS["reduced"] == "True"
    small = ["meta.n_way=4", "meta.window=32", "meta.min_context=4"] if is_reduced else []
    config = configuration(size, "meta.max_window_fraction=1", *small)
    task = random_task(config, 50_000 if is_reduced else 2_000_000)
    meta_lm = build_meta_lm(config).to(SETTINGS["device"])

    def step() -> None:
        episode_objective(meta_lm, task, config.meta, 0, 0, 0).loss.backward()
        meta_lm.zero_grad()

    seconds = seconds_of(step)
    baseline = seconds_of(micro_batch_step(config))
    return (
        OK,
        f"{1000 * seconds:.1f} ms, {seconds / baseline:.2f} of a micro-batch of {config.train.micro_batch} x {config.train.seq_len}",
    )


def tagging() -> Outcome:
    """Latency of tagging one sentence, and sentences a second in batches, with random weights."""
    import tempfile

    from tagging import sentences, write_tagger

    import metapt
    from metapt.data import demo
    from metapt.data.tokenizers import train_tokenizer

    texts = sentences()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(demo.documents(demo.SEED), 2048)
        write_tagger(Path(folder, "tagger"), "small", tokenizer)
        tagger = metapt.load_tagger(Path(folder, "tagger"), device=SETTINGS["device"])
    one = seconds_of(lambda: tagger.tag(texts[:1]))
    batch = seconds_of(lambda: tagger.tag(texts))
    return (
        OK,
        f"small: {1000 * one:.1f} ms for a sentence, {len(texts) / batch:.0f} sentences a second in batches",
    )


def measure(name: str) -> Outcome:
    """The outcome of a row."""
    kind, _, size = name.rpartition(" ")
    if kind in ("memory", "speed", "episode"):
        return {"memory": memory, "speed": speed, "episode": episode}[kind](size)
    if kind == "speed compiled":
        return speed(size, compile_parts=True)
    if name.startswith("zero"):
        return zero(name)
    rows = {
        "environment": environment,
        "bf16": bf16,
        "compiled": compiled,
        "resume": resume,
        "tagging": tagging,
    }
    return rows[name]()


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
