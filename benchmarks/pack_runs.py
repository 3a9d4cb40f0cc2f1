"""Keep scores, curves and predictions of finished runs in a repository: compressed, without checkpoints and without labelled text.

    python benchmarks/pack_runs.py pack runs/study2 docs/results/study2        one file for each seed, and grid.jsonl.xz
    python benchmarks/pack_runs.py pack runs/study2 docs/results/study2 0 1    only seeds 0 and 1, and grid.jsonl.xz
    python benchmarks/pack_runs.py unpack docs/results/study2 runs/published   run folders again: `metapt report runs/published`

A line of SEED.jsonl.xz is a run: its folder, what the report reads of it, and of its predictions the tags alone. Words and gold tags
are read from the labelled sets when it is unpacked, and what is unpacked is as it was except for the log-probabilities
of gold tags, which are null. grid.jsonl.xz has the plan, if there is one, and the runs of baselines, which have no seed.

Folders of the machine are replaced by the names of the variables in PLACES, which must be set for both directions as for the grid itself.
Grids that share a cache (`cluster.cache`) in a folder beside them are unpacked beside each other.
"""

from __future__ import annotations

import json
import lzma
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from metapt.config import SetsConfig
from metapt.data.iob2 import Sentence
from metapt.data.labelled_sets import open_collection
from metapt.errors import UserError
from metapt.evaluation.predictions import SentencePrediction, write_predictions
from metapt.files import write_atomically, write_bytes_atomically
from metapt.launch.grid_dir import GridDir
from metapt.runs import Run

PLACES = ("METAPT_TEXT_DIR", "METAPT_UNER_DIR", "METAPT_EXTRA_DIR")
GRID, ENDING = "grid", ".jsonl.xz"
SET_KEYS = [item.name for item in fields(SetsConfig)]


@dataclass(frozen=True)
class Places:
    """The folders of this machine that recorded configurations name, and what stands for them in packed files."""

    root: Path

    def _pairs(self) -> list[tuple[str, str]]:
        known = {name: os.environ[name] for name in PLACES if name in os.environ}
        known |= {"RUNS": str(self.root), "BESIDE_RUNS": str(self.root.parent)}
        pairs = [(f"${{{name}}}", path) for name, path in known.items() if path != "/"]
        return sorted(pairs, key=lambda pair: len(pair[1]), reverse=True)  # one folder may be in another

    def leave(self, text: str) -> str:
        """Replace the folders of this machine."""
        for name, path in self._pairs():
            text = text.replace(path, name)
        return text

    def enter(self, text: str) -> str:
        """Replace what stands for a folder by that of this machine."""
        for name, path in self._pairs():
            text = text.replace(name, path)
        return text


def packed_run(run: Run, places: Places) -> dict[str, Any]:
    """What is kept of a run."""
    files = (run.config_file, run.starts_file, run.metrics_file, run.result_file)
    return {
        "run": f"{run.path.parent.name}/{run.path.name}",
        "files": {
            file.name: places.leave(file.read_text(encoding="utf-8")) for file in files if file.exists()
        },
        "predictions": {
            path.stem: [
                " ".join(json.loads(line)["predicted"]) for line in path.read_text("utf-8").splitlines()
            ]
            for path in sorted(run.predictions_dir.glob("*.jsonl"))
        },
    }


def finished_runs(grid: GridDir) -> Iterator[Run]:
    """The finished runs of a grid's plan, in its order; of a folder without a plan, all, by their names."""
    if grid.plan_file.exists():
        runs = [grid.run(job) for job in grid.read_plan().jobs if job.is_run]
    else:
        runs = [Run(path.parent) for path in sorted(grid.path.glob("*/*/result.json"))]
    yield from (run for run in runs if run.result_file.exists())


def pack(root: Path, out: Path, seeds: Sequence[str]) -> None:
    """Write the finished runs of a grid into files by the seed of pretraining."""
    places, grid = Places(root), GridDir(root)
    blocks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if grid.plan_file.exists():
        plan = places.leave(grid.plan_file.read_text(encoding="utf-8"))
        blocks[GRID].append({"run": "", "files": {grid.plan_file.name: plan}})
    for run in finished_runs(grid):
        seed = str(run.result()["origin"].get("seed", GRID))
        if not seeds or seed in (GRID, *seeds):
            blocks[seed].append(packed_run(run, places))
    for name, records in blocks.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        content = lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)
        write_bytes_atomically(out / f"{name}{ENDING}", content, synced=True)
        print(f"{out / (name + ENDING)}: {len(records)} entries, {len(content):,} bytes")


def unpack(packed: Path, root: Path) -> None:
    """Write the folders of packed runs, with words and gold tags from the labelled sets.

    Raises:
        UserError: a set has other sentences than the predictions.
    """
    places = Places(root)
    for path in sorted(packed.glob(f"*{ENDING}")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                _unpack_run(json.loads(line), root, places)


def _unpack_run(record: dict[str, Any], root: Path, places: Places) -> None:
    run = Run(root / record["run"])
    for name, text in record["files"].items():
        write_atomically(run.path / name, places.enter(text))
    if not record.get("predictions"):
        return
    data = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))["config"]["data"]
    for name, predicted in record["predictions"].items():
        sentences = _test_sentences(json.dumps({key: data[key] for key in SET_KEYS}), name)
        tags = [SentencePrediction(line.split(" "), None) for line in predicted]
        if [len(sentence.words) for sentence in sentences] != [len(line.predicted) for line in tags]:
            raise UserError(f"{name}: other sentences than those of the predictions of {record['run']}")
        write_predictions(run.predictions_dir / f"{name}.jsonl", sentences, tags)


@cache
def _test_sentences(data: str, name: str) -> list[Sentence]:
    """The test split of a set; `data` is the JSON of a `SetsConfig`."""
    return open_collection(SetsConfig(**json.loads(data))).load(name, "test")


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    command, source, target, *seeds = arguments
    if command == "pack":
        pack(Path(source).absolute(), Path(target), seeds)
    else:
        unpack(Path(source), Path(target).absolute())


if __name__ == "__main__":
    main(sys.argv[1:])
