"""Which objective raises zero-shot F1: configurations are compared by successive halving, on dev sets only.

    python benchmarks/exploration.py ROOT            train and score what is missing, then write ROOT/results.jsonl
    python benchmarks/exploration.py ROOT results    print the table of what is there
    python benchmarks/exploration.py ROOT rates      compare learning rates of fine-tuning on the arms of the studies

METAPT_TEXT_DIR and METAPT_UNER_DIR name the corpus and Universal NER. A configuration is tuned on one source and scored
on the dev sets of the other two (frozen decoder, six pairs); it sees no test set, since the folder of labelled sets that
it is given holds none. The mean over the six pairs, and over seeds, decides which configurations go on to the next rung.
One process runs at a time; a command that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

SOURCES = ("en_ewt", "sk_snk", "hr_set")
RATE = "3e-3"
RATES = ("1e-3", RATE, "1e-2", "3e-2")
TRAIN_SENTENCES = (2000, 200)  # the first decides, the second is a second judge
BASELINE = "vanilla"
SIX, TWENTY_FOUR = (["classes.sizes=[64,256,512,64]", f"classes.repeats={repeats}"] for repeats in (2, 8))
EPISODES = [
    *["objective=episodes", "episodes.weight=0.3"],
    *["episodes.inner_steps=10", "episodes.start_step=100"],
]
MULTITASK = ["objective=multitask", "multitask.weight=0.3"]
BOTH = ["objective=both", "episodes.weight=0.1", "episodes.start_step=100"]
CONFIGURATIONS = {  # independent of the weights, steps and classes of the presets, which follow from the results
    BASELINE: ["objective=vanilla", *SIX],
    "multitask": [*MULTITASK, *SIX],
    "multitask, weight 1": [*MULTITASK, *SIX, "multitask.weight=1"],
    "multitask, weight 0.1": [*MULTITASK, *SIX, "multitask.weight=0.1"],
    "multitask, 24 partitions": [*MULTITASK, *TWENTY_FOUR],
    "twin": [*EPISODES, *SIX, "episodes.inner_steps=0"],
    "twin, 24 partitions": [*EPISODES, *TWENTY_FOUR, "episodes.inner_steps=0"],
    "episodes": [*EPISODES, *SIX],
    "episodes, 24 partitions": [*EPISODES, *TWENTY_FOUR],
    "episodes, c = 1": [*EPISODES, *SIX, "episodes.rate_scale=1"],
    "episodes, 128 ways": [*EPISODES, *SIX, "episodes.n_way=128"],
    "episodes, zero head": [*EPISODES, *SIX, "episodes.initial_head=zero"],
    "both": [*BOTH, *SIX, "episodes.inner_steps=0", "multitask.weight=0.3"],
    "both, weight 1, 10 steps": [*BOTH, *SIX, "episodes.inner_steps=10", "multitask.weight=1"],
    "multitask, weight 1, 24 partitions": [*MULTITASK, *TWENTY_FOUR, "multitask.weight=1"],
}


@dataclass(frozen=True)
class Rung:
    """Runs of one length: the best `keep` configurations of the rung before, beside the baseline."""

    updates: int
    seeds: tuple[int, ...]
    keep: int


RATE_ARMS = (BASELINE, "multitask, weight 1, 24 partitions", "episodes, 24 partitions")
RUNGS = (Rung(300, (100,), len(CONFIGURATIONS)), Rung(600, (100,), 4), Rung(600, (100, 101, 102), 2))


@dataclass(frozen=True)
class Exploration:
    """The folder of an exploration: pretraining runs, fine-tuning runs, and their results."""

    root: Path

    def run(self) -> None:
        """Train and score what is missing, rung by rung."""
        self._write_dev_sets()
        names = list(CONFIGURATIONS)
        for rung in RUNGS:
            names = [BASELINE, *self.best(names)[: rung.keep]] if rung is not RUNGS[0] else names
            for seed, name in product(rung.seeds, names):
                self._pretrain(name, seed, rung.updates)
                for source, sentences in product(SOURCES, TRAIN_SENTENCES):
                    if (self._tuning(name, seed, rung.updates, source, sentences) / "result.json").exists():
                        continue
                    self._finetune(name, seed, rung.updates, source, sentences)
                print(json.dumps(self.result(name, seed, rung.updates)), flush=True)

    def rates(self) -> str:
        """F1 on the dev set of the source, and mean F1 on those of the others, by arm and rate, as Markdown."""
        seed, updates = RUNGS[0].seeds[0], RUNGS[-1].updates
        lines = [
            "| rate | configuration | F1, dev of the source | F1, dev of the others |",
            "|---|---|---:|---:|",
        ]
        for rate, name in product(RATES, RATE_ARMS):
            found: dict[bool, list[float]] = {True: [], False: []}
            for source in SOURCES:
                run = self._tuning(name, seed, updates, source, TRAIN_SENTENCES[0], rate)
                if not (run / "result.json").exists():
                    self._finetune(name, seed, updates, source, TRAIN_SENTENCES[0], rate)
                sets = json.loads((run / "result.json").read_text())["sets"]
                for target in SOURCES:
                    found[target == source].append(100 * sets[target]["f1"])
            lines.append(f"| {rate} | {name} | {mean(found[True]):.1f} | {mean(found[False]):.1f} |")
        return "\n".join(lines)

    def best(self, names: list[str]) -> list[str]:
        """Configurations but the baseline, the best mean F1 of the last length that all of them have first."""
        updates = max(
            updates
            for updates in {rung.updates for rung in RUNGS}
            if all(self._scored(name, RUNGS[0].seeds[0], updates) for name in names)
        )
        scores = {name: self.result(name, RUNGS[0].seeds[0], updates)["f1"] for name in names}
        return sorted(set(names) - {BASELINE}, key=lambda name: -scores[name])

    def result(self, name: str, seed: int, updates: int) -> dict[str, Any]:
        """Perplexity, mean F1 over the six pairs, and accuracy on held-out words of a run."""
        lines = (self._pretraining(name, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = {entry["kind"]: entry for entry in map(json.loads, lines) if entry["step"] == updates}
        of_pairs = {sentences: self._f1(name, seed, updates, sentences) for sentences in TRAIN_SENTENCES}
        return {
            "configuration": name,
            "seed": seed,
            "updates": updates,
            "perplexity": found["eval"]["eval_perplexity"],
            "f1": of_pairs[TRAIN_SENTENCES[0]],
            "f1_of_200": of_pairs[TRAIN_SENTENCES[1]],
            "prototype_accuracy": mean(found["dynamics"]["held_out_words_prototype_accuracy"]),
        }

    def table(self) -> str:
        """The results as Markdown, by rung."""
        lines = []
        for updates in sorted({rung.updates for rung in RUNGS}):
            seeds = sorted({seed for rung in RUNGS if rung.updates == updates for seed in rung.seeds})
            rows = [
                self.result(name, seed, updates)
                for name, seed in product(CONFIGURATIONS, seeds)
                if self._scored(name, seed, updates)
            ]
            lines += [
                f"\n{updates} updates\n",
                "| configuration | seed | perplexity | held-out words | F1 | F1, 200 sentences |",
            ]
            lines += ["|---|---:|---:|---:|---:|---:|"]
            for row in sorted(rows, key=lambda row: -row["f1"]):
                lines.append(
                    f"| {row['configuration']} | {row['seed']} | {row['perplexity']:.1f} | {row['prototype_accuracy']:.3f} "
                    f"| {100 * row['f1']:.1f} | {100 * row['f1_of_200']:.1f} |"
                )
        return "\n".join(lines)

    def _pretraining(self, name: str, seed: int) -> Path:
        return self.root / "pretrain" / f"{_slug(name)}-s{seed}"

    def _checkpoint(self, name: str, seed: int, updates: int) -> Path:
        return self._pretraining(name, seed) / "checkpoints" / f"step_{updates:06d}"

    def _tuning(
        self, name: str, seed: int, updates: int, source: str, sentences: int, rate: str = RATE
    ) -> Path:
        suffix = "" if rate == RATE else f"-{rate}"
        return self.root / "finetune" / f"{_slug(name)}-s{seed}-{updates}-{source}-{sentences}{suffix}"

    def _scored(self, name: str, seed: int, updates: int) -> bool:
        pairs = product(SOURCES, TRAIN_SENTENCES)
        return all((self._tuning(name, seed, updates, *pair) / "result.json").exists() for pair in pairs)

    def _f1(self, name: str, seed: int, updates: int, sentences: int) -> float:
        """Mean F1, a fraction, over the pairs of a source and another's dev set."""
        results = {
            source: json.loads(
                (self._tuning(name, seed, updates, source, sentences) / "result.json").read_text()
            )
            for source in SOURCES
        }
        return mean(
            results[source]["sets"][target]["f1"]
            for source, target in product(SOURCES, SOURCES)
            if source != target
        )

    def _write_dev_sets(self) -> None:
        """Copies of the sources whose test split is their dev split."""
        for source in SOURCES:
            folder = self.root / "sets" / source
            folder.mkdir(parents=True, exist_ok=True)
            for split, copied in {"train": "train", "dev": "dev", "test": "dev"}.items():
                shutil.copy(
                    Path(os.environ["METAPT_UNER_DIR"]) / source / f"{copied}.iob2", folder / f"{split}.iob2"
                )

    def _pretrain(self, name: str, seed: int, updates: int) -> None:
        run_dir = self._pretraining(name, seed)
        if self._checkpoint(name, seed, updates).exists():  # the run may have gone on to the next rung
            return
        _run(
            "pretrain",
            [
                "model=laptop",
                *CONFIGURATIONS[name],
                "data=text",
                f"data.text_dir='{os.environ['METAPT_TEXT_DIR']}'",
            ],
            [f"data.cache_dir='{self.root / 'corpora'}'", f"train.seed={seed}", f"train.max_steps={updates}"],
            [
                "train.eval_every=100",
                "train.dynamics_every=100",
                "train.checkpoint_every=100",
                f"run_dir='{run_dir}'",
            ],
        )

    def _finetune(
        self, name: str, seed: int, updates: int, source: str, sentences: int, rate: str = RATE
    ) -> None:
        _run(
            "finetune",
            [
                f"checkpoint='{self._checkpoint(name, seed, updates)}'",
                f"source={source}",
                "tuning=head_only",
                f"train.seed={seed}",
            ],
            ["data=uner", f"data.uner_dir='{self.root / 'sets'}'", f"data.eval_sets=[{','.join(SOURCES)}]"],
            [f"data.max_train_sentences={sentences}", f"ner.lr={rate}", "ner.max_epochs=10"],
            [f"run_dir='{self._tuning(name, seed, updates, source, sentences, rate)}'"],
        )


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" = ", "").replace(" ", "_")


def _run(command: str, *arguments: list[str]) -> None:
    """Run a command of the suite to its end; its output is shown only if it fails."""
    every = [argument for part in arguments for argument in part]
    done = subprocess.run([sys.executable, "-m", f"metapt.{command}", *every], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"metapt {command} {' '.join(every)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    """See the module's docstring."""
    exploration = Exploration(Path(sys.argv[1]).absolute())
    match sys.argv[2:]:
        case ["rates"]:
            print(exploration.rates())
        case []:
            exploration.run()
            print(exploration.table())
        case _:
            print(exploration.table())


if __name__ == "__main__":
    main()
