"""Make two updates of each kind of objective as the trainer does, under DeepSpeed, and save their results.

arguments: OUT STAGE,... CASE,...

Weights and AdamW's moments (Engine.save) and results.json are written to OUT/CASE-STAGE. test_units.py compares them with plain
PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from engine_cases import Tokens

from metapt.config import PretrainConfig, commandline
from metapt.data.batches import Batches
from metapt.data.corpus_words import TokenKind, find_units
from metapt.data.episodes import EpisodeSampler, TaskSampler, WindowIndex
from metapt.data.word_classes import WordClasses
from metapt.data.word_windows import WordIndex, WordWindowSampler
from metapt.meta.terms import Term, add_terms
from metapt.meta.update_plan import plan_update
from metapt.models.meta_lm import MetaLM, build_meta_lm
from metapt.training.engine import Engine
from metapt.training.units import TrainingData, UpdateUnits

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
UPDATES, LR, VOCABULARY = 2, 1e-3, 300
SIZES = (4, 6, 3)
SMALL = [
    f"model.vocab_size={VOCABULARY}",
    "model.hidden_size=32",
    "model.num_layers=2",
    "train.seq_len=40",
    "train.micro_batch=4",
    "train.micro_batches_per_update=4",
    "meta.batch_sequences=2",
    "meta.max_window_fraction=1",
    "meta.n_way=4",
    "meta.inner_steps=3",
    "meta.head_dropout=0",
    "episodes.n_way=3",
    "episodes.max_examples=64",
    "episodes.start_step=0",
    "classes.repeats=1",
]
CLASSES = f"classes.sizes=[{','.join(map(str, SIZES))}]"
WINDOWS = [
    "objective=maml_paper",
    CLASSES,
    "meta.task=word_classes",
    "meta.rho=1",
    "meta.tasks_per_step=1",
    "meta.normalize=true",
    "meta.inner_lr=null",
    "meta.k_shot=2",
    "meta.q_query=2",
    "meta.window=20",
]
CASES = {
    "both": ["objective=both", CLASSES, "episodes.inner_steps=3"],
    "twin": ["objective=twin", CLASSES],
    "zero": ["objective=episodes", CLASSES, "episodes.initial_head=zero", "episodes.normalize=false"],
    "persistent rows": [
        "objective=episodes",
        CLASSES,
        "episodes.initial_head=persistent",
        "episodes.inner_steps=2",
    ],
    "learned rows": [
        "objective=episodes",
        CLASSES,
        "episodes.initial_head=learned",
        "episodes.inner_steps=2",
    ],
    "both-bf16": ["objective=both", CLASSES, "train.precision=bf16"],
    "few words": ["objective=both", CLASSES, "episodes.n_way=2"],
    "per_micro_batch": ["objective=maml_authors", "meta.tasks_per_step=1"],
    "per_micro_batch-full": ["objective=maml_authors", "meta.scope=full"],
    "sum": [
        "objective=maml_paper",
        "meta.mixing=sum",
        "meta.weight=0.3",
        "meta.rho=1",
        "meta.tasks_per_step=3",
    ],
    "windows-prototypes": [*WINDOWS, "meta.initial_head=prototypes"],
    "windows-prototypes-last_n": [*WINDOWS, "meta.initial_head=prototypes", "meta.scope=last_n"],
    "windows-zero-full": [*WINDOWS, "meta.initial_head=zero", "meta.scope=full", "meta.mixing=sum"],
    "windows-persistent": [*WINDOWS, "meta.initial_head=persistent", "meta.inner_steps=0"],
    "three tasks": ["objective=maml_paper", "meta.rho=1", "meta.tasks_per_step=3"],
    "three of everything": [
        "objective=maml_paper",
        "meta.mixing=sum",
        "meta.rho=1",
        "meta.scope=full",
        "meta.n_way=3",
        "meta.k_shot=1",
        "meta.q_query=1",
        "meta.tasks_per_step=3",
        "train.micro_batches_per_update=3",
    ],
    "episodes before text": ["objective=maml_paper", "train.seed=6"],
    "text before episodes": ["objective=maml_paper", "train.seed=3"],
    "all": [
        "objective=both",
        CLASSES,
        "meta.rho=1",
        "meta.mixing=sum",
        "meta.weight=0.5",
        "meta.tasks_per_step=3",
    ],
}


def config_of(case: str, ds: str = "zero0") -> PretrainConfig:
    return commandline.load("pretrain", ["model=nano", "train.seed=2", *SMALL, *CASES[case], f"ds={ds}"])


def token_kinds(case: str) -> np.ndarray:
    """Every token but four is a word of its own; with few words, only tokens below 100 are, so that some groups have no episode."""
    kinds = np.full(VOCABULARY, TokenKind.BEGINS, dtype=np.uint8)
    kinds[:4] = TokenKind.ALONE
    if case == "few words":
        kinds[100:] = TokenKind.ALONE
    return kinds


def word_classes() -> WordClasses:
    keys = np.sort(find_units(np.arange(4, VOCABULARY), token_kinds("")).keys)
    draw = np.random.default_rng(0)
    partitions = np.stack([draw.integers(0, size, len(keys)) for size in SIZES]).astype(np.int16)
    return WordClasses(keys, np.ones(len(keys), np.int64), partitions, ())


def data_of(case: str, config: PretrainConfig) -> TrainingData:
    tokens = np.random.default_rng(0).integers(4, VOCABULARY, 20_000)
    stream, meta = Tokens(tokens), config.meta
    classes, kinds, seed = (
        word_classes() if config.classes.sizes else None,
        token_kinds(case),
        config.train.seed,
    )
    sampler: TaskSampler | None = None
    if meta.rho and meta.task == "word_classes":
        words = WordIndex.build(stream, kinds, word_classes(), meta.window, len(tokens))
        sampler = WordWindowSampler(stream, words, word_classes(), meta, seed, 1)
    elif meta.rho:
        index = WindowIndex.build(tokens, VOCABULARY, meta.window, meta.min_context)
        sampler = EpisodeSampler(stream, index, meta, seed, 1, 0)
    return TrainingData(Batches(stream, config.train.seq_len, seed), sampler, classes, kinds)


def model_of(config: PretrainConfig) -> tuple[MetaLM, dict[str, Term]]:
    """The model with the heads of its terms; persistent heads do not start at zero, so that all gradients matter."""
    meta_lm = build_meta_lm(config)
    terms = add_terms(meta_lm, config, word_classes())
    for name in ("multitask.weight", "episodes.rows.weight", "episodes.rows.bias"):
        if (heads := dict(meta_lm.term_heads.named_parameters()).get(name)) is not None:
            values = np.random.default_rng(1).standard_normal(heads.shape) * 0.1
            heads.data.copy_(heads.new_tensor(values))
    return meta_lm, terms


def run(case: str, ds: str, folder: Path) -> None:
    """Make the updates of a case and write its results."""
    config = config_of(case, ds)
    meta_lm, terms = model_of(config)
    engine = Engine(meta_lm, config)
    units = UpdateUnits(config, data_of(case, config), terms, engine, lambda: None)
    results = []
    for update in range(UPDATES):
        values = units.accumulate_gradient(update, plan_update(config, update))
        results.append({**values, "grad_norm": engine.step(LR)})
    engine.save(folder)
    if engine.rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    engine.barrier()


def main(argv: Sequence[str]) -> None:
    out, stages, cases = argv
    for ds in stages.split(","):
        for name in cases.split(","):
            run(name, ds, Path(out) / f"{name}-{ds}")
