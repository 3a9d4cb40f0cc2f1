"""Word classes as plain features: is what word-class tasks teach a decoder only lexical (Täckström et al. 2012)?

    python benchmarks/class_features.py GRID OUT             train and score what is missing, then print the table
    python benchmarks/class_features.py GRID OUT results     print the table of what is there
    python benchmarks/class_features.py GRID OUT coverage    print how many words of entities have classes, by set

GRID is the folder of a grid with objective vanilla and frozen decoders whose pretraining runs are finished, such as
runs/study2. For each fine-tuning run of these decoders, OUT/finetune gets a run with the same settings in which the classes of a
word are features beside its hidden state: each class adds learned scores to the tags. OUT/baseline gets the surface CRF
with the classes of a word and of its neighbours as further features, for each source and with the settings of the
baseline `crf` of the grid. Both use the partitions of the pretraining tasks, for all words that have a class.

The classes are over word types of the pretraining text. In another language most words have no class; the table says how
many have one. A command that is stopped resumes; `metapt report GRID OUT` compares the runs as variant class_features of vanilla.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from metapt import atomic_folders, randomness
from metapt.config import BaselineConfig, FinetuneConfig, commandline, identity
from metapt.data.corpus import prepare_corpus
from metapt.data.corpus_classes import corpus_classes, corpus_token_kinds
from metapt.data.corpus_words import TokenKind, find_units
from metapt.data.iob2 import Sentence
from metapt.data.word_classes import WordClasses
from metapt.evaluation.baselines import NEIGHBOURS, surface_crf, surface_features
from metapt.evaluation.run_baseline import run_baseline
from metapt.finetuning.features import FeatureExtractor
from metapt.finetuning.inputs import find_inputs
from metapt.finetuning.resume import FinetuneCheckpoints
from metapt.finetuning.run_finetuning import training_result
from metapt.finetuning.score_sets import score_sets
from metapt.finetuning.setup import FinetuneSetup, build_setup
from metapt.finetuning.tuner import Tuner
from metapt.launch.jobs import Job, Plan
from metapt.runs import Run
from metapt.tagger.encoding import EncodedSet, EncodingSettings, WordSubwords, WordTokenizer, load_tokenizer
from metapt.tagger.model import TagLayer, pad_packed
from metapt.training.signals import StopRequest

VARIANT = "class_features"
CRF = "crf_classes"
COVERED = "words_with_classes"  # entry of a set in result.json: the fraction of its words that have classes
MAX_SUBWORDS = 64  # of a word whose classes are looked up; words of classes have at most 8


class ClassTable:
    """The classes of words, as numbers from 1 over all partitions that are trained on; 0 for a word without a class.

    Args:
        kinds: `corpus_words.token_kinds` of the vocabulary.
    """

    def __init__(self, classes: WordClasses, kinds: np.ndarray):
        partitions = classes.partitions[:-1].astype(np.int64)
        offsets = np.cumsum([1, *(partition.max() + 1 for partition in partitions)])
        self.size = int(offsets[-1])
        self.partitions = len(partitions)
        self._classes, self._kinds = classes, kinds
        self._rows = np.vstack(
            [np.zeros((1, len(partitions)), np.int64), (partitions + offsets[:-1, None]).T]
        )
        self._separator = int(np.flatnonzero(kinds == TokenKind.ALONE)[0])

    def of_words(self, words: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The classes of words, given their subword ids. int64 [n, P]."""
        lengths = np.array([len(word) for word in words])
        tokens = np.fromiter(chain.from_iterable((*word, self._separator) for word in words), np.int64)
        units = find_units(tokens, self._kinds)
        found = np.searchsorted(units.starts, np.cumsum(lengths + 1) - lengths - 1)
        is_one_unit = units.is_word[found] & (units.lengths[found] == lengths)
        types = np.where(is_one_unit, self._classes.types_of(units.keys[found]), -1)
        return self._rows[types + 1]

    def has_classes(self, words: Sequence[WordSubwords]) -> np.ndarray:
        """Whether each word has classes. bool [n]."""
        return self.of_words([tuple(word.ids) for word in words])[:, 0] > 0

    def of_set(self, encoded: EncodedSet) -> np.ndarray:
        """The classes of the words of an encoded set. int64 [M, P]."""
        words = [
            tuple(window.subwords[first : last + 1].tolist())
            for window in encoded.windows
            for first, last in zip(window.firsts, window.lasts, strict=True)
        ]
        return self.of_words(words)


@dataclass(frozen=True)
class FeaturesWithClasses:
    """Word features whose last columns are the numbers of the classes of the word. fp32 [M, d + P], exact below 2^24."""

    states: FeatureExtractor
    table: ClassTable

    def __call__(self, encoded: EncodedSet) -> Tensor:
        classes = torch.from_numpy(self.table.of_set(encoded)).float()
        return torch.cat([self.states(encoded), classes], dim=1)


class ClassTagLayer(TagLayer):
    """A tag layer for `FeaturesWithClasses`: every class of a word adds a learned score to each tag, zero at first."""

    def __init__(self, feature_size: int, table_size: int, tags: Sequence[str], head: str, dropout: float):
        super().__init__(feature_size, tags, head, dropout)
        self.of_classes = nn.Embedding(table_size, len(self.tags), padding_idx=0)
        nn.init.zeros_(self.of_classes.weight)

    def emissions(self, features: Tensor, lengths: Tensor) -> Tensor:
        states, classes = features[:, : self.linear.in_features], features[:, self.linear.in_features :]
        scores = self.linear(self.dropout(states)) + self.of_classes(classes.long()).sum(dim=1)
        return pad_packed(scores, lengths)


def with_classes(setup: FinetuneSetup, table: ClassTable) -> FinetuneSetup:
    """The setup of a run with a frozen decoder, with word classes as further features."""
    config, accelerator = setup.config, setup.processes.accelerator
    with randomness.torch_seed(config.train.seed, "tag layer"):  # the linear layer starts as without classes
        old = setup.tagger.layer
        layer = ClassTagLayer(setup.tagger.width, table.size, old.tags, old.head_name, config.ner.dropout).to(
            accelerator.device
        )
    setup.tagger.layer = layer
    (group,) = setup.optimizer.param_groups
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=group["lr"], weight_decay=config.ner.weight_decay, fused=True
    )
    return replace(
        setup,
        extract_features=FeaturesWithClasses(setup.extract_features, table),  # type: ignore[arg-type]
        trained=layer,
        forward=accelerator.prepare_model(layer),
        optimizer=accelerator.prepare_optimizer(optimizer),
    )


def tune(config: FinetuneConfig, table: ClassTable) -> None:
    """Train and score a tagger with classes as features, unless that is done. No tagger is saved."""
    inputs = find_inputs(config)
    run, stop = Run(config.run_dir), StopRequest().listen()
    with run.locked():
        if run.is_done:
            return
        setup = with_classes(build_setup(config, inputs, run, stop), table)
        run.start(identity(config), inputs.fingerprints, asdict(config), setup.processes.places())
        checkpoints = FinetuneCheckpoints(run, setup.processes, setup.trained, setup.optimizer)
        Tuner(setup, checkpoints).train()
        scores = score_sets(setup)
        for name, of_set in scores.items():
            of_set[COVERED] = _covered(table, setup.word_tokenizer, inputs.sets.collection.load(name, "test"))
        result = training_result(setup, checkpoints)
        origin = {**result["origin"], "variant": VARIANT}
        # without this key, the report would take it for the tagger that k-shot runs of the grid trained further
        settings = {**result["settings"], VARIANT: True}
        run.finish(result | {"origin": origin, "settings": settings, "sets": scores})
        for _, checkpoint in run.checkpoints():
            atomic_folders.remove(checkpoint)


def _covered(table: ClassTable, tokenizer: WordTokenizer, sentences: Sequence[Sentence]) -> float:
    """The fraction of the words of sentences that have classes."""
    words = [word for sentence in sentences for word in tokenizer(sentence.words)]
    return float(table.has_classes(words).mean())


def entity_words(sentences: Iterable[Sentence]) -> list[str]:
    """The words of the gold entities."""
    return [word for each in sentences for word, tag in zip(each.words, each.tags, strict=True) if tag != "O"]


def other_words(sentences: Iterable[Sentence]) -> list[str]:
    """The words outside of gold entities that are letters alone."""
    return [
        word
        for each in sentences
        for word, tag in zip(each.words, each.tags, strict=True)
        if tag == "O" and word.isalpha()
    ]


@dataclass(frozen=True)
class CrfFeatures:
    """The features of the surface CRF, and the classes of the word and of the words up to two away."""

    table: ClassTable
    tokenizer: WordTokenizer

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        rows = surface_features(words)
        classes = self.table.of_words([tuple(word.ids) for word in self.tokenizer(words)]).tolist()
        for index, row in enumerate(rows):
            for offset in (0, *NEIGHBOURS):
                if 0 <= index + offset < len(words):
                    row += [f"{offset}:class={number}" for number in classes[index + offset] if number]
        return rows


def train_crf(config: BaselineConfig, table: ClassTable, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train and score the surface CRF with classes as further features, unless that is done."""
    words = EncodingSettings(prefix_space=True, max_len=2 * MAX_SUBWORDS).word_tokenizer(tokenizer)
    features = CrfFeatures(table, words)
    run_baseline(replace(config, name=CRF), lambda training: surface_crf(training, features))


@dataclass(frozen=True)
class Control:
    """The runs of a grid, and those with classes as features in a folder of their own."""

    grid: Path
    out: Path

    @property
    def plan(self) -> Plan:
        return Plan.from_json(json.loads((self.grid / "plan.json").read_text(encoding="utf-8")))

    def jobs(self) -> Iterator[Job]:
        """The jobs of the grid that have a counterpart here: frozen vanilla decoders at their end, and the CRF."""
        for job in self.plan.jobs:
            is_frozen = job.kind == "finetune" and job.objective == "vanilla" and job.tuning == "head_only"
            if is_frozen and job.checkpoint_step is None and job.needs[0].startswith("pretrain/"):
                yield job
            if job.kind == "baseline" and job.baseline == "crf":
                yield job

    def run(self) -> None:
        """Train and score what is missing, one run after the other."""
        table, tokenizer = self._table()
        for job in self.jobs():
            config = replace(commandline.load(job.kind, job.argv), run_dir=str(self.out / job.run_dir))
            print(f"{config.run_dir}", flush=True)
            if job.kind == "baseline":
                train_crf(config, table, tokenizer)
            else:
                tune(config, table)

    def _table(self) -> tuple[ClassTable, PreTrainedTokenizerFast]:
        """The word classes of the pretraining runs, and their tokenizer."""
        job = next(job for job in self.plan.jobs if job.kind == "pretrain" and job.objective == "vanilla")
        config = commandline.load("pretrain", job.argv)
        corpus = prepare_corpus(config.data)
        table = ClassTable(corpus_classes(corpus, config.classes), corpus_token_kinds(corpus))
        return table, load_tokenizer(corpus.tokenizer_dir)

    def coverage(self) -> str:
        """How many words of entities, and of other words that are letters alone, have classes in each test set, as Markdown."""
        table, tokenizer = self._table()
        job = next(self.jobs())
        config = commandline.load(job.kind, job.argv)
        words = EncodingSettings(prefix_space=True, max_len=2 * MAX_SUBWORDS).word_tokenizer(tokenizer)
        collection = find_inputs(config).sets.collection
        lines = [
            "| set | words of entities | with classes | other words | with classes |",
            "|---|" + "---:|" * 4,
        ]
        for name in config.data.eval_sets:
            sentences = collection.load(name, "test")
            cells = [
                f"{len(chosen):,} | {table.has_classes(words(chosen)).mean():.0%}"
                for chosen in (entity_words(sentences), other_words(sentences))
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def table(self) -> str:
        """Mean F1 by set over sources and seeds, without and with classes as features, as Markdown."""
        found: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
        covered: dict[str, float] = {}
        for job in self.jobs():
            results = [Run(root / job.run_dir) for root in (self.grid, self.out)]
            if not all(run.result_file.exists() for run in results):
                continue
            for has_classes, run in enumerate(results):
                for name, scores in run.result()["sets"].items():
                    found[name, job.kind, bool(has_classes)].append(100 * scores["f1"])
                    covered |= {name: scores[COVERED]} if COVERED in scores else {}
        lines = [
            "| set | words with classes | frozen vanilla | with classes | CRF | with classes |",
            "|---|" + "---:|" * 5,
        ]
        for name in dict.fromkeys(name for name, *_ in found):
            cells = [
                f"{mean(values):.1f}" if (values := found.get((name, kind, has_classes))) else "-"
                for kind in ("finetune", "baseline")
                for has_classes in (False, True)
            ]
            share = f"{covered[name]:.0%}" if name in covered else "-"
            lines.append(f"| {name} | {share} | {' | '.join(cells)} |")
        return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    control = Control(Path(arguments[0]), Path(arguments[1]))
    command = arguments[2] if len(arguments) > 2 else ""
    if not command:
        control.run()
    print(control.coverage() if command == "coverage" else control.table())


if __name__ == "__main__":
    main(sys.argv[1:])
