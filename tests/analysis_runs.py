"""Writes run folders in the documented format; predictions, losses and curves are random functions of a seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from analysis.load.records import Evaluation, GoldSet
from metapt.evaluation.span_f1 import Span
from metapt.evaluation.span_matching import match_set
from metapt.randomness import generator

SETS = {"tl_trg": 24, "ceb_gja": 30, "en_ewt": 60}
TYPES = ("PER", "LOC", "ORG")
PARAMETERS = {"nano": 120_000, "tiny": 11_282_784, "small": 64_595_328}
PROVENANCE = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "host": "machine",
    "started": "2026-01-02T03:04:05+00:00",
    "fingerprints": {"corpus": "c0"},
}


def sentences(name: str, words: Sequence[str] = ()) -> list[tuple[list[str], list[str]]]:
    """Return words and gold tags of a synthetic set, as a function of its name."""
    found = []
    for index in range(SETS[name]):
        draw = generator(7, f"gold/{name}", index)
        tokens, tags = [], []
        for _ in range(draw.integers(2, 7)):
            if draw.random() < 0.3:
                kind = TYPES[draw.choice(3, p=[0.7, 0.2, 0.1])]
                size = int(draw.integers(1, 3))
                tokens += [
                    *(["si"] if kind == "PER" and draw.random() < 0.8 else ["sa"]),
                    *["Maria", "Santos"][:size],
                ]
                tags += ["O", f"B-{kind}", f"I-{kind}"][: size + 1]
            else:
                tokens.append("bata")
                tags.append("O")
        found.append((tokens, tags))
    if words:
        found[0] = (list(words), ["O"] * len(words))
    return found


def predictions(gold: Sequence[str], skill: float, draw: np.random.Generator) -> list[str]:
    """Return the gold tags with probability `skill`, random tags otherwise."""
    if draw.random() < skill:
        return list(gold)
    return [
        str(tag)
        for tag in draw.choice(["O", "B-PER", "B-LOC", "I-PER"], size=len(gold), p=[0.7, 0.15, 0.1, 0.05])
    ]


def measurement(rank: float, objective: str) -> dict[str, Any]:
    """Return a measurement of learning dynamics: attention matrices have this effective rank, the others half of it."""
    shares = {kind: [rank, rank] for kind in "qkvo"}
    shares |= {kind: [rank / 2, rank / 2] for kind in ("gate", "up", "down")}
    values: dict[str, Any] = {"effective_rank": shares, "attention_entropy_ratio": [[0.9, 0.7], [0.5, 0.7]]}
    if objective == "maml":
        values |= {"probe_support_accuracy": [0.1, 0.4, 0.6], "probe_query_accuracy": [0.1, 0.2, 0.3]}
    return values


def level(step: int, seed: int) -> float:
    """Return the next-token loss after `step` updates, in nats."""
    return 2 + 5 * np.exp(-step / 20) + 0.1 * np.sin(step * (1 + seed))


def eval_values(loss: float) -> dict[str, float]:
    return {"eval_loss_nats": loss, "eval_perplexity": float(np.exp(loss))}


def pretraining_lines(objective: str, seed: int, steps: int, flops: float) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; with objective maml, every second update is an episode."""
    lines: list[dict[str, Any]] = [{"step": 0, "kind": "eval", **eval_values(7.0)}]
    for step in range(1, steps + 1):
        line: dict[str, Any] = {"step": step, "kind": "lm", "grad_norm": 1.0, "lr": 1e-3}
        if objective == "maml" and step % 2 == 0:
            line |= {
                "kind": "episode",
                "support_loss_nats": list(np.linspace(3.4, 3.4 - step / steps, 11)),
                "support_accuracy": list(np.linspace(0.05, 0.3, 11)),
                "query_loss_nats": 3.0,
                "query_accuracy": 0.05 + 0.2 * step / steps,
                "mask_position_tokens": 70.0,
            }
        else:
            line |= {"lm_loss_nats": level(step, seed)}
        totals = {"tokens_total": step * 2048, "flops_total": step * flops, "seconds_total": step * 0.5}
        lines.append({**line, "seconds": 0.5, "tokens_per_second": 4096, **totals})
        if step % 10 == 0:
            lines.append({"step": step, "kind": "eval", **eval_values(level(step, seed))})
            lines.append({"step": step, "kind": "dynamics", **measurement(1 - 0.5 * step / steps, objective)})
    return lines


def write_pretraining(
    root: Path,
    scale: str = "nano",
    objective: str = "maml",
    seed: int = 0,
    label: str = "",
    steps: int = 60,
    generated: bool = False,
    flops: float = 4e12,
    settings: Mapping[str, Any] | None = None,
    corpus: str = "c0",
) -> dict[str, Any]:
    """Write a finished pretraining run with `flops` per update and these settings; return the origin of its model."""
    parts = [scale, objective, label.replace("/", "_"), f"s{seed}", *map(str, (settings or {}).values())]
    folder = root / "pretrain" / "-".join(filter(None, parts))
    origin = {
        "model": scale,
        "objective": objective,
        "scope": "head",
        "rho": 0.5,
        "seed": seed,
        "step": steps,
    }
    origin |= {
        "parameters": PARAMETERS[scale] + len(label),
        "variant": label,
        "data": "demo",
        "tokenizer": "train",
    }
    origin |= {"generated_data": generated, "corpus_fingerprint": corpus, "settings": dict(settings or {})}
    result = {
        "kind": "pretrain",
        "origin": origin,
        "steps": steps,
        "tokens_total": steps * 2048,
        "flops_total": steps * flops,
    }
    result |= {
        "seconds_total": steps * 0.5,
        "corpus_passes": steps / 40,
        **eval_values(level(steps, seed)),
    }
    write_run(
        folder,
        {"meta": {"n_way": 8}, "model": {"name": scale}},
        pretraining_lines(objective, seed, steps, flops),
        {**result, "data": "demo", "generated_data": generated},
    )
    return origin


def write_finetuning(
    root: Path,
    origin: dict[str, Any],
    source: str = "en_ewt",
    tuning: str = "head_only",
    skill: float = 0.4,
    steps: int = 120,
    sets: Iterable[str] = SETS,
    words: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished fine-tuning run of the model of `origin`, with the seed of its pretraining and these settings."""
    seed = origin.get("seed", 0)
    parts = [
        origin["model"],
        origin.get("objective"),
        origin.get("variant"),
        str(origin.get("step")),
        source,
        tuning,
        f"s{seed}",
        *map(str, {**origin.get("settings", {}), **(settings or {})}.values()),
    ]
    folder = root / "finetune" / "-".join(filter(None, parts)).replace("/", "_")
    result = {
        "kind": "finetune",
        "origin": origin,
        "source": source,
        "tuning": tuning,
        "seed": seed,
        "ner_head": "crf",
        "settings": dict(settings or {}),
    }
    result |= {
        "steps": steps,
        "epochs": 4,
        "best_epoch": 3,
        "best_step": steps * 3 // 4,
        "dev_f1": 0.5,
        "seconds_total": 12.5,
    }
    result |= {
        "train_sentences": 480,
        "train_sentences_split": 2,
        "generated_data": origin.get("generated_data", False),
        "sets": {name: write_predictions(folder, name, skill, seed, words) for name in sets},
    }
    lines = finetuning_lines(folder.name, seed, steps, speed=20 if origin.get("objective") == "maml" else 25)
    write_run(folder, {"source": source, "tuning": tuning}, lines, result)
    return folder


def write_predictions(
    folder: Path, name: str, skill: float, seed: int, words: Sequence[str]
) -> dict[str, Any]:
    """Write the predictions of a run on a set; return their scores."""
    draw = generator(seed, folder.name + name)
    rows = [(tokens, gold, predictions(gold, skill, draw)) for tokens, gold in sentences(name, words)]
    lines = [
        {
            "id": f"{name}-{index}",
            "words": tokens,
            "gold": gold,
            "predicted": predicted,
            "gold_logprob": [-0.1] * len(gold),
        }
        for index, (tokens, gold, predicted) in enumerate(rows)
    ]
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "predictions" / f"{name}.jsonl").write_text(text)
    return score([row[1] for row in rows], [row[2] for row in rows])


def finetuning_lines(run: str, seed: int, steps: int, speed: float) -> list[dict[str, Any]]:
    """Metrics of a run whose loss falls by a factor e in `speed` steps, with four epochs."""
    noise = generator(seed, f"loss/{run}").normal(0, 0.05, steps)
    losses = 0.2 + 1.5 * np.exp(-np.arange(steps) / speed) + noise
    lines: list[dict[str, Any]] = [
        {"step": step, "kind": "train", "loss_nats": loss, "lr": 1e-4, "seconds_total": step * 0.1}
        for step, loss in enumerate(losses, 1)
    ]
    return lines + [
        {"step": steps // 4 * epoch, "kind": "dev", "epoch": epoch, "f1": 0.1 * epoch}
        for epoch in range(1, 5)
    ]


def write_baseline(root: Path, name: str, source: str = "", skill: float = 0.4) -> Path:
    """Write a finished run of a baseline; only the CRF has probabilities."""
    tuned = write_finetuning(root, {"model": name, "objective": "baseline"}, source, "", skill, steps=1)
    folder = root / "baseline" / "-".join(filter(None, [name, source]))
    folder.parent.mkdir(exist_ok=True)
    tuned.rename(folder)
    (folder / "metrics.jsonl").unlink()
    for file in (folder / "predictions").glob("*.jsonl") if name != "crf" else ():
        lines = [{**json.loads(line), "gold_logprob": None} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = json.loads((folder / "result.json").read_text())
    for absent in ("ner_head", "steps", "epochs", "best_epoch", "best_step", "train_sentences_split"):
        del result[absent]
    result |= {"kind": "baseline", "dev_f1": None, "source_sets": [source] if source else []}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def score(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, Any]:
    """Return a set's entry in result.json, computed by seqeval."""
    micro = float(f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0))
    per_type = f1_score(gold, predicted, mode="strict", scheme=IOB2, average=None, zero_division=0)
    kinds = sorted({tag[2:] for tags in [*gold, *predicted] for tag in tags if tag.startswith("B-")})
    return {
        "split": "test",
        "f1": micro,
        "per_type": {kind: {"f1": float(f1)} for kind, f1 in zip(kinds, per_type, strict=True)},
    }


def write_run(
    folder: Path, config: dict[str, Any], lines: list[dict[str, Any]], result: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config, "provenance": PROVENANCE}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps(result))


def write_grid(
    root: Path,
    scales: Sequence[str] = ("nano",),
    objectives: Sequence[str] = ("vanilla", "maml"),
    seeds: Sequence[int] = (0,),
    labels: Sequence[str] = ("",),
    sources: Sequence[str] = ("en_ewt",),
    tunings: Sequence[str] = ("head_only", "full"),
    steps: Sequence[int] = (60,),
    generated: bool = False,
    words: Sequence[str] = (),
) -> Path:
    """Write a grid of finished runs, in which MAML is better than vanilla."""
    for scale in scales:
        for objective in objectives:
            for seed in seeds:
                for label in labels:
                    origin = write_pretraining(root, scale, objective, seed, label, generated=generated)
                    for step in steps:
                        for source in sources:
                            for tuning in tunings:
                                skill = 0.3 + 0.2 * (objective == "maml") + 0.1 * (tuning == "full")
                                write_finetuning(
                                    root, {**origin, "step": step}, source, tuning, skill, words=words
                                )
    return root


def evaluation(gold: GoldSet, predicted: Iterable[Sequence[Span]]) -> Evaluation:
    """Return an evaluation of predicted spans, one sequence per sentence; its F1 scores are not set."""
    match = match_set(gold.spans, [tuple(sentence) for sentence in predicted])
    totals = tuple(match.counts.sum(axis=0).tolist())
    return Evaluation(gold, *match, totals, 0.0, 0.0, {}, np.empty(0, dtype=np.float32), {})
