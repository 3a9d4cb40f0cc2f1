"""Run commands of metapt, and programs of tests/, in forks of one process, with faults injected at named points.

Starting Python with torch and DeepSpeed takes seconds, a fork of such a process takes none, so that hundreds of runs
can be killed. `Forks` starts this file as a server process and sends it a `Request` as a line of JSON for each run; the
server answers with an `Outcome`.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
TIMEOUT = 600.0  # seconds; runs in tests take a few on an idle machine

# Functions at whose calls a fault can happen, by the name of the point.
FAULT_POINTS = {
    "unit": "metapt.training.trainer:Trainer.check_stop",
    "backward": "metapt.training.engine:Engine.backward",
    "step": "metapt.training.engine:Engine.step",
    "mean": "metapt.training.engine:Engine.mean",
    "inner loss": "metapt.meta.window_episodes:AdaptationCurve.record",
    "evaluation": "metapt.training.trainer:Trainer.evaluate",
    "metrics": "metapt.runs:MetricsWriter.write",
    "trimming": "metapt.runs:Run.trim_metrics",
    "checkpoint": "metapt.training.checkpoints:Checkpoints.save",
    "staging": "metapt.atomic_folders:staging",
    "engine": "metapt.training.engine:Engine.__init__",
    "engine file": "metapt.training.sharded_state:save_file",
    "loss": "metapt.models.meta_lm:MetaLM.lm_loss",
    "compilation": "torch._inductor.compile_fx:compile_fx",
    "export": "metapt.training.checkpoints:Checkpoints._export",
    "atomic write": "metapt.files:write_atomically",
    "sync": "metapt.files:sync",
    "commit": "metapt.atomic_folders:commit",
    "rename": "pathlib:Path.rename",
    "removal": "shutil:rmtree",
    "restore": "metapt.training.engine:Engine.load",
    "all-reduce": "torch.distributed:all_reduce",
    "newest checkpoint": "metapt.runs:Run.newest_checkpoint",
    "view": "metapt.training.checkpoints:Checkpoints._difference",
    "corpus": "metapt.data.corpus:prepare_corpus",
    "finish": "metapt.runs:Run.finish",
    "tuning": "metapt.finetuning.tuner:Tuner._step",
    "tuning save": "metapt.finetuning.resume:FinetuneCheckpoints.save",
    "tuning restore": "metapt.finetuning.resume:FinetuneCheckpoints.restore",
    "tagger": "metapt.finetuning.run_finetuning:write_tagger",
    "test set": "metapt.finetuning.score_sets:_score_set",
    "dev score": "metapt.finetuning.tuner:dev_scores",
    "word features": "metapt.finetuning.features:word_features",
    "cache": "metapt.finetuning.feature_cache:FeatureCache._store",
    "optimizer file": "torch:save",
}


@dataclass
class Fault:
    """What happens on one rank at a call of a fault point."""

    point: str
    action: str
    """Name of a signal without SIG, which the rank sends to itself; ENOSPC: the disk is full; MEMORY: that of the device is exhausted; NAN, at "backward": all
    gradients become NaN while the loss is finite; STALE: a network file system shows this rank an older state; WORSE, at "dev score": this rank returns the worst score."""
    call: int = 1
    """Number of the call, from 1."""
    after: bool = False
    """Whether it happens after the call instead of before it."""
    rank: int = 0


@dataclass
class Request:
    """A run of a program on some ranks."""

    argv: Sequence[str]
    program: str = "pretrain"
    """A command of metapt, or a module of tests/ with a function `main(argv)`."""
    ranks: int = 1
    faults: Sequence[Fault] = ()
    seconds: float | None = None
    """When to send `signal`, in seconds after the start; None sends none."""
    signal: str = "KILL"
    signal_ranks: Sequence[int] = ()
    """Ranks that receive `signal`; if empty, all do."""
    grace: float = 0.0
    """Seconds after which the other ranks are killed once a rank was killed."""
    timeout: float = TIMEOUT
    """Seconds after which all ranks are killed."""


@dataclass
class Outcome:
    """How a run ended; lists are by rank."""

    codes: list[int] = field(default_factory=list)
    """Exit codes; the negative signal number if a signal ended the rank."""
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    hung: bool = False
    """Whether it was killed after its timeout."""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return -signal.SIGKILL in self.codes


class Forks:
    """The server process; it runs as long as the `with` block."""

    def __enter__(self) -> Forks:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, str(Path(__file__))]
        self._process = subprocess.Popen(
            command, cwd=REPO, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()  # processes forked since may hold the pipe open, so that the server would wait for its end for ever
        self._process.wait()

    def run(self, argv: Sequence[str], **fields: Any) -> Outcome:
        """Run a Request with these fields."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(Request(argv, **fields))), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))

    def succeed(self, program: str, argv: Sequence[str], ranks: int = 1) -> list[str]:
        """Run a program that takes up to 15 minutes and must succeed; return what each rank wrote to stderr."""
        done = self.run(argv, program=program, ranks=ranks, timeout=900)
        assert done.codes == [0] * ranks, done.stderr
        return done.stderr

    def pretrain_many(self, runs: Sequence[Sequence[str]], ranks: int = 1) -> list[str]:
        """Run `metapt pretrain` for each list of arguments, one after the other; return the stderr of each rank."""
        return self.succeed("pretrain_many", [json.dumps(runs)], ranks)


def serve() -> None:
    """Answer the requests on stdin."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets background processes ignore
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_everything()
    for line in sys.stdin:
        values = json.loads(line)
        faults = [Fault(**fault) for fault in values.pop("faults")]
        print(json.dumps(asdict(run_ranks(Request(faults=faults, **values)))), file=answers, flush=True)
    os._exit(0)  # an ordinary exit unloads all modules, which takes seconds


def import_everything() -> None:
    """Import all that a run imports and fill its caches, without process groups and threads, which forks do not inherit."""
    for function in FAULT_POINTS.values():
        importlib.import_module(function.split(":")[0])
    for name in (
        "metapt.pretrain",
        "metapt.finetune_command",
        "metapt.finetuning.run_finetuning",
        "metapt.data.demo",
        "deepspeed.runtime.zero.muon.muon_optimizer",
    ):
        importlib.import_module(name)
    from metapt.training import sharded_state

    sharded_state.FILE_BYTES = 2**16  # so that there are several files, written by all ranks
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder)


def run_ranks(request: Request) -> Outcome:
    """Fork the ranks, send the requested signal, and wait for all."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as logs:
        files = [(Path(logs, f"out{rank}"), Path(logs, f"err{rank}")) for rank in range(request.ranks)]
        port = free_port() if request.ranks > 1 else 0
        running = {fork_rank(request, rank, port, *files[rank]): rank for rank in range(request.ranks)}
        outcome = supervise(request, running)
        outcome.stdout, outcome.stderr = (
            [file.read_text(errors="replace") for file in column] for column in zip(*files, strict=True)
        )
    outcome.seconds = time.monotonic() - started
    return outcome


def supervise(request: Request, running: dict[int, int]) -> Outcome:
    """Wait for the ranks, given by process id, and kill those that hang or that outlive a killed rank."""
    outcome = Outcome(codes=[0] * request.ranks)
    started = time.monotonic()
    kill_at = started + request.timeout
    signal_at = None if request.seconds is None else started + request.seconds
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if pid:
            code = os.waitstatus_to_exitcode(status)
            outcome.codes[running.pop(pid)] = code
            if code == -signal.SIGKILL:
                kill_at = min(kill_at, now + request.grace)
        elif now >= kill_at:
            outcome.hung = now >= started + request.timeout
            send("KILL", running)
            kill_at = float("inf")
        elif signal_at is not None and now >= signal_at:
            signal_at = None
            ranks = request.signal_ranks or range(request.ranks)
            send(request.signal, [pid for pid, rank in running.items() if rank in ranks])
        else:
            time.sleep(0.002)
    return outcome


def send(name: str, pids: Sequence[int] | dict[int, int]) -> None:
    for pid in pids:
        os.kill(pid, signal.Signals[f"SIG{name}"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork_rank(request: Request, rank: int, port: int, out: Path, err: Path) -> int:
    """Fork a rank; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
        if request.ranks > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request.ranks}
            os.environ |= {name: str(value) for name, value in (address | numbers).items()}
        code = run_program(request, rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_program(request: Request, rank: int) -> int:
    """Run the program on this rank with its faults; return the exit code."""
    from metapt.__main__ import COMMANDS
    from metapt.errors import run_command

    command = COMMANDS.get(request.program)
    program = importlib.import_module(command.module if command else request.program)
    for fault in request.faults:
        if fault.rank == rank:
            install(fault)
    sys.argv = [f"metapt.{request.program}", *request.argv]
    try:
        run_command(program.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def install(fault: Fault) -> None:
    """Wrap the function of a fault point so that the fault happens at its call."""
    module, path = FAULT_POINTS[fault.point].split(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls == fault.call
        if due and fault.action == "WORSE":
            return 0.0, 1e9
        if due and fault.action == "STALE":  # this rank sees the folder as it was before
            return (
                args[0].checkpoints()[0] if fault.point == "newest checkpoint" else "step_000009 is missing"
            )
        if due and not fault.after:
            trigger(fault.action, args)
        result = function(*args, **kwargs)
        if due and fault.after:
            trigger(fault.action, args)
        return result

    is_static = isinstance(vars(owner).get(name), staticmethod | classmethod)
    setattr(owner, name, staticmethod(faulty) if is_static else faulty)


def trigger(action: str, args: Sequence[Any]) -> None:
    """Carry out the action of a fault at a call with these arguments."""
    import torch

    if action == "ENOSPC":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if action == "MEMORY":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")
    if action == "NAN":
        args[1].register_hook(lambda gradient: gradient * float("nan"))
    else:
        os.kill(os.getpid(), signal.Signals[f"SIG{action}"])


if __name__ == "__main__":
    serve()
