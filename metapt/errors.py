"""Errors of a command and their exit codes.

0: done. 1: failed. 2: an error that the user can correct. 75: interrupted, and resumable by the same command
(sysexits.h EX_TEMPFAIL). 130: Ctrl-C in a command that has nothing to save, or a second one.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

EXIT_FAILED = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 75
EXIT_CTRL_C = 130
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals after which a run saves a checkpoint and exits with 75."""
UNUSABLE_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class UserError(Exception):
    """An error that the user can correct. The message names the file, line or key, and says what is allowed."""


class OperationalError(Exception):
    """A failure outside the program, such as a full disk, the cluster, or another process."""


class Interrupted(Exception):
    """A signal stopped the run, which has saved a checkpoint. The same command resumes it."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def listed(names: Sequence[str], limit: int) -> str:
    """The first `limit` names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def install_hint(extra: str) -> str:
    """How to install the packages of an extra. `metapt` on a package registry is another project."""
    return f"In a clone of the repository: pip install --constraint constraints.txt '.[{extra}]'"


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main(argv)` as a command-line program and exit with the code of its outcome.

    A reader of stdout that stops reading, as in `metapt pretrain --help | head`, is no error.
    """
    code = 0
    try:
        code = _exit_code(main)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not _stdout_has_no_reader():
            code = _report(error, EXIT_FAILED)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads of gloo may abort a rank that is torn down after another one has exited.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code(main: Callable[[Sequence[str]], None]) -> int:
    """Run `main`, print its error, and return the exit code. Raises BrokenPipeError."""
    try:
        main(sys.argv[1:])
    except SystemExit as stop:  # --help, --print-config
        if isinstance(stop.code, str):
            return _report(stop.code, EXIT_FAILED)
        return stop.code or 0
    except UserError as error:
        return _report(error, EXIT_USER)
    except Interrupted as error:
        # Slurm's signal arrives twice, from Slurm and from the launcher. The second must not kill this process.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        return _report(error, EXIT_INTERRUPTED, label="interrupted")
    except UNUSABLE_PATH as error:
        path = f"{error.filename}: " if error.filename else ""
        return _report(f"{path}{error.strerror or error}", EXIT_USER)
    except BrokenPipeError:
        raise
    except (OperationalError, OSError) as error:
        return _report(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_CTRL_C
    return 0


def _stdout_has_no_reader() -> bool:
    """Whether stdout is a pipe that nobody reads from any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # POLLERR is always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _report(error: BaseException | str, code: int, label: str = "error") -> int:
    """Print an error on stderr and return the exit code."""
    print(f"{label}: {error}", file=sys.stderr, flush=True)
    return code
