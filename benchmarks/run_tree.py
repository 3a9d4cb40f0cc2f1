"""A tree of run folders as the paper's grid over checkpoints and seeds would leave it, for timing the report.

Text, tags and losses are made up; sizes are those of real ones: sets have the sentences, words and gold spans of Universal
NER's, pretraining runs a line an update, tuned ones a line a step, and about one folder in thirty is no finished run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metapt.data.iob2 import TYPES, spans
from metapt.evaluation.span_f1 import span_counts
from metapt.runs import Run

SETS = {
    "tl_trg": (128, 734, 23),
    "tl_ugnayan": (94, 1097, 33),
    "ceb_gja": (188, 1295, 49),
    "da_ddt": (565, 10023, 410),
}
"""(sentences, words, gold spans) of the evaluation sets"""
SIZES = {"tiny": 11_282_784, "small": 64_595_328, "medium": 181_095_168, "large": 569_808_384}
SOURCES = {"da_ddt": 822, "en_ewt": 2352, "hr_set": 1299, "pt_bosque": 1317, "sk_snk": 1593, "sr_set": 624, "sv_talbanken": 807, "zh_gsd": 750, "zh_gsdsimp": 750, "all": 10161}  # fmt: skip
"""to the steps of three epochs, batches of 16"""
LEVELS, VARIANTS = 8, 25  # of skill, and of predictions for a sentence at each
UPDATES = 6000
STEP = '{{"step": {}, "kind": "train", "epoch": {}, "loss_nats": {!r}, "lr": 3e-05, "seconds_total": {!r}}}\n'


@dataclass(frozen=True)
class Shape:
    """What is in a tree; `broken` folders of each kind are no finished runs."""

    sizes: Sequence[str] = tuple(SIZES)
    sources: Sequence[str] = tuple(SOURCES)
    seeds: int = 5
    checkpoints: int = 12
    updates: int = UPDATES
    broken: int = 67

    @property
    def folders(self) -> int:
        models = 2 * len(self.sizes) * self.seeds
        rest = 2 + 2 * len(self.sources) + len(BROKEN) * self.broken
        return models + 2 * models * len(self.sources) * self.checkpoints + rest


@dataclass
class MadeSet:
    """An evaluation set: of each sentence the first part of its line, and (tags, log-probabilities, counts) to choose from."""

    name: str
    heads: list[str] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    logprobs: list[list[str]] = field(default_factory=list)
    counts: list[list[np.ndarray]] = field(default_factory=list)
    words: int = 0

    @classmethod
    def make(cls, name: str) -> MadeSet:
        """The set of this name; a function of it alone."""
        sentences, words, gold_spans = SETS[name]
        draw = np.random.default_rng(list(name.encode()))
        made = cls(name, words=0)
        lengths = 1 + draw.multinomial(words - sentences, np.full(sentences, 1 / sentences))
        chosen = draw.multinomial(gold_spans, np.full(sentences, 1 / sentences))
        for index, (length, many) in enumerate(zip(lengths, chosen, strict=True)):
            vocabulary = draw.integers(0, 5000, length)
            tokens = ["".join("bkdghlmnprst"[i % 12] + "aiou"[i % 4] for i in (w, w // 12, w // 144)) for w in vocabulary.tolist()]  # fmt: skip
            gold = _with_spans(["O"] * int(length), int(many), draw)
            head = json.dumps({"id": f"{name}-{index}", "words": tokens, "gold": gold}, ensure_ascii=False)
            made.heads.append(head[:-1])
            taggings = [
                _tagged(gold, level / (LEVELS - 1), draw) for level in range(LEVELS) for _ in range(VARIANTS)
            ]
            made.tags.append([json.dumps(tags) for tags in taggings])
            logs = -np.exp(draw.normal(-5, 2, (LEVELS * VARIANTS, int(length)))).round(6)
            made.logprobs.append([json.dumps(row) for row in logs.tolist()])
            made.counts.append([_counts(gold, tags) for tags in taggings])
            made.words += int(length)
        return made

    def predictions(self, level: int, draw: np.random.Generator, has_logprobs: bool = True) -> tuple[str, dict[str, Any]]:  # fmt: skip
        """A file of predictions, and the set's entry in result.json."""
        chosen = (level * VARIANTS + draw.integers(0, VARIANTS, len(self.heads))).tolist()
        lines = []
        for head, tags, logs, index in zip(self.heads, self.tags, self.logprobs, chosen, strict=True):
            log = logs[index] if has_logprobs else "null"
            lines.append(f'{head}, "predicted": {tags[index]}, "gold_logprob": {log}}}\n')
        totals = sum(rows[index] for rows, index in zip(self.counts, chosen, strict=True))
        entry = _figures(*totals.sum(axis=0).tolist())
        entry |= {"split": "test", "sentences": len(self.heads), "words": self.words, "f1_interval": [0.1, 0.9], "conlleval": dict(entry)}  # fmt: skip
        entry["per_type"] = {kind: _figures(*row) for kind, row in zip(TYPES, totals.tolist(), strict=True)}
        return "".join(lines), entry


def _with_spans(tags: list[str], many: int, draw: np.random.Generator) -> list[str]:
    """The tags with up to so many spans of one to three words in places that are free."""
    for _ in range(many):
        size, kind = int(draw.integers(1, 4)), TYPES[draw.choice(3, p=[0.6, 0.2, 0.2])]
        start = int(draw.integers(0, len(tags)))
        if all(tag == "O" for tag in tags[start : start + size]):
            end = min(start + size, len(tags))
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


def _tagged(gold: Sequence[str], skill: float, draw: np.random.Generator) -> list[str]:
    """What a model of this skill (0 to 1) predicts: spans missed, of another type, a word longer, and spurious ones."""
    tags = ["O"] * len(gold)
    for kind, start, end in spans(gold):
        fate = draw.random()
        if fate > 0.2 + 0.8 * skill:
            kind, end = TYPES[draw.integers(3)], min(end + int(draw.integers(2)), len(gold))
        if fate < 0.5 + 0.5 * skill:
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return _with_spans(tags, int(draw.random() < 0.3 * (1 - skill)), draw)


def _counts(gold: Sequence[str], tags: Sequence[str]) -> np.ndarray:
    """[types, (correct, predicted, gold)]"""
    sides = [[span for span in spans(side) if span[0] == kind] for kind in TYPES for side in (tags, gold)]
    return span_counts(sides[::2], sides[1::2])


def _figures(correct: int, predicted: int, gold: int) -> dict[str, Any]:
    total = predicted + gold
    shares = {"precision": correct / max(1, predicted), "recall": correct / max(1, gold), "f1": 2 * correct / max(1, total)}  # fmt: skip
    return {"gold_spans": gold, "predicted_spans": predicted, "correct_spans": correct, **shares}


class Tree:
    """Writes the folders of a tree."""

    def __init__(self, root: Path, shape: Shape):
        self.root, self.shape = root, shape
        self.sets = [MadeSet.make(name) for name in SETS]
        self._curves: dict[Any, str] = {}

    def write(self) -> None:
        """Everything; two calls write the same bytes."""
        for size, objective, seed in product(self.shape.sizes, ("vanilla", "maml"), range(self.shape.seeds)):
            self._pretraining(size, objective, seed)
        steps = np.linspace(0, self.shape.updates, self.shape.checkpoints + 1).astype(int)[1:].tolist()
        models = product(self.shape.sizes, ("vanilla", "maml"), range(self.shape.seeds), steps)
        for (size, objective, seed, step), source, tuning in product(
            models, self.shape.sources, ("head_only", "full")
        ):
            self._finetuning(size, objective, seed, step, source, tuning)
        for name in ("particle", "capitals"):
            self._scored(f"baseline/{name}", {"model": name, "objective": "baseline"}, "", "", 2)
        for name, source in product(("majority", "crf"), self.shape.sources):
            self._scored(f"baseline/{name}-{source}", {"model": name, "objective": "baseline"}, source, "", 3)
        for kind, index in product(BROKEN, range(self.shape.broken)):
            self._broken(kind, index)

    def _origin(self, size: str, objective: str, seed: int, step: int) -> dict[str, Any]:
        values = {
            "scope": "head",
            "rho": 0.5 if objective == "maml" else 0.0,
            "seed": seed,
            "parameters": SIZES[size],
        }
        about = {
            "variant": "",
            "data": "text",
            "tokenizer": "file",
            "generated_data": True,
            "corpus_fingerprint": "c0",
        }
        return {"model": size, "objective": objective, **values, **about, "step": step}

    def _pretraining(self, size: str, objective: str, seed: int) -> None:
        updates = self.shape.updates
        totals = {
            "tokens_total": 2048 * updates,
            "flops_total": 1e12 * updates,
            "seconds_total": 1.5 * updates,
        }
        result = {"kind": "pretrain", "origin": self._origin(size, objective, seed, updates), "steps": updates, **totals}  # fmt: skip
        result |= {
            "eval_loss_nats": 4.0,
            "eval_perplexity": 54.6,
            "data": "text",
            "generated_data": True,
        }
        config = {"model": {"name": size}, "meta": {"n_way": 32, "k_shot": 4}, "train": {"seed": seed}}
        self._run(f"pretrain/{size}-{objective}-s{seed}", config, self._updates(objective, seed), result)

    def _finetuning(self, size: str, objective: str, seed: int, step: int, source: str, tuning: str) -> None:
        skill = 0.15 * list(SIZES).index(size) + 0.2 * (tuning == "full") + 0.3 * step / self.shape.updates
        skill += 0.02 * (objective == "maml")
        name = f"finetune/{size}-{objective}-s{seed}-{step}-{source}-{tuning}"
        self._scored(
            name, self._origin(size, objective, seed, step), source, tuning, round(skill * (LEVELS - 1))
        )

    def _scored(self, name: str, origin: Mapping[str, Any], source: str, tuning: str, level: int) -> None:
        """A tuned model, or a baseline."""
        tuned = name.startswith("finetune")
        steps = SOURCES[source] if tuned else 0
        draw = np.random.default_rng(list(name.encode()))
        result: dict[str, Any] = {
            "kind": name.split("/")[0],
            "origin": dict(origin),
            "source": source,
            "tuning": tuning,
        }
        result |= {
            "seed": 0,
            "ner_head": "crf",
            "steps": steps,
            "epochs": 3,
            "best_epoch": 3,
            "best_step": steps,
        }
        result |= {"dev_f1": 0.5, "seconds_total": 700.1, "train_sentences": 4000, "train_sentences_cut": 1}
        result |= {
            "source_sets": [source] if source != "all" else list(SOURCES)[:-1],
            "generated_data": True,
            "sets": {},
        }
        folder = Run(self.root / name).predictions_dir
        folder.mkdir(parents=True)
        for made in self.sets:
            text, entry = made.predictions(level, draw, has_logprobs="majority" not in name)
            (folder / f"{made.name}.jsonl").write_text(text, encoding="utf-8")
            result["sets"][made.name] = entry
        metrics = self._losses(source, tuning, str(origin["objective"])) if tuned else ""
        self._run(name, {"source": source, "tuning": tuning, "ner": dict.fromkeys(map(str, range(40)), 0.1)}, metrics, result)  # fmt: skip

    def _run(
        self, name: str, config: Mapping[str, Any], metrics: str, result: Mapping[str, Any] | None
    ) -> Run:
        run = Run(self.root / name)
        run.path.mkdir(parents=True, exist_ok=True)
        if "config" not in self._curves:
            versions = dict.fromkeys(
                ("python", "torch", "deepspeed", "transformers", "tokenizers", "numpy"), "1.2.3"
            )
            provenance = {"git_commit": "0123456789abcdef" * 2, "versions": versions, "host": "machine", "started": "2026-01-02T03:04:05+00:00", "fingerprints": {"weights": "0" * 64, "sentences": "1" * 64}}  # fmt: skip
            self._curves["config"] = yaml.safe_dump({"provenance": provenance}, sort_keys=False)
        text = yaml.safe_dump({"config": {**config, "run_dir": name}}, sort_keys=False)
        run.config_file.write_text(text + self._curves["config"])
        if metrics:
            run.metrics_file.write_text(metrics)
        if result is not None:
            run.result_file.write_text(json.dumps(result, indent=1) + "\n")
        return run

    def _losses(self, source: str, tuning: str, objective: str) -> str:
        key = (source, tuning, objective)
        if key not in self._curves:
            steps = SOURCES[source]
            draw = np.random.default_rng(list("".join(key).encode()))
            speed = steps / (12 if objective == "maml" else 10)
            curve = 0.2 + 1.5 * np.exp(-np.arange(steps) / speed) + draw.normal(0, 0.05, steps)
            lines = [
                STEP.format(s + 1, 3 * s // steps, loss, 0.1 * s) for s, loss in enumerate(curve.tolist())
            ]
            self._curves[key] = "".join(lines)
        return self._curves[key]

    def _updates(self, objective: str, seed: int) -> str:
        key = (objective, seed)
        if key not in self._curves:
            draw = np.random.default_rng(seed)
            lines: Iterator[dict[str, Any]] = (line for step in range(self.shape.updates + 1) for line in _update(step, objective, draw))  # fmt: skip
            self._curves[key] = "".join(json.dumps(line) + "\n" for line in lines)
        return self._curves[key]

    def _broken(self, kind: str, index: int) -> None:
        """A folder that is no finished run."""
        path = self.root / "finetune" / f"{kind.replace(' ', '_')}-{index}"
        if kind == "foreign":
            path.mkdir()
            (path / "notes.txt").write_text("not a run\n")
            return
        if kind == "half a file":
            origin = self._origin("tiny", "maml", 0, 1)
            self._scored(f"finetune/{path.name}", origin, "sk_snk", "head_only", 1)
            file = Run(path).predictions_dir / "tl_trg.jsonl"
            file.write_bytes(file.read_bytes()[:-1000])
            return
        run = self._run(f"finetune/{path.name}", {}, self._losses("sk_snk", "head_only", "maml")[:-20], None)
        if kind == "failed":
            run.error_file.write_text("Traceback\n  File x\nRuntimeError: out of memory\n")
        if kind == "corrupt":
            run.result_file.write_bytes(bytes(range(256)) * 4)


BROKEN = ("unfinished", "failed", "half a file", "corrupt", "foreign")


def _update(step: int, objective: str, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The lines of an update of pretraining; every hundredth is followed by measurements."""
    level = 4 + 6 * np.exp(-step / 800)
    totals = {
        "grad_norm": 1.0,
        "lr": 3e-4,
        "seconds": 1.5,
        "tokens_per_second": 1365.3,
        "tokens_total": 2048 * step,
    }
    totals |= {
        "flops_total": 10**12 * step,
        "seconds_total": 1.5 * step,
        "skipped_total": 0,
        "skipped_in_row": 0,
    }
    if step and objective == "maml" and step % 2:
        inner = {
            "support_loss_nats": (level - draw.random(11)).tolist(),
            "support_accuracy": draw.random(11).tolist(),
        }
        yield {"step": step, "kind": "episode", **inner, "query_loss_nats": 3.0, "query_accuracy": 0.1, "mask_position_tokens": 70.0, **totals}  # fmt: skip
    elif step:
        yield {"step": step, "kind": "lm", "lm_loss_nats": level + 0.1 * draw.normal(), **totals}
    if step % 100 == 0:
        yield {
            "step": step,
            "kind": "eval",
            "eval_loss_nats": level,
            "eval_perplexity": float(np.exp(level)),
        }
        share = {kind: draw.random(12).tolist() for kind in ("q", "k", "v", "o", "gate", "up", "down")}
        yield {"step": step, "kind": "dynamics", "effective_rank": share, "attention_entropy_ratio": draw.random((12, 12)).tolist()}  # fmt: skip
