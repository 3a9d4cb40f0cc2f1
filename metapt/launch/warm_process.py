"""A process that has imported what fine-tuning needs, and forks for every run: a run with a frozen decoder takes less time than
the imports.

    launcher                        warm process                     run
    WarmProcess.start    ------>    reads {module, argv, logs}
                                    forks                  ------>   redirects its output, and runs as `python -m MODULE`
    ForkedProcess        <------    writes {pid}
    .poll                <------    writes {code} when it has ended  exits

Runs share nothing but what was imported before: each one has its own memory, session and exit code, and ends like one that was started
by itself, also when the launcher is killed. One run at a time.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from metapt.errors import EXIT_INTERRUPTED
from metapt.launch.process import prepare_child

IMPORTED = (  # by name, since this package must not depend on fine-tuning
    "hydra",
    "metapt.finetuning.cross_validation",
    "metapt.finetuning.run_finetuning",
    "transformers.models.llama.modeling_llama",
)


class WarmProcess:
    """The warm process, from the side of the launcher. It is started at once, and ends with `close` or with this process.

    Args:
        environment: of the process and of all its runs.
        imported: modules that it imports first.
    """

    def __init__(self, environment: Mapping[str, str], imported: Sequence[str] = IMPORTED):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "metapt.launch.warm_process", *imported],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(prepare_child, os.getpid()),
        )
        self._received = b""
        self._run: ForkedProcess | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it has no run at present."""
        return self._run is None or self._run.poll() is not None

    def start(
        self, module: str, argv: Sequence[str], output_log: Path, error_log: Path
    ) -> ForkedProcess | None:
        """Start a run, once the imports are done. None: the warm process is gone, and the run needs a process of its own.

        The last run has ended (`is_idle`).

        Args:
            module: that runs as `python -m` runs it.
            output_log, error_log: to which its output is appended.
        """
        request = {"module": module, "argv": [*argv], "logs": [str(output_log), str(error_log)]}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
        answer = self.receive(timeout=None)
        self._run = None if answer is None else ForkedProcess(self, answer["pid"])
        return self._run

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        """The next line of the warm process; {} if there is none within `timeout` seconds, None if there will be none."""
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                return {}
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                return None
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the warm process; a run that it has started is asked to save and exit."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.terminate()
        self._process.wait()


class ForkedProcess:
    """A run that a warm process has started, with the methods of subprocess.Popen that launchers use."""

    def __init__(self, warm: WarmProcess, pid: int):
        self.pid = pid
        self._warm = warm
        self._code: int | None = None

    def poll(self) -> int | None:
        """None while the run goes on, then its exit code: that of an interrupted one if the warm process was killed."""
        if self._code is None:
            answer = self._warm.receive(timeout=0)
            self._code = EXIT_INTERRUPTED if answer is None else answer.get("code")
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal to the run, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the run."""
        self.send_signal(signal.SIGKILL)


def serve(imported: Sequence[str]) -> None:
    """The warm process: imports modules, then forks for every line of stdin until it is closed.

    In the fork, this function runs the module of the line to its end.
    """
    for name in imported:
        import_module(name)
    own = os.getpid()
    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            _run(json.loads(line), own)
            return
        _send({"pid": pid})
        _, status = os.waitpid(pid, 0)
        _send({"code": os.waitstatus_to_exitcode(status)})


def _send(answer: dict[str, int]) -> None:
    os.write(1, f"{json.dumps(answer)}\n".encode())


def _run(request: dict[str, Any], parent: int) -> None:
    """Become the process of a run."""
    os.setsid()
    prepare_child(parent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, log in enumerate(request["logs"], start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), number)
    sys.argv = [request["module"], *request["argv"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
