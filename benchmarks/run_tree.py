"""Writes a tree of run folders as a grid over checkpoints and seeds leaves it, to measure the report.

Text, tags and losses are synthetic, sizes are realistic: the sets have the sentences, words and gold spans of Universal
NER's, pretraining runs have a line per update, fine-tuning runs a line per step, and about one folder in thirty is not a
finished run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from predicted_sets import (
    SETS,
    SKILLS,
    PredictedSet,
)

from metapt.runs import Run

SIZES = {"tiny": 11_282_784, "small": 64_595_328, "medium": 181_095_168, "large": 569_808_384}
"""parameters"""
SOURCES = {
    "da_ddt": 822,
    "en_ewt": 2352,
    "hr_set": 1299,
    "pt_bosque": 1317,
    "sk_snk": 1593,
    "sr_set": 624,
    "sv_talbanken": 807,
    "zh_gsd": 750,
    "zh_gsdsimp": 750,
    "all": 10161,
}
"""steps of three epochs with batches of 16"""
OBJECTIVES = ("vanilla", "maml")
TUNINGS = ("head_only", "full")
UPDATES = 6000
INVALID = ("unfinished", "failed", "truncated predictions", "corrupt result", "not a run")
"""the kinds of folders that are no finished runs"""


@dataclass(frozen=True)
class Shape:
    """What is in a tree: every combination of these, and `invalid` folders of each kind of INVALID."""

    sizes: Sequence[str]
    sources: Sequence[str]
    seeds: int
    checkpoints: int
    invalid: int


SHAPES = {
    1_000: Shape(("tiny", "small"), ("da_ddt", "en_ewt", "hr_set", "sk_snk", "all"), 3, 8, 7),
    10_000: Shape(tuple(SIZES), tuple(SOURCES), 5, 12, 67),
}
"""by the rough number of run folders"""


class Tree:
    """Writes the folders of a tree."""

    def __init__(self, root: Path, shape: Shape):
        self.root, self.shape = root, shape
        self._sets = [PredictedSet.of_name(name) for name in SETS]
        self._metrics: dict[tuple[Any, ...], str] = {}
        versions = dict.fromkeys(
            ("python", "torch", "deepspeed", "transformers", "tokenizers", "numpy"), "1.2.3"
        )
        self._provenance = {
            "git_commit": "0123456789abcdef" * 2,
            "versions": versions,
            "host": "machine",
            "started": "2026-01-02T03:04:05+00:00",
            "fingerprints": {"weights": "0" * 64, "sentences": "1" * 64},
        }

    def write(self) -> None:
        """Write all folders; two calls write the same bytes."""
        shape = self.shape
        models = list(product(shape.sizes, OBJECTIVES, range(shape.seeds)))
        for size, objective, seed in models:
            self._write_pretraining(size, objective, seed)
        steps = np.linspace(0, UPDATES, shape.checkpoints + 1).astype(int)[1:].tolist()
        for (size, objective, seed), step, source, tuning in product(models, steps, shape.sources, TUNINGS):
            self._write_finetuning(size, objective, seed, step, source, tuning)
        for name in ("particle", "capitals"):
            self._write_baseline(name, "", 2)
        for name, source in product(("majority", "crf"), shape.sources):
            self._write_baseline(name, source, 3)
        for kind, index in product(INVALID, range(shape.invalid)):
            self._write_invalid(kind, index)

    def _origin(self, size: str, objective: str, seed: int, step: int) -> dict[str, Any]:
        return {
            "model": size,
            "objective": objective,
            "scope": "head",
            "rho": 0.5 if objective == "maml" else 0.0,
            "seed": seed,
            "parameters": SIZES[size],
            "variant": "",
            "data": "text",
            "tokenizer": "file",
            "generated_data": True,
            "corpus_fingerprint": "c0",
            "step": step,
        }

    def _write_pretraining(self, size: str, objective: str, seed: int) -> None:
        result = {
            "kind": "pretrain",
            "origin": self._origin(size, objective, seed, UPDATES),
            "steps": UPDATES,
            "tokens_total": 2048 * UPDATES,
            "flops_total": 1e12 * UPDATES,
            "seconds_total": 1.5 * UPDATES,
            "eval_loss_nats": 4.0,
            "eval_perplexity": 54.6,
            "data": "text",
            "generated_data": True,
        }
        config = {"model": {"name": size}, "meta": {"n_way": 32, "k_shot": 4}, "train": {"seed": seed}}
        metrics = self._pretraining_metrics(objective, seed)
        self._write_run(f"pretrain/{size}-{objective}-s{seed}", config, metrics, result)

    def _write_finetuning(
        self, size: str, objective: str, seed: int, step: int, source: str, tuning: str
    ) -> None:
        skill = 0.15 * list(SIZES).index(size) + 0.2 * (tuning == "full") + 0.3 * step / UPDATES
        skill += 0.02 * (objective == "maml")
        name = f"finetune/{size}-{objective}-s{seed}-{step}-{source}-{tuning}"
        origin = self._origin(size, objective, seed, step)
        metrics = self._finetuning_metrics(source, tuning, objective)
        self._write_tagger(name, origin, source, tuning, round(skill * (SKILLS - 1)), metrics)

    def _write_baseline(self, name: str, source: str, skill: int) -> None:
        folder = "-".join(filter(None, ("baseline/" + name, source)))
        self._write_tagger(folder, {"model": name, "objective": "baseline"}, source, "", skill, "")

    def _write_tagger(
        self, name: str, origin: Mapping[str, Any], source: str, tuning: str, skill: int, metrics: str
    ) -> None:
        """Write a fine-tuning run, or a baseline, which has no metrics."""
        steps = SOURCES[source] if metrics else 0
        sets: dict[str, Any] = {}
        draws = np.random.default_rng(list(name.encode()))
        folder = Run(self.root / name).predictions_dir
        folder.mkdir(parents=True)
        for item in self._sets:
            text, sets[item.name] = item.predictions(skill, draws, has_logprobs="majority" not in name)
            (folder / f"{item.name}.jsonl").write_text(text, encoding="utf-8")
        result = {
            "kind": name.split("/")[0],
            "origin": origin,
            "source": source,
            "tuning": tuning,
            "seed": 0,
            "ner_head": "crf",
            "steps": steps,
            "epochs": 3,
            "best_epoch": 3,
            "best_step": steps,
            "dev_f1": 0.5,
            "seconds_total": 700.1,
            "train_sentences": 4000,
            "train_sentences_split": 1,
            "source_sets": [source] if source != "all" else list(SOURCES)[:-1],
            "generated_data": True,
            "sets": sets,
        }
        config = {"source": source, "tuning": tuning, "ner": dict.fromkeys(map(str, range(40)), 0.1)}
        self._write_run(name, config, metrics, result)

    def _write_run(
        self, name: str, config: Mapping[str, Any], metrics: str, result: Mapping[str, Any] | None
    ) -> Run:
        run = Run(self.root / name)
        run.path.mkdir(parents=True, exist_ok=True)
        content = {"config": {**config, "run_dir": name}, "provenance": self._provenance}
        run.config_file.write_text(yaml.safe_dump(content, sort_keys=False))
        if metrics:
            run.metrics_file.write_text(metrics)
        if result is not None:
            run.result_file.write_text(json.dumps(result, indent=1) + "\n")
        return run

    def _finetuning_metrics(self, source: str, tuning: str, objective: str) -> str:
        key = (source, tuning, objective)
        if key not in self._metrics:
            self._metrics[key] = _finetuning_metrics(*key)
        return self._metrics[key]

    def _pretraining_metrics(self, objective: str, seed: int) -> str:
        key = (objective, seed)
        if key not in self._metrics:
            draws = np.random.default_rng(seed)
            lines = (line for step in range(UPDATES + 1) for line in _update_lines(step, objective, draws))
            self._metrics[key] = "".join(json.dumps(line) + "\n" for line in lines)
        return self._metrics[key]

    def _write_invalid(self, kind: str, index: int) -> None:
        """Write a folder that is not a finished run."""
        name = f"finetune/{kind.replace(' ', '_')}-{index}"
        metrics = self._finetuning_metrics("sk_snk", "head_only", "maml")
        if kind == "not a run":
            (self.root / name).mkdir()
            (self.root / name / "notes.txt").write_text("not a run\n")
            return
        if kind == "truncated predictions":
            origin = self._origin("tiny", "maml", 0, 1)
            self._write_tagger(name, origin, "sk_snk", "head_only", 1, metrics)
            file = Run(self.root / name).predictions_dir / "tl_trg.jsonl"
            file.write_bytes(file.read_bytes()[:-1000])
            return
        run = self._write_run(name, {}, metrics[:-20], None)
        if kind == "failed":
            run.error_file.write_text("Traceback\n  File x\nRuntimeError: out of memory\n")
        if kind == "corrupt result":
            run.result_file.write_bytes(bytes(range(256)) * 4)


def _finetuning_metrics(source: str, tuning: str, objective: str) -> str:
    steps = SOURCES[source]
    draws = np.random.default_rng(list(f"{source}{tuning}{objective}".encode()))
    decay = steps / (12 if objective == "maml" else 10)
    losses = 0.2 + 1.5 * np.exp(-np.arange(steps) / decay) + draws.normal(0, 0.05, steps)
    lines = [
        {
            "step": step + 1,
            "kind": "train",
            "epoch": 3 * step // steps,
            "loss_nats": loss,
            "lr": 3e-05,
            "seconds_total": 0.1 * step,
        }
        for step, loss in enumerate(losses.tolist())
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _update_lines(step: int, objective: str, draws: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield the lines of an update of pretraining; after every hundredth update, the measurements."""
    loss = 4 + 6 * np.exp(-step / 800)
    totals = {
        "grad_norm": 1.0,
        "lr": 3e-4,
        "seconds": 1.5,
        "tokens_per_second": 1365.3,
        "tokens_total": 2048 * step,
        "flops_total": 10**12 * step,
        "seconds_total": 1.5 * step,
        "skipped_total": 0,
        "skipped_in_row": 0,
    }
    if step and objective == "maml" and step % 2:
        yield {
            "step": step,
            "kind": "episode",
            "support_loss_nats": (loss - draws.random(11)).tolist(),
            "support_accuracy": draws.random(11).tolist(),
            "query_loss_nats": 3.0,
            "query_accuracy": 0.1,
            "mask_position_tokens": 70.0,
            **totals,
        }
    elif step:
        yield {"step": step, "kind": "lm", "lm_loss_nats": loss + 0.1 * draws.normal(), **totals}
    if step % 100 == 0:
        yield {"step": step, "kind": "eval", "eval_loss_nats": loss, "eval_perplexity": float(np.exp(loss))}
        matrices = ("q", "k", "v", "o", "gate", "up", "down")
        ranks = {matrix: draws.random(12).tolist() for matrix in matrices}
        entropies = draws.random((12, 12)).tolist()
        yield {
            "step": step,
            "kind": "dynamics",
            "effective_rank": ranks,
            "attention_entropy_ratio": entropies,
        }
