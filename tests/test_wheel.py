"""The built wheel, installed without its dependencies into an environment of its own that sees those of the suite.

Everything runs from another working directory, so that nothing of the clone can be imported by accident. A
`sitecustomize` records at exit which files each process imported from metapt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPO

pytestmark = pytest.mark.commands
SPY = """
import atexit, json, os, sys
def record():
    files = {name: module.__file__ for name, module in list(sys.modules.items())
             if name.partition(".")[0] in ("metapt", "analysis") and getattr(module, "__file__", None)}
    with open(os.environ["IMPORTS_FILE"], "a") as file:
        file.write(json.dumps({"job": "METAPT_CODE" in os.environ, "argv": sys.argv, "files": files}) + "\\n")
atexit.register(record)
"""
SMALL_GRID = [
    "grid=demo",
    "cluster=inline",
    "grid.objectives=[maml]",
    "grid.sources=[en_demo]",
    "grid.tunings=[head_only]",
    "grid.baselines=[particle]",
    'grid.pretrain=["data=demo","train.max_steps=10","train.warmup_steps=2","train.checkpoint_every=10","episodes.start_step=5"]',
    'grid.finetune=["data=demo","ner.max_epochs=1","data.max_train_sentences=64"]',
]


@dataclass(frozen=True)
class Installation:
    """A Python that imports metapt from one place, and an empty working directory for its commands."""

    python: Path
    source: Path
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`python WORDS` in the working directory; its imports are appended to imports.jsonl there."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {
            "PYTHONPATH": str(self.folder / "spy"),
            "IMPORTS_FILE": str(self.folder / "imports.jsonl"),
        }
        command = [str(self.python), *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600
        )

    def metapt(self, *words: str) -> str:
        """Standard output of `metapt WORDS`, which must succeed."""
        done = self.run("-m", "metapt", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def imports(self) -> list[dict[str, object]]:
        lines = (self.folder / "imports.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def installation(python: Path, source: Path, folder: Path) -> Installation:
    (folder / "spy").mkdir(parents=True)
    (folder / "spy" / "sitecustomize.py").write_text(SPY, encoding="utf-8")
    return Installation(python, source, folder)


def pip(python: str | Path, *words: str | Path) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "--quiet", *map(str, words)], check=True, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a new environment into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", REPO)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    (found,) = (folder / "env" / "lib").glob("python*/site-packages")
    # a line of a .pth file adds a folder, but does not read the .pth files in it: the clone stays invisible
    (found / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (wheel,) = (folder / "dist").glob("*.whl")
    pip(folder / "env" / "bin" / "python", "install", "--no-deps", wheel)
    return found


@pytest.fixture(params=["wheel", "clone"])
def installed(request: pytest.FixtureRequest, site_packages: Path, tmp_path: Path) -> Installation:
    """metapt from the wheel, or from this clone as the suite's own Python imports it."""
    if request.param == "wheel":
        python = site_packages.parents[2] / "bin" / "python"
        return installation(python, site_packages, tmp_path / "elsewhere")
    return installation(Path(sys.executable), REPO, tmp_path / "elsewhere")


def outside(files: Sequence[str], folder: Path) -> list[str]:
    return [file for file in files if not Path(file).is_relative_to(folder)]


def test_the_wheel_holds_one_top_level_package(site_packages: Path) -> None:
    new = {path.name for path in site_packages.iterdir() if not path.name.endswith((".dist-info", ".pth"))}
    assert new - {"pip", "setuptools", "pkg_resources", "_distutils_hack"} == {"metapt"}
    assert (site_packages / "metapt" / "ds_configs" / "zero0.json").is_file()
    assert (site_packages / "metapt" / "analysis" / "templates" / "report.html.j2").is_file()


def test_a_grid_trains_tunes_and_reports_from_its_copy_of_the_source(installed: Installation) -> None:
    """Ten updates of pretraining, a fine-tuning, a baseline and a report; every job imports the copy and nothing else."""
    assert "jobs" in installed.metapt("submit", *SMALL_GRID, "root=grid", "dry_run=true")
    assert not (installed.folder / "grid").exists()
    installed.metapt("submit", *SMALL_GRID, "root=grid")
    (copy,) = (installed.folder / "grid" / "code").iterdir()
    jobs = [process for process in installed.imports() if process["job"]]
    commands = {Path(str(process["argv"][0])).name for process in jobs}  # type: ignore[index]
    forked = "metapt.finetune_command"  # by the process that has imported what it needs
    assert {"prepare.py", "pretrain.py", forked, "baseline.py", "__main__.py"} <= commands
    for process in jobs:
        assert outside(list(process["files"].values()), copy) == []  # type: ignore[attr-defined]
    imported = {name for process in jobs for name in process["files"]}  # type: ignore[attr-defined]
    assert {"metapt.training.trainer", "metapt.tagger.model", "metapt.analysis.sections.f1"} <= imported
    assert (installed.folder / "grid" / "report" / "index.html").is_file()
    installed.metapt("report", "grid", "--out", "again")
    submitters = [process for process in installed.imports() if not process["job"]]
    for process in submitters:
        assert outside(list(process["files"].values()), installed.source) == []  # type: ignore[attr-defined]
