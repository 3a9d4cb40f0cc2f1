"""The recorded sbatch scripts: the exact text that Slurm receives for each kind of job.

`make golden-sbatch` records them again, for a commit that changes them on purpose; read the difference then.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

from metapt.config import commandline
from metapt.launch.submission import submit

FOLDER = Path(__file__).parent / "golden_sbatch"
COMMANDS = {  # fakes of Slurm's commands, in a folder HERE
    "sbatch": 'n=$(ls "$HERE" | grep -c batch_); cp "$1" "$HERE/batch_$n"; echo "Submitted batch job $((100 + n))"',
    "squeue": "true",
    "scontrol": "true",
    "sinfo": "true",
    "srun": "exit 1",
}
COMMON = ["grid=demo", "cluster=slurm", "grid.sources=[en_demo]"]
CASES = {
    # one task on one node: preparation, one pretraining job, one fine-tuning job, the report
    "single": [
        "cluster.gpus_per_node=0",
        "grid.objectives=[maml]",
        "grid.tunings=[head_only]",
        "cluster.cpus_per_task=2",
    ],
    # a site with a container and modules, whose nodes have internet
    "site": [
        *("grid.objectives=[vanilla]", "grid.sources=[]", "cluster.gpus_per_node=0", "cluster.online=true"),
        *("cluster.modules=[cuda/12.4]", "cluster.exports={NCCL_SOCKET_IFNAME:ib0}", "cluster.setup=[date]"),
        *("cluster.python=/opt/python", "cluster.launcher='apptainer exec --nv metapt.sif'"),
        *("cluster.srun_args=['--mpi=none']", "cluster.exclude='node[13-14]'"),
    ],
    # every option that a site may need, two nodes for pretraining, arrays with a limit
    "arrays": [
        "cluster.gpus_per_node=4",
        "grid.gpus_per_size={nano:8}",
        'grid.pretrain=["data=demo","train.micro_batches_per_update=8","meta.tasks_per_step=8"]',
        "grid.hours_per_size={nano:2.5}",
        "grid.mem_gb_per_size={nano:32}",
        "cluster.max_running=1",
        "cluster.mem_gb=64",
        "cluster.partition=gpu",
        "cluster.account=nlp",
        "cluster.qos=long",
        "cluster.signal_delay_s=300",
        "cluster.extra={constraint:a100}",
        'cluster.setup=["module load cuda"]',
    ],
}


def recorded() -> dict[str, str]:
    """The recorded scripts, by name."""
    return {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.sh"))}


def scripts(folder: Path) -> dict[str, str]:
    """The scripts that sbatch receives now, by name, in order of submission. Works in an empty folder."""
    found = {}
    for case, words in CASES.items():
        here, root = folder / case, folder / f"the root of {case}"
        here.mkdir()
        for name, body in COMMANDS.items():
            (here / name).write_text(f"#!/bin/bash\nHERE='{here}'\n{body}\n")
            (here / name).chmod(0o755)
        with mock.patch.dict(os.environ, PATH=f"{here}{os.pathsep}{os.environ['PATH']}"):
            submit(commandline.load("submit", [*COMMON, *words, f"root={root}"]))
        for number in range(len(list(here.glob("batch_*")))):
            text = (here / f"batch_{number}").read_text()
            kind = re.search(r"job-name='?(?:demo/)?(\w+)", text)
            assert kind
            found[f"{case}-{number}-{kind[1]}"] = _normalized(text, root)
    return found


def _normalized(text: str, root: Path) -> str:
    """A script without what depends on the machine or version: interpreter, folders, hashes of source and configuration."""
    text = text.replace(str(root.resolve()), "/the root").replace(sys.executable, "/bin/python")
    return re.sub(r"(/code/|-)[0-9a-f]{6}([0-9a-f]{6})?(?![\w-])", r"\1HASH", text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        present = scripts(Path(temporary))
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.sh"):
        path.unlink()
    for name, text in present.items():
        (FOLDER / f"{name}.sh").write_text(text)
    print(f"recorded {len(present)} scripts in {FOLDER}")
