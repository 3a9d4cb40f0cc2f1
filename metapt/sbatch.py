"""The command `metapt sbatch`: submit a batch script with the settings of a site.

It writes the settings of `cluster=./site.yaml` into a copy of slurm/pretrain.sh or slurm/finetune.sh, and calls sbatch.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from metapt.config import ClusterConfig, commandline
from metapt.config.option_files import is_file, read_option_file
from metapt.errors import OperationalError, UserError, run_command
from metapt.launch.hub_inputs import fetch_run_inputs, shell_lines
from metapt.launch.job_environment import without_job_environment
from metapt.launch.site_settings import sbatch_options, script_lines

USAGE = """\
usage: metapt sbatch cluster=FILE.yaml [sbatch option ...] SCRIPT.sh [key=value ...]

Submit slurm/pretrain.sh or slurm/finetune.sh with the settings of a site. Options of sbatch are written
--NAME=VALUE and take precedence over those of the site. Before the script, cluster.KEY=VALUE changes a setting
that a single run has; after it come the keys of the run. `metapt submit --help` lists the settings.

  metapt sbatch cluster=./site.yaml --nodes=2 --gpus-per-node=4 slurm/pretrain.sh \\
      model=large data=text data.text_dir=TEXT run_dir=runs/large
"""
PROGRAM = re.compile(
    r"^MODULE=metapt\.(pretrain|finetune)(?:_command)?$", re.MULTILINE
)  # in the scripts of metapt
SETTINGS = {
    *("partition", "account", "qos", "exclude", "extra"),
    *("timeout_min", "signal_delay_s", "mem_gb", "cpus_per_task"),
    *("modules", "exports", "setup", "python", "launcher", "srun_args", "online", "cache"),
}
"""The keys of the cluster that have an effect on a single run."""
REPLACED = {"cpus-per-task": ("--cpus-per-gpu=",), "mem": ("--mem-per-cpu=", "--mem-per-gpu=")}
"""Options of a site, and those that sbatch does not take beside them."""
MARKER = "# ---- site"  # begins the line of a script after which the settings are inserted


@dataclass(frozen=True)
class Request:
    """The parts of a command line: words about the cluster, options of sbatch, the script, and the words of the run."""

    settings: list[str]
    options: list[str]
    script: Path
    words: list[str]


def main(argv: Sequence[str]) -> None:
    """Submit a batch script with the settings of a site.

    Raises:
        UserError: the command line, the site file or the script has errors, a setting has no effect on a single run, or
            sbatch is not installed.
        OperationalError: sbatch refuses the job.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, end="")
        return
    request = read_request(argv)
    cluster = commandline.load("submit", ["grid=demo", *request.settings]).cluster
    if cluster.name != "slurm":
        raise UserError(f"metapt sbatch needs cluster=slurm or a site file of it, not cluster={cluster.name}")
    _refuse_settings_of_grids(request)
    text = with_site(request.script, cluster)
    if command := PROGRAM.search(text):
        for line in fetch_run_inputs(command[1], request.words, cluster):
            print(line, flush=True)
    with TemporaryDirectory() as folder:
        copy = Path(folder, request.script.name)
        copy.write_text(text, encoding="utf-8")
        words = ["sbatch", *site_words(request, cluster), *request.options, str(copy), *request.words]
        with without_job_environment():
            _run(words)


def read_request(argv: Sequence[str]) -> Request:
    """The parts of a command line.

    Raises:
        UserError: there is no script, or a word before it is neither an option of sbatch nor a setting of the cluster.
    """
    number = next((number for number, word in enumerate(argv) if word.endswith(".sh")), None)
    if number is None:
        raise UserError(f"metapt sbatch: no script, such as slurm/pretrain.sh, is given\n{USAGE}".rstrip())
    before = argv[:number]
    settings = [word for word in before if word.startswith(("cluster=", "cluster."))]
    options = [word for word in before if word.startswith("--")]
    if others := [word for word in before if word not in (*settings, *options)]:
        raise UserError(
            f"{others[0]!r}: before the script come cluster=FILE.yaml, cluster.KEY=VALUE and options of sbatch, "
            "written --NAME=VALUE"
        )
    return Request(settings, options, Path(argv[number]), list(argv[number + 1 :]))


def _refuse_settings_of_grids(request: Request) -> None:
    """Raises UserError if the command line sets keys that only grids have. A site file may: it is for grids too."""
    names = [word.partition("=")[0] for word in request.settings]
    if unused := [name for name in names if name.partition(".")[2] not in ("", *SETTINGS)]:
        raise UserError(
            f"{', '.join(unused)}: no effect on a single run, only with metapt submit; options of sbatch, such as "
            "--gpus-per-node=4, say what the run requests"
        )


def _written_keys(settings: Sequence[str]) -> set[str]:
    """The keys of the cluster that the command line or the site file sets."""
    written: set[str] = set()
    for word in settings:
        name, _, value = word.partition("=")
        is_site = name == "cluster" and is_file(value)
        written |= read_option_file("submit", name, value).values.keys() if is_site else {name}
    return {path.removeprefix("cluster.") for path in written}


def with_site(script: Path, cluster: ClusterConfig) -> str:
    """The text of a batch script with the settings of a site.

    Raises:
        UserError: the script cannot be read, or has no place for them.
    """
    try:
        head, marker, rest = script.read_text(encoding="utf-8").partition(f"\n{MARKER}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{script}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not marker:
        raise UserError(
            f"{script}: has no line that begins with {MARKER!r}, after which the settings are inserted"
        )
    comment, _, rest = rest.partition("\n")
    settings = [*script_lines(cluster), *shell_lines(cluster, None)]
    return "\n".join([head + marker + comment, *settings, rest])


def site_words(request: Request, cluster: ClusterConfig) -> list[str]:
    """The options of sbatch that a site sets, as words, without those that an option of the user replaces."""
    options = sbatch_options(cluster, _written_keys(request.settings))
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if not any(option.startswith(REPLACED.get(name, ())) for option in request.options)
    ]


def _run(command: Sequence[str]) -> None:
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise UserError("sbatch is not installed here") from None
    if code:
        raise OperationalError(f"sbatch refuses the job (exit code {code}, see above)")


if __name__ == "__main__":
    run_command(main)
