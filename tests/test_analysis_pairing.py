"""Which runs are told apart, which are duplicates, and which are compared with which."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import write_baseline, write_finetuning, write_pretraining
from hypothesis import given
from hypothesis import strategies as st

from analysis.load.collect import Collection, collect
from analysis.load.contrasts import Contrast, default_contrasts
from analysis.stats.comparison import groups
from analysis.stats.pairing import Model, counterparts, pairing

MODEL = {"model.hidden_size": 48, "data.tokenizer": "train", "train.lr": 0.003}


def write(
    root: Path,
    objective: str,
    tuning: dict[str, Any] | None = None,
    label: str = "",
    seed: int = 0,
    **changes: Any,
) -> None:
    """Write a pretraining run and a fine-tuning run; `changes` are settings of pretraining."""
    settings = {**MODEL, "meta.objective": objective} | {
        key.replace("__", "."): value for key, value in changes.items()
    }
    origin = write_pretraining(root, objective=objective, label=label, seed=seed, settings=settings)
    write_finetuning(root, origin, sets=("tl_trg",), settings=tuning or {"ner.head": "crf", "ner.lr": 0.001})


def paired(root: Path, contrast: Contrast) -> list[tuple[str, str]]:
    """The variants of the paired runs, or (tuning of the first, tuning of the second) if there are no variants."""
    found = pairing(collect([root]), contrast)
    return [
        (first.setting.variant or first.setting.tuning, second.setting.variant or second.setting.tuning)
        for pairs in found.pairs.values()
        for first, second in pairs
    ]


@pytest.mark.parametrize(
    ("key", "values"),
    [("ner.head", ("crf", "softmax")), ("ner.lr", (0.001, 0.01)), ("data.max_train_sentences", (50, 200))],
)
def test_runs_that_differ_in_a_setting_are_no_duplicates(
    tmp_path: Path, key: str, values: tuple[Any, Any]
) -> None:
    origin = write_pretraining(tmp_path, settings=MODEL)
    for value in values:
        write_finetuning(tmp_path, origin, sets=("tl_trg",), settings={"ner.dropout": 0.1, key: value})
    collection = collect([tmp_path])
    assert collection.excluded == []
    assert sorted(run.setting.tuning for run in collection.finetuning) == sorted(
        f"head_only, {key}={value}" for value in values
    )


def test_runs_of_other_seeds_that_differ_in_a_setting_are_told_apart(tmp_path: Path) -> None:
    for seed, rate in ((0, 0.001), (1, 0.001), (2, 0.003)):
        origin = write_pretraining(tmp_path, seed=seed, settings=MODEL)
        settings = {"ner.lr": rate, "data.subset_seed": seed}
        write_finetuning(tmp_path, origin, sets=("tl_trg",), settings=settings)
    runs = collect([tmp_path]).finetuning
    assert [(run.seeds[0], run.setting.tuning) for run in runs] == [
        (0, "head_only, ner.lr=0.001"),
        (1, "head_only, ner.lr=0.001"),
        (2, "head_only, ner.lr=0.003"),
    ]


def test_runs_of_a_variant_that_got_a_longer_name_stay_in_its_contrast(tmp_path: Path) -> None:
    for objective, (seed, rate) in product(("maml", "vanilla"), ((0, 0.001), (1, 0.001), (0, 0.003))):
        write(tmp_path, objective, label="base", seed=seed, train__lr=rate)
    found = pairing(collect([tmp_path]), Contrast("maml/base", "vanilla/base"))
    assert {
        (setting.variant, len(pairs), {second.setting.variant for _, second in pairs} == {setting.variant})
        for setting, pairs in found.pairs.items()
    } == {("base, train.lr=0.001", 2, True), ("base, train.lr=0.003", 1, True)}


def test_models_that_differ_in_a_setting_are_told_apart(tmp_path: Path) -> None:
    for rate in (0.001, 0.003):
        write(tmp_path, "maml", train__lr=rate)
    collection = collect([tmp_path])
    names = ["train.lr=0.001", "train.lr=0.003"]
    assert [run.variant for run in collection.pretraining] == names
    assert [run.setting.variant for run in collection.finetuning] == names


def test_runs_on_other_corpora_are_told_apart(tmp_path: Path) -> None:
    """No setting is the text of a corpus, whose path may change; the name has it only where runs differ in it."""
    for corpus, objective, seed in product(("1234567890", "abcdefghij"), ("maml", "vanilla"), range(3)):
        origin = write_pretraining(
            tmp_path / corpus, objective=objective, label="base", seed=seed, corpus=corpus
        )
        write_finetuning(tmp_path / corpus, origin, sets=("tl_trg",))
    roots = [tmp_path / "1234567890", tmp_path / "abcdefghij"]
    collection = collect(roots)
    assert collection.excluded == []
    assert {(run.variant, run.corpus) for run in collection.pretraining} == {
        ("base, corpus=12345678", "1234567890"),
        ("base, corpus=abcdefgh", "abcdefghij"),
    }
    assert {(group.setting.variant, group.seeds, len(group.runs)) for group in groups(collection)} == {
        ("base, corpus=12345678", 3, 3),
        ("base, corpus=abcdefgh", 3, 3),
    }
    for pairs in pairing(collection, Contrast("maml/base", "vanilla/base")).pairs.values():
        assert len(pairs) == 3
        assert all(first.corpus == second.corpus for first, second in pairs)
    assert {run.variant for run in collect(roots[:1]).pretraining} == {"base"}


def test_a_setting_that_decides_the_corpus_is_named_instead_of_it(tmp_path: Path) -> None:
    for tokenizer in ("train", "olmo"):
        write_pretraining(tmp_path, settings={"data.tokenizer": tokenizer}, corpus=tokenizer)
    names = {run.variant for run in collect([tmp_path]).pretraining}
    assert names == {"data.tokenizer=train", "data.tokenizer=olmo"}


def test_settings_without_effect_do_not_tell_runs_apart(tmp_path: Path) -> None:
    for every in (20, 40):
        write(tmp_path, "maml", train__checkpoint_every=every)
    collection = collect([tmp_path])
    assert len(collection.finetuning) == len(collection.pretraining) == 1
    assert {item.state for item in collection.excluded} == {"duplicate"}


def test_keys_of_the_objective_may_differ_and_no_others(tmp_path: Path) -> None:
    contrast = Contrast("maml", "vanilla")
    write(tmp_path / "same", "vanilla", meta__rho=0.0)
    write(tmp_path / "same", "maml", meta__rho=0.5)
    assert paired(tmp_path / "same", contrast) == [("head_only", "head_only")]
    write(tmp_path / "rate", "vanilla", train__lr=0.001)
    write(tmp_path / "rate", "maml")
    assert paired(tmp_path / "rate", contrast) == []
    (entry,) = pairing(collect([tmp_path / "rate"]), contrast).unmatched
    assert entry.reason == "differs in train.lr (0.003, 0.001)"
    chosen = Contrast("maml", "vanilla", may_differ=("train.lr",))
    assert paired(tmp_path / "rate", chosen) == [("head_only", "head_only")]


def test_models_that_continued_different_models_are_not_paired(tmp_path: Path) -> None:
    write(tmp_path, "vanilla", init_sha256="one")
    write(tmp_path, "maml", init_sha256="other")
    (entry,) = pairing(collect([tmp_path]), Contrast("maml", "vanilla")).unmatched
    assert entry.reason == "differs in init_sha256 (other, one)"
    assert len(paired(tmp_path, Contrast("maml", "vanilla", may_differ=("init_sha256",)))) == 1


def test_the_model_that_pretraining_continued_may_follow_the_seed(tmp_path: Path) -> None:
    for objective, seed in product(("vanilla", "maml"), range(3)):
        write(tmp_path, objective, seed=seed, init_sha256=f"model {seed}")
    (pairs,) = pairing(collect([tmp_path]), Contrast("maml", "vanilla")).pairs.values()
    assert [first.seeds[0] for first, _ in pairs] == [0, 1, 2]
    write(tmp_path, "maml", seed=2, init_sha256="another")
    names = {run.variant for run in collect([tmp_path]).pretraining if run.objective == "maml"}
    assert names == {f"init_sha256={name}" for name in ("model 0", "model 1", "model 2", "another")}


def test_settings_of_fine_tuning_agree_unless_the_contrast_lets_them_differ(tmp_path: Path) -> None:
    write(tmp_path, "vanilla", {"ner.lr": 0.01})
    write(tmp_path, "maml", {"ner.lr": 0.001})
    assert paired(tmp_path, Contrast("maml", "vanilla")) == []
    (entry,) = pairing(collect([tmp_path]), Contrast("maml", "vanilla")).unmatched
    assert entry.reason == "differs in ner.lr (0.001, 0.01)"
    assert len(paired(tmp_path, Contrast("maml", "vanilla", may_differ=("ner.*",)))) == 1


def test_a_variant_of_other_data_is_paired_with_its_like(tmp_path: Path) -> None:
    """The variants of a tokenizer have their own vanilla; a variant of the episodes shares the one of its tokenizer."""
    for tokenizer in ("train", "olmo"):
        write(tmp_path, "vanilla", label=tokenizer, data__tokenizer=tokenizer)
        write(tmp_path, "maml", label=tokenizer, data__tokenizer=tokenizer)
    write(tmp_path, "maml", label="fast", meta__inner_lr=0.1)
    assert sorted(paired(tmp_path, Contrast("maml", "vanilla"))) == [
        ("fast", "train"),
        ("olmo", "olmo"),
        ("train", "train"),
    ]


def test_any_arm_is_compared_with_any_arm(tmp_path: Path) -> None:
    for objective in ("multitask", "episodes", "twin"):
        write(tmp_path, objective)
    for first, second in (("episodes", "twin"), ("twin", "episodes"), ("episodes", "multitask")):
        found = pairing(collect([tmp_path]), Contrast(first, second))
        ((one, other),) = (pair for pairs in found.pairs.values() for pair in pairs)
        assert (one.objective, other.objective) == (first, second)


def test_a_contrast_of_some_tunings(tmp_path: Path) -> None:
    for objective in ("vanilla", "maml"):
        origin = write_pretraining(tmp_path, objective=objective)
        for tuning in ("head_only", "full"):
            write_finetuning(tmp_path, origin, tuning=tuning, sets=("tl_trg",))
    assert len(paired(tmp_path, Contrast("maml", "vanilla"))) == 2
    assert paired(tmp_path, Contrast("maml", "vanilla", tunings=("full",))) == [("full", "full")]


def test_variants_on_several_corpora_are_compared_with_base(tmp_path: Path) -> None:
    for label, corpus in product(("base", "wide"), ("one", "two")):
        write_pretraining(tmp_path / corpus, label=label, corpus=corpus)
    names = [str(item) for item in collect([tmp_path / "one", tmp_path / "two"]).contrasts]
    assert names == ["maml minus vanilla", "maml/wide minus maml/base"]


def test_default_contrasts(tmp_path: Path) -> None:
    for objective, label in (
        ("vanilla", "base"),
        ("episodes", "base"),
        ("episodes", "wide"),
        ("twin", "base"),
    ):
        write(tmp_path, objective, label=label)
    write_baseline(tmp_path, "particle")
    write_finetuning(tmp_path, {"model": "some-model"}, sets=("tl_trg",))
    collection = collect([tmp_path])
    assert [(str(item), item.primary) for item in collection.contrasts] == [
        ("episodes minus vanilla", True),
        ("twin minus vanilla", True),
        ("episodes/wide minus episodes/base", False),
    ]
    assert [str(item) for item in default_contrasts([])] == ["maml minus vanilla"]


@given(st.permutations(["vanilla", "maml", "twin", "both"]), st.permutations([0, 1, 2]))
def test_counterparts_do_not_depend_on_order(objectives: list[str], seeds: list[int]) -> None:
    known = {
        Model(objective, "", "nano", seed, "c0"): {**MODEL, "meta.objective": objective}
        for objective in objectives
        for seed in seeds
    }
    found, reasons = counterparts(known, Contrast("both", "twin"))
    assert reasons == {}
    assert found == {
        Model("both", "", "nano", seed, "c0"): Model("twin", "", "nano", seed, "c0") for seed in range(3)
    }


def test_targets_of_a_report(tmp_path: Path) -> None:
    origin = write_pretraining(tmp_path)
    write_finetuning(tmp_path, origin, sets=("tl_trg", "ceb_gja", "en_ewt"))

    def kept(collection: Collection) -> set[str]:
        return {
            name for run in collection.finetuning for name, item in run.sets.items() if len(item.logprobs)
        }

    assert collect([tmp_path]).target_sets() == ["ceb_gja", "tl_trg"]
    assert kept(collect([tmp_path], tmp_path / "cache")) == {"ceb_gja", "tl_trg"}
    english = collect([tmp_path], tmp_path / "cache", targets=("en", "tl_trg"))
    assert english.target_sets() == ["en_ewt", "tl_trg"]
    assert kept(english) == {"en_ewt", "tl_trg"}
