"""The command `metapt COMMAND ...`. Each command is a module with a `main`, imported only when it runs.

`metapt --help`, `metapt --version` and `metapt score` need no extra, `metapt report` only the extra `report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from metapt import __version__
from metapt.errors import UserError, install_hint, run_command


@dataclass(frozen=True)
class Command:
    """A command: one line for `metapt --help`, the module that runs it, and the extra whose packages it needs, if any."""

    summary: str
    module: str
    extra: str = "train"


COMMANDS = {
    "pretrain": Command("pretrain a decoder, with or without MAML episodes", "metapt.pretrain"),
    "finetune": Command(
        "fine-tune a model as a NER tagger and evaluate it on test sets",
        "metapt.finetune_command",
        "finetune",
    ),
    "tag": Command("tag text or CoNLL files with a fine-tuned tagger", "metapt.tag", "tag"),
    "evaluate": Command(
        "score a tagger on test sets, or a language model on text", "metapt.evaluate_command", "finetune"
    ),
    "generate": Command("sample text from a language model", "metapt.generate", "tag"),
    "baseline": Command(
        "score a rule or a surface-feature CRF on the test sets", "metapt.baseline", "finetune"
    ),
    "score": Command(
        "score the predictions of any program, or compare two", "metapt.score_command", extra=""
    ),
    "submit": Command("run a grid of jobs on this machine or on Slurm", "metapt.submit"),
    "sbatch": Command(
        "submit slurm/pretrain.sh or finetune.sh with a site's settings", "metapt.sbatch", extra=""
    ),
    "status": Command("show which jobs of a grid are done, running, queued or failed", "metapt.status"),
    "prepare": Command("tokenize a corpus into shards before the runs that read it", "metapt.prepare"),
    "probe": Command("score a checkpoint on fixed episodes of held-out text and words", "metapt.probe"),
    "estimate": Command(
        "estimate memory, FLOPs and hours of a pretraining run", "metapt.estimate.command", extra=""
    ),
    "report": Command(
        "turn run folders into one HTML page with tables and figures",
        "metapt.analysis.report",
        extra="report",
    ),
    "describe": Command(
        "print statistics of labelled sets and of a tokenizer on them", "metapt.data.describe", "finetune"
    ),
}
HELP = ("-h", "--help")


def main(argv: Sequence[str]) -> None:
    """Run the command that the first argument names, with the other arguments.

    Raises:
        UserError: there is no such command, or a package that it needs is not installed.
    """
    if not argv or argv[0] in HELP:
        print(usage())
        return
    name, *arguments = argv
    if name == "--version":
        print(f"metapt {__version__}")
        return
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}"
        raise UserError(f"metapt {name}: no such command; {hint}")
    run(name, arguments)


def usage() -> str:
    """What `metapt --help` prints: a table with one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metapt COMMAND [key=value ...]",
            "",
            *lines,
            "",
            "metapt COMMAND --help  print the keys of a command with their defaults",
            "metapt --version       print the version",
        ]
    )


def run(name: str, arguments: Sequence[str]) -> None:
    """Run one command.

    Raises:
        UserError: a package that it needs is not installed.
    """
    command = COMMANDS[name]
    try:
        import_module(command.module).main(arguments)
    except ModuleNotFoundError as error:
        if not command.extra or error.name is None or error.name.partition(".")[0] == "metapt":
            raise
        raise UserError(
            f"metapt {name} needs the extra [{command.extra}]: the package {error.name!r} is not installed. "
            f"{install_hint(command.extra)}"
        ) from None


def command() -> None:
    """The console script `metapt`."""
    run_command(main)


if __name__ == "__main__":
    command()
