"""Commands with the packages of their extra only: tagging without accelerate, fine-tuning without DeepSpeed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import REPO
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metapt import load_tagger
from metapt.errors import UserError
from metapt.models.device import torch_device
from metapt.runs import Run

pytestmark = pytest.mark.commands


def packages_of(extra: str) -> set[str]:
    """The distributions that `pip install '.[EXTRA]'` installs, by the metadata of those installed here."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    found: set[str] = set()

    def declared(name: str, extras: frozenset[str]) -> Iterator[str]:
        if name == "metapt":
            yield from project["dependencies"]
            for wanted in extras:
                yield from project["optional-dependencies"][wanted]
        else:
            yield from importlib.metadata.requires(name) or ()

    def add(name: str, extras: frozenset[str]) -> None:
        for text in declared(name, extras):
            needed = Requirement(text)
            marker, key = needed.marker, canonicalize_name(needed.name)
            if marker and not any(marker.evaluate({"extra": value}) for value in (*extras, "")):
                continue
            if key == "metapt" or key not in found:
                found.add(key)
                try:
                    add(key, frozenset(needed.extras))
                except importlib.metadata.PackageNotFoundError:
                    found.discard(key)  # for another platform or a GPU

    add("metapt", frozenset({extra}))
    return found - {"metapt"}


def run_with(folder: Path, extra: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`metapt WORDS` in a Python whose packages are links to those of an extra."""
    links = folder / extra
    links.mkdir()
    for name in packages_of(extra):
        distribution = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            target = Path(str(distribution.locate_file(part)))
            if target.exists() and not (links / part).exists():
                (links / part).symlink_to(target)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(links), str(REPO)])}
    command = [sys.executable, "-S", "-m", "metapt", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)


def test_fine_tuning_needs_no_deepspeed(world: Path, tmp_path: Path) -> None:
    assert {"deepspeed", "submitit"}.isdisjoint(packages_of("finetune"))
    words = [
        f"checkpoint={world / 'model'}",
        "source=aa_one",
        "tuning=full",
        f"data.uner_dir={world / 'uner'}",
    ]
    run = Run(tmp_path / "run")
    words += ["ner.max_epochs=1", "ner.lr=0.005", f"run_dir={run.path}"]
    done = run_with(tmp_path, "finetune", "finetune", *words)
    assert done.returncode == 0, done.stderr
    assert set(run.result()["sets"]) == {"aa_one", "bb_two"}
    assert "deepspeed" not in run.provenance()["versions"]


def test_tagging_needs_torch_and_transformers_only(head_run: Run, tmp_path: Path) -> None:
    assert {"deepspeed", "accelerate", "datasets"}.isdisjoint(packages_of("tag"))
    sentence = "Juan Cruz lives in Cebu ."
    done = run_with(tmp_path, "tag", "tag", f"checkpoint={head_run.path}", "format=iob2", sentence)
    assert done.returncode == 0, done.stderr
    (tagged,) = load_tagger(head_run.path, device="cpu").tag([sentence.split()])
    assert [line.split("\t")[2] for line in done.stdout.splitlines() if "\t" in line] == list(tagged.tags)


def test_the_device_is_chosen_or_refused() -> None:
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="device=gpu: must be auto, cpu, cuda, cuda:N or mps"):
        torch_device("gpu")
    with pytest.raises(UserError, match=r"device=cuda:99: torch .* finds no such device"):
        torch_device("cuda:99")
