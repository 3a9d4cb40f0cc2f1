"""The command `metapt`: its table, closed pipes, and installations without the packages of an extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, run_module

from metapt import __version__
from metapt.__main__ import COMMANDS
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Plan

BASE = {"numpy", "yaml", "scipy", "regex", "hydra", "omegaconf", "antlr4", "packaging"}
NEWS = str(REPO / "tests" / "recorded" / "news.conll")
REPORT = {  # the extra `report` and what its packages import
    *("fontTools", "jinja2", "markupsafe", "matplotlib", "mpl_toolkits", "msgspec", "orjson", "pyarrow"),
    *("PIL", "contourpy", "cycler", "dateutil", "kiwisolver", "packaging", "pyparsing", "six"),
}
BLOCKER = """
import sys
allowed = {*sys.stdlib_module_names, "metapt", "analysis", "sitecustomize", *ALLOWED}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith(("__editable__", "_sysconfigdata")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_without_other_packages(
    folder: Path, allowed: set[str], *words: str
) -> subprocess.CompletedProcess[str]:
    """`metapt WORDS` in a Python that finds only the allowed packages beside the standard library and ours."""
    (folder / "sitecustomize.py").write_text(BLOCKER.replace("*ALLOWED", f"*{sorted(allowed)}"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPO)])}
    command = [sys.executable, "-m", "metapt", *words]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)


def test_help_is_a_table_with_one_line_per_command():
    done = run_module("metapt", ["--help"])
    assert done.returncode == 0
    rows = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [row.split()[0] for row in rows] == list(COMMANDS)
    assert all(command.summary in row for row, command in zip(rows, COMMANDS.values(), strict=True))
    assert max(map(len, rows)) <= 100
    assert run_module("metapt", []).stdout == done.stdout


def test_unknown_command():
    done = run_module("metapt", ["pretrian"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: metapt pretrian: no such command; did you mean pretrain?\n"


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_a_reader_that_closes_the_pipe_is_no_error(words: list[str]):
    """As in `metapt ... | head`: here nobody reads at all, so that every write to stdout fails."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "metapt", *words]
    done = subprocess.run(command, cwd=REPO, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_to_head():
    script = f"set -o pipefail; {sys.executable} -m metapt pretrain --help | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: metapt pretrain ")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "allowed", "output"),
    [
        (["--help"], BASE, "usage: metapt COMMAND"),
        (["--version"], BASE, f"metapt {__version__}\n"),
        (["report", "--help"], BASE | REPORT, "usage: metapt report"),
        (["estimate", "model=tiny"], BASE, "tiny: "),
        (["score", NEWS, NEWS, NEWS, "name=a", "name_b=b"], BASE, "a on news: 8 sentences, 72 words"),
        (["sbatch", "--help"], BASE, "usage: metapt sbatch"),
    ],
    ids=["--help", "--version", "report --help", "estimate", "score", "sbatch --help"],
)
def test_commands_without_the_extra_train(tmp_path: Path, words: list[str], allowed: set[str], output: str):
    done = run_without_other_packages(tmp_path, allowed, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(output)


NEEDS_EXTRA = [  # words that reach an import of a package of the command's extra
    ["pretrain"],
    ["finetune", "checkpoint=x", "source=x", "run_dir=x"],
    ["tag", "--help"],
    ["evaluate", "checkpoint=x"],
    ["generate", "checkpoint=x"],
    ["baseline", "name=particle", "data=demo", f"run_dir={os.devnull}/x"],
    ["submit", "--help"],
    ["status", "root=GRID"],
    ["prepare"],
    ["probe", "checkpoint=x"],
    ["report", "--help"],
    ["describe", "--help"],
]


@pytest.mark.parametrize("words", NEEDS_EXTRA, ids=[words[0] for words in NEEDS_EXTRA])
def test_a_command_without_its_extra_names_the_extra(tmp_path: Path, words: list[str]):
    name, extra = words[0], COMMANDS[words[0]].extra
    GridDir(tmp_path).write_plan(Plan("empty", ()))
    done = run_without_other_packages(
        tmp_path, BASE, *(word.replace("GRID", str(tmp_path)) for word in words)
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: metapt {name} needs the extra [{extra}]: the package '")
    assert f"pip install --constraint constraints.txt '.[{extra}]'" in error


def test_every_command_with_an_extra_is_tried_without_it():
    assert [words[0] for words in NEEDS_EXTRA] == [
        name for name, command in COMMANDS.items() if command.extra
    ]


@pytest.mark.parametrize("name", ["pretrain", "finetune", "tag", "baseline", "submit", "status", "prepare"])
def test_a_command_is_a_module_too(name: str):
    done = run_module(f"metapt.{name}", ["--help"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: metapt")
