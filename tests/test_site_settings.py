"""One site file for grids and batch scripts: interpreter, launcher, modules, variables, setup lines, sbatch options."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metapt import sbatch
from metapt.config import ClusterConfig, commandline
from metapt.config.keys import fields_by_path
from metapt.errors import OperationalError, UserError
from metapt.launch import site_settings
from metapt.launch.submission import submit

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "slurm" / "pretrain.sh"
SITE = """\
defaults: [slurm, _self_]
partition: gpu
account: nlp
exclude: node[13-14]
extra: {constraint: nvlink, exclusive: '', contiguous: true}
exports: {MARK: of the site}
setup: ['[ -z $UNSET_AT_THIS_SITE ]', 'export LOADED="$MARK, loaded"']
online: true
"""
FAKE_PYTHON = f"""#!{sys.executable}
import json, os, sys
if "after" in sys.argv:
    sys.exit(0)
with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as calls:
    names = ("MARK", "LOADED", "STARTED_BY", "RANK")
    print(json.dumps([sys.argv[1:], [os.environ.get(name) for name in names]]), file=calls)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site file whose interpreter, in a folder with a space, records how it is called."""
    python = tmp_path / "a site" / "python"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    file = tmp_path / "a site" / "site.yaml"
    file.write_text(f"{SITE}python: {python}\nlauncher: env 'STARTED_BY=the launcher'\n")
    return file


def run_bash(lines: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with an empty environment, as after SBATCH_EXPORT=NONE."""
    variables = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", "-c", "\n".join(lines)], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("cluster", "code", "out", "error"),
    [
        ({"setup": ["echo one", "false", "echo two"]}, 1, "one\n", 'setup of the site failed: false'),
        ({"setup": ["source /nowhere/activate"]}, 1, "", "source /nowhere/activate"),
        ({"setup": ["x=$(exit 3)"]}, 3, "", "x=$(exit 3)"),
        ({"setup": ["echo $UNSET", "false || echo fine"], "exports": {"A": "it's $HOME"}}, 0, "\nfine\n-it's $HOME\n", ""),
        ({"modules": ["cuda/12.4 beta"]}, 127, "", "module load 'cuda/12.4 beta'"),
        ({}, 0, "-\n", ""),
    ],
)  # fmt: skip
def test_the_first_setup_line_that_fails_ends_the_job(
    cluster: dict[str, object], code: int, out: str, error: str
) -> None:
    lines = site_settings.setup_lines(ClusterConfig(name="slurm", **cluster))
    done = run_bash([*lines, "false", 'echo "-$A"'])  # after the setup, a command may fail
    assert (done.returncode, done.stdout) == (code, out)
    assert error in done.stderr
    assert bool(error) == ("error: the setup of the site failed" in done.stderr)


def test_modules_are_found_without_the_login_environment(tmp_path: Path) -> None:
    """Where the shell has no command `module`, /etc/profile defines it."""
    profile = tmp_path / "profile"
    profile.write_text('module() { echo "loaded $2"; }\n')
    lines = site_settings.setup_lines(ClusterConfig(name="slurm", modules=["gcc", "cuda/12.4"]))
    done = run_bash([line.replace("/etc/profile", str(profile)) for line in lines])
    assert (done.returncode, done.stdout) == (0, "loaded gcc\nloaded cuda/12.4\n")
    defined = "module() { echo $2; }; "
    assert run_bash([defined, *lines]).stdout == "gcc\ncuda/12.4\n"


def test_a_grid_uses_the_site_file(site: Path, tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.sources=[]", "grid.objectives=[vanilla]", f"root={tmp_path / 'r'}"]
    changes = ["cluster.gpus_per_node=0", "cluster.account=other"]
    submit(
        commandline.load("submit", [*words, f"cluster={site}", "cluster.srun_args=['--mpi=none']", *changes])
    )
    scripts = [path.read_text() for path in sorted(slurm_commands.glob("batch_*"))]
    assert len(scripts) == 3
    for script in scripts:
        options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
        wanted = {"partition": "gpu", "account": "other", "exclude": "node[13-14]", "constraint": "nvlink"}
        assert {name: options.get(name, "").strip("'") for name in wanted} == wanted
        assert {"#SBATCH --exclusive", "#SBATCH --contiguous"} <= set(script.splitlines())
        assert "exit 1" in script
    (line,) = [line for line in scripts[0].splitlines() if line.startswith("srun ")]
    assert " --export=ALL " in line
    # what the job runs, with srun and the commands of Slurm replaced
    body = scripts[0].partition("# setup\n")[2]
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name in ("scontrol", "squeue"):
        (fakes / name).write_text("#!/bin/sh\n")
        (fakes / name).chmod(0o755)
    run = 'srun() { while [ "$1" != env ]; do shift; done; "$@"; }'
    done = run_bash([run, body], PATH=f"{fakes}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    arguments, variables = json.loads((site.parent / "calls").read_text())
    assert arguments[:3] == ["-u", "-m", "submitit.core._submit"]
    assert variables[:3] == ["of the site", "of the site, loaded", "the launcher"]


def test_a_container_without_slurm_is_refused_at_the_start(tmp_path: Path) -> None:
    (line,) = site_settings.launcher_check(ClusterConfig(name="slurm", launcher="env PATH=/usr/bin:/bin"))
    if shutil.which("squeue", path="/usr/bin:/bin"):  # a container that has them
        assert run_bash([line, "echo started"]).stdout == "started\n"
        line = line.replace("PATH=/usr/bin:/bin", f"PATH={tmp_path}").replace(" sh -c", " /bin/sh -c")
    done = run_bash([line, "echo started"])
    assert (done.returncode, done.stdout) == (1, "")
    assert "not in the container; bind them" in done.stderr


@pytest.fixture
def sbatch_calls(slurm_commands: Path) -> Path:
    """A fake sbatch that keeps its arguments, one a line, and the script."""
    fake = slurm_commands / "sbatch"
    fake.write_text(
        f"#!/bin/bash\nprintf '%s\\n' \"$@\" >'{slurm_commands}/arguments'\n"
        f"for word; do [[ $word = *.sh ]] && cp \"$word\" '{slurm_commands}/script'; done; true\n"
    )
    return slurm_commands


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_a_batch_script_gets_the_same_settings(name: str, site: Path, sbatch_calls: Path) -> None:
    options = ["--nodes=2", "--exclude=node1", f"cluster={site}", "cluster.qos=long"]
    words = {
        "pretrain": ["model=nano", "run_dir=a b"],
        "finetune": ["checkpoint=x", "source=en", "run_dir=a b"],
    }
    sbatch.main([*options, str(REPOSITORY / f"slurm/{name}.sh"), *words[name]])
    arguments = (sbatch_calls / "arguments").read_text().splitlines()
    number = next(number for number, word in enumerate(arguments) if word.endswith(f"/{name}.sh"))
    of_the_site = ["--partition=gpu", "--account=nlp", "--qos=long", "--exclude=node[13-14]"]
    of_the_site += ["--constraint=nvlink", "--exclusive", "--contiguous"]
    assert arguments[:number] == [*of_the_site, "--nodes=2", "--exclude=node1"]
    assert arguments[number + 1 :] == words[name]

    script = (sbatch_calls / "script").read_text()
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = [shellcheck, "--shell=bash", "--exclude=SC2086", "-"]  # of the site's own lines
    assert subprocess.run(checked, input=script, text=True).returncode == 0
    run = 'srun() { while [ "$1" != bash ]; do shift; done; SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; }; scontrol() { echo n1; }'
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    variables |= {"SLURM_TASKS_PER_NODE": "1", "SLURM_JOB_NODELIST": "n1"}
    done = run_bash([run, f"set -- {' '.join(words[name][:-1])} 'run_dir=a b'", script], **variables)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in (site.parent / "calls").read_text().splitlines()]
    program = {"pretrain": "metapt.pretrain", "finetune": "metapt.finetune_command"}[name]
    assert [call[0] for call in calls] == [
        ["-m", "metapt.launch.requeues", program, *words[name]],
        ["-m", program, *words[name]],
    ]
    assert {tuple(call[1][:3]) for call in calls} == {("of the site", "of the site, loaded", "the launcher")}
    assert calls[1][1][3] == "0"


def test_limits_and_requests_of_a_site_are_those_of_the_job(site: Path, sbatch_calls: Path) -> None:
    """Options of sbatch replace them, also by another name, since sbatch refuses both."""
    site.write_text(site.read_text() + "timeout_min: 90\nmem_gb: 16\ncpu_partition: cpu\n")

    def options(*words: str) -> dict[str, str]:
        sbatch.main([f"cluster={site}", *words, str(SCRIPT), "model=nano", "run_dir=x"])
        lines = (sbatch_calls / "arguments").read_text().splitlines()
        lines = [line.removeprefix("--") for line in lines if line.startswith("--")]
        found = {name: value for name, _, value in (line.partition("=") for line in lines)}
        return {name: found.get(name, "") for name in ("time", "signal", "mem", "cpus-per-task")}

    of_the_file = {"time": "90", "signal": "", "mem": "16GB", "cpus-per-task": ""}
    assert options() == of_the_file
    changed = ["cluster.timeout_min=30", "cluster.signal_delay_s=900", "cluster.cpus_per_task=4"]
    assert options(*changed) == {"time": "30", "signal": "USR1@900", "mem": "16GB", "cpus-per-task": "4"}
    replaced = options("cluster.cpus_per_task=4", "--cpus-per-gpu=8", "--mem-per-gpu=8GB", "--time=5")
    assert replaced == {"time": "5", "signal": "", "mem": "", "cpus-per-task": ""}


def test_a_script_reads_the_cache_only_unless_nodes_are_online(tmp_path: Path) -> None:
    offline = sbatch.with_site(SCRIPT, ClusterConfig(name="slurm", cache=str(tmp_path)))
    assert (
        f"export HF_HUB_CACHE={tmp_path}/hub HF_DATASETS_CACHE={tmp_path}/datasets HF_HUB_OFFLINE=1\n"
        in offline
    )
    assert "export HF_HUB_OFFLINE=1\n" in sbatch.with_site(SCRIPT, ClusterConfig(name="slurm"))
    assert "HF_" not in sbatch.with_site(SCRIPT, ClusterConfig(name="slurm", online=True))


def test_srun_starts_the_check_where_it_starts_the_container() -> None:
    cluster = ClusterConfig(name="slurm", srun_args=["--container-image=a b.sqsh"], online=True)
    text = sbatch.with_site(SCRIPT, cluster)
    assert "SRUN_ARGS=('--container-image=a b.sqsh')" in text
    log = 'srun() { printf "<%s>" "$@"; echo; exit 0; }; scontrol() { echo n1; }'
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    done = run_bash([log, text], SLURM_TASKS_PER_NODE="1", SLURM_JOB_NODELIST="n1", **variables)
    assert done.stdout.startswith("<--nodes=1><--ntasks=1><--export=ALL><--container-image=a b.sqsh>"), done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster=slurm", "model=nano"], "no script, such as slurm/pretrain.sh"),
        (["cluster=slurm", "-p", "gpu", str(SCRIPT)], "'-p': before the script come"),
        (["cluster=local", str(SCRIPT)], "needs cluster=slurm or a site file"),
        (["cluster=slurm", "/nowhere/x.sh"], "/nowhere/x.sh: cannot be read"),
        (["cluster=slurm", str(REPOSITORY / "slurm/dev_cluster.sh")], "has no line that begins with '# ---- site'"),
        (["cluster=/nowhere/site.yaml", str(SCRIPT)], "cluster=/nowhere/site.yaml: cannot be read"),
        (["cluster=slurm", "cluster.pyhton=x", str(SCRIPT)], "cluster.pyhton: no such key; did you mean cluster.python"),
        (["cluster=slurm", "cluster.exports={A-B:x}", str(SCRIPT)], "cluster.exports: 'A-B' is no name of an environment"),
        (["cluster=slurm", 'cluster.launcher="env A=\'x"', str(SCRIPT)], "is no shell command (No closing quotation)"),
        (["cluster=slurm", "cluster.max_requeues_without_progress=2", "cluster.nodes=2", str(SCRIPT)],
         "cluster.max_requeues_without_progress, cluster.nodes: no effect on a single run, only with metapt submit"),
        (["cluster=slurm", str(SCRIPT), "model=nano", "run_dri=x"], "run_dri: no such key"),
    ],
)  # fmt: skip
def test_errors_of_a_submission(words: list[str], message: str, sbatch_calls: Path) -> None:
    with pytest.raises(UserError) as raised:
        sbatch.main(words)
    assert message in str(raised.value)
    assert not (sbatch_calls / "script").exists()


def test_a_refusal_of_sbatch_is_an_error(slurm_commands: Path) -> None:
    (slurm_commands / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(OperationalError, match="sbatch refuses the job"):
        sbatch.main(["cluster=slurm", str(SCRIPT), "model=nano", "run_dir=x"])


def test_the_example_has_no_unknown_key(tmp_path: Path) -> None:
    example = REPOSITORY / "slurm" / "site.yaml.example"
    file = tmp_path / "site.yaml"
    shutil.copy(example, file)
    config = commandline.load("submit", ["grid=demo", f"cluster={file}"]).cluster
    assert (config.name, config.modules, config.extra) == ("slurm", ["cuda/12.4"], {"constraint": "nvlink"})
    commented = dict(re.findall(r"^# (\w+): (\S.*)$", example.read_text(), re.MULTILINE))
    known = fields_by_path(ClusterConfig)
    assert set(commented) == {"launcher", "srun_args"} <= set(known)
    assert len(yaml.safe_load(commented["srun_args"])) == 2
