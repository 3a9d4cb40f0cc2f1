"""The three ways in which a command ends badly, and their exit codes.

2: a mistake of the user's (one readable line, no traceback); 75: interrupted, and resumable by the same
command (sysexits.h EX_TEMPFAIL); 1: anything else.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

EXIT_FAILED = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 75
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)  # ask a run to save and end with 75


class UserError(Exception):
    """Something the user can put right: the message names the file, line or field, and what would be right."""


class OperationalError(Exception):
    """Something outside the program went wrong (disk, cluster, another process): one line, exit code 1."""


class Interrupted(Exception):
    """The run was told to stop, has saved, and goes on when the same command is given again."""


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(argv)` as a command line program and exits with the code that the outcome deserves."""
    code = _outcome(main)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # gloo's threads may abort a rank that is torn down while another one has gone already
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _outcome(main: Callable[[Sequence[str]], None]) -> int:
    """Runs it; the exit code."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has gone, as in `metapt --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit fails no more
        return 0
    except UserError as error:
        return _say(error, EXIT_USER)
    except Interrupted as error:
        # Slurm's warning comes twice, from it and from the launcher: the second must not turn 75 into death by signal
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        return _say(error, EXIT_INTERRUPTED, label="interrupted")
    except (
        FileNotFoundError,
        FileExistsError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
    ) as error:
        path = f"{error.filename}: " if error.filename else ""
        return _say(f"{path}{error.strerror or error}", EXIT_USER)  # a path that cannot be used
    except (OperationalError, OSError) as error:
        return _say(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return 130
    return 0


def _say(error: BaseException | str, code: int, label: str = "error") -> int:
    print(f"{label}: {error}", file=sys.stderr, flush=True)
    return code
