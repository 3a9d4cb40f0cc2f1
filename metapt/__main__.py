"""metapt COMMAND ...: the one entry point. Each command is a module with a `main`, imported only when it is called.

`metapt --help`, `metapt --version` and `metapt report` need nothing beyond the `report` extra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from metapt import __version__
from metapt.errors import UserError, run_command


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that runs it, the extra that it needs, and one line for `metapt --help`."""

    module: str
    extra: str
    summary: str


COMMANDS = {
    "pretrain": Command("metapt.pretrain", "train", "pretrain a decoder, with or without MAML episodes"),
    "finetune": Command("metapt.finetune", "train", "fine-tune a model as a NER tagger and score it on test sets"),
    "tag": Command("metapt.tag", "train", "tag text or CoNLL files with a fine-tuned tagger"),
    "baseline": Command("metapt.baseline", "train", "score a rule or a surface-feature CRF on the same test sets"),
    "submit": Command("metapt.submit", "train", "run a grid of jobs on this machine or on Slurm"),
    "status": Command("metapt.status", "train", "show what of a grid is done, running, queued or failed"),
    "prepare": Command("metapt.prepare", "train", "tokenize a corpus before the runs that read it"),
    "estimate": Command("metapt.estimate.command", "train", "estimate memory, FLOPs and hours of a pretraining run"),
    "report": Command("metapt.analysis.report", "report", "turn run folders into one HTML page with tables and figures"),
    "describe": Command("metapt.data.describe", "train", "print statistics of labelled sets and of a tokenizer on them"),
}  # fmt: skip
HELP = ("-h", "--help")


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first word names with the words after it.

    Raises:
        UserError: no such command, or the packages that it needs are not installed.
    """
    if not argv or argv[0] in HELP:
        print(usage())
        return
    name, *words = argv
    if name == "--version":
        print(f"metapt {__version__}")
        return
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}"
        raise UserError(f"metapt {name}: no such command; {hint}")
    _load(name)(words)


def usage() -> str:
    """What `metapt --help` prints: one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metapt COMMAND [key=value ...]",
            "",
            *lines,
            "",
            "metapt COMMAND --help  lists the keys of a command, with their defaults",
            "metapt --version       prints the version",
        ]
    )


def _load(name: str) -> Callable[[Sequence[str]], None]:
    """The `main` of a command."""
    command = COMMANDS[name]
    try:
        return import_module(command.module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "metapt":
            raise
        raise UserError(
            f"metapt {name} needs the extra [{command.extra}]: the package {error.name!r} is not installed. "
            f"In a clone of the repository: pip install --constraint constraints.txt '.[{command.extra}]'"
        ) from None


def command() -> None:
    """The console script `metapt`."""
    run_command(main)


if __name__ == "__main__":
    command()
