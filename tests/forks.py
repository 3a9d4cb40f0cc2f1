"""Runs of `metapt.pretrain` and `metapt.finetune` in forks of one process that has imported everything, with faults at named places.

A start of Python with torch and DeepSpeed costs seconds; a fork of it costs none, so that hundreds of runs can be
killed. `Forks` starts this file as a process and talks to it in lines of JSON: a `Request`, then an `Outcome`.
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
PATIENCE = 180.0  # seconds; a run of these tests takes a few, and one that takes longer hangs

PLACES = {
    "unit": "metapt.training.trainer:Trainer.poll",
    "backward": "metapt.training.engine:Engine.backward",
    "step": "metapt.training.engine:Engine.step",
    "mean": "metapt.training.engine:Engine.mean",
    "inner loss": "metapt.meta.objectives:Trace.record",
    "evaluation": "metapt.training.trainer:Trainer.evaluate",
    "metrics": "metapt.runs:MetricsWriter.write",
    "trimming": "metapt.runs:Run.trim_metrics",
    "checkpoint": "metapt.training.checkpoints:Checkpoints.save",
    "staging": "metapt.atomic_folders:staging",
    "engine": "metapt.training.engine:Engine.__init__",
    "engine file": "metapt.training.sharded_state:save_file",
    "loss": "metapt.models.meta_lm:MetaLM.lm_loss",
    "export": "metapt.training.checkpoints:Checkpoints._export",
    "atomic write": "metapt.files:write_atomically",
    "sync": "metapt.files:sync",
    "commit": "metapt.atomic_folders:commit",
    "rename": "pathlib:Path.rename",
    "removal": "shutil:rmtree",
    "restore": "metapt.training.engine:Engine.load",
    "corpus": "metapt.data.corpus:prepare_corpus",
    "finish": "metapt.runs:Run.finish",
    "tuning": "metapt.finetuning.tuner:Tuning._step",
    "tuning save": "metapt.finetuning.tuner:Tuning._save",
    "tuning restore": "metapt.finetuning.tuner:Tuning._restore",
    "tagger": "metapt.finetuning.tuner:Tuning.save_tagger",
    "test set": "metapt.finetuning.tuner:Tuning._evaluate",
    "dev score": "metapt.finetuning.tuner:dev_scores",
    "word features": "metapt.finetuning.tuner:word_features",
    "cache": "metapt.finetuning.feature_cache:FeatureCache._store",
    "optimizer file": "torch:save",
}


@dataclass
class Fault:
    """What happens to one rank when it comes to a place for the `call`-th time (from 1).

    `do` is a signal's name without SIG (the rank sends it to itself), `ENOSPC` (the disk is full), `NAN` (at
    "backward": all gradients become so, and the loss does not), or `WORSE` (at "dev score": this rank scores the worst).
    """

    place: str
    do: str
    call: int = 1
    after: bool = False
    rank: int = 0


@dataclass
class Request:
    """A run of `metapt.PROGRAM`. `signal` is sent to `signal_ranks` (none: all) after `seconds`; a killed rank takes the others along."""

    argv: Sequence[str]
    program: str = "pretrain"
    ranks: int = 1
    faults: Sequence[Fault] = ()
    seconds: float | None = None
    signal: str = "KILL"
    signal_ranks: Sequence[int] = ()
    grace: float = 0.0  # seconds that the others live longer than a killed rank


@dataclass
class Outcome:
    """Exit codes by rank (negative: the signal that ended it), what each printed, and whether it had to be ended."""

    codes: list[int] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    hung: bool = False
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return -signal.SIGKILL in self.codes


class Forks:
    """The process that forks, for as long as the `with` block lasts."""

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
        self._process.wait()

    def run(self, argv: Sequence[str], **more: Any) -> Outcome:
        """The outcome of a Request with these fields."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(Request(argv, **more))), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Answers the requests on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_everything()
    for line in sys.stdin:
        values = json.loads(line)
        faults = [Fault(**fault) for fault in values.pop("faults")]
        print(json.dumps(asdict(attempt(Request(faults=faults, **values)))), file=answers, flush=True)
    os._exit(0)  # nothing is left to do, and taking all modules down takes seconds


def import_everything() -> None:
    """All that a run imports and caches, but no process group and no threads, which a fork would lose."""
    for place in PLACES.values():
        importlib.import_module(place.split(":")[0])
    for name in (
        "metapt.pretrain",
        "metapt.finetune",
        "metapt.finetuning.run_finetuning",
        "metapt.data.demo",
        "deepspeed.runtime.zero.muon.muon_optimizer",
    ):
        importlib.import_module(name)
    from metapt.training import sharded_state

    sharded_state.FILE_BYTES = 2**16  # several files, written by all ranks
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder)


def attempt(request: Request) -> Outcome:
    """Forks the ranks, sends what is to be sent, and waits for all."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as logs:
        files = [(Path(logs, f"out{rank}"), Path(logs, f"err{rank}")) for rank in range(request.ranks)]
        port = free_port() if request.ranks > 1 else 0
        running = {fork_rank(request, rank, port, *files[rank]): rank for rank in range(request.ranks)}
        outcome = supervise(request, running)
        outcome.printed, outcome.errors = (
            [file.read_text(errors="replace") for file in column] for column in zip(*files, strict=True)
        )
    outcome.seconds = time.monotonic() - began
    return outcome


def supervise(request: Request, running: dict[int, int]) -> Outcome:
    outcome = Outcome(codes=[0] * request.ranks)
    began = time.monotonic()
    end_of_all = began + PATIENCE
    send_at = None if request.seconds is None else began + request.seconds
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if pid:
            code = os.waitstatus_to_exitcode(status)
            outcome.codes[running.pop(pid)] = code
            if code == -signal.SIGKILL:
                end_of_all = min(end_of_all, now + request.grace)
        elif now >= end_of_all:
            outcome.hung = now >= began + PATIENCE
            send("KILL", running)
            end_of_all = float("inf")
        elif send_at is not None and now >= send_at:
            send_at = None
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
    """The process number of a new rank."""
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
        code = in_child(request, rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_child(request: Request, rank: int) -> int:
    from metapt.errors import run_command

    program = importlib.import_module(f"metapt.{request.program}")
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
    """Wraps the function of a place so that the fault happens at its call."""
    module, path = PLACES[fault.place].split(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for step in owners:
        owner = getattr(owner, step)
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls == fault.call
        if due and fault.do == "WORSE":
            return 0.0, 1e9
        if due and not fault.after:
            happen(fault.do, args)
        result = function(*args, **kwargs)
        if due and fault.after:
            happen(fault.do, args)
        return result

    bound = isinstance(vars(owner).get(name), staticmethod | classmethod)
    setattr(owner, name, staticmethod(faulty) if bound else faulty)


def happen(what: str, args: Sequence[Any]) -> None:
    if what == "ENOSPC":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "NAN":
        args[1].register_hook(lambda gradient: gradient * float("nan"))
    else:
        os.kill(os.getpid(), signal.Signals[f"SIG{what}"])


if __name__ == "__main__":
    serve()
