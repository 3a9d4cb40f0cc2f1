"""Weighted terms beside next-token prediction: loss and gradient against naive code; splits and ranks do not matter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Forks
from safetensors.torch import load_file
from terms import kernels_of
from test_state_episodes import naive_loss
from test_world_size import FROM_THE_START, compare_runs, compare_weights
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt.config import PretrainConfig, commandline
from metapt.config.objective_terms import MultitaskConfig
from metapt.data.corpus_words import TokenKind, find_units
from metapt.data.word_classes import WordClasses
from metapt.errors import UserError
from metapt.estimate.flops import flops_of_step
from metapt.meta.objectives import next_token_objective
from metapt.meta.terms import Term, active_weights, add_terms, weight_at, word_groups
from metapt.meta.word_probe import WordProbe
from metapt.models.meta_lm import MetaLM, build_meta_lm
from metapt.runs import Run

VOCABULARY, LENGTH, SEQUENCES = 300, 40, 8
KINDS = np.full(
    VOCABULARY, TokenKind.BEGINS, dtype=np.uint8
)  # every token is a word of its own, but for four
KINDS[:4] = TokenKind.ALONE
SMALL = [
    "model=nano",
    f"model.vocab_size={VOCABULARY}",
    "model.num_layers=1",
    "meta.batch_sequences=4",
    "episodes.n_way=3",
    "episodes.max_examples=64",
    "episodes.start_step=0",
    "classes.repeats=1",
]
SIZES = "classes.sizes=[4,6,3]"


def word_classes() -> WordClasses:
    keys = np.sort(find_units(np.arange(4, VOCABULARY), KINDS).keys)
    draw = np.random.default_rng(0)
    partitions = np.stack([draw.integers(0, size, len(keys)) for size in (4, 6, 3)]).astype(np.int16)
    return WordClasses(keys, np.ones(len(keys), np.int64), partitions, ())


@dataclass
class Model:
    config: PretrainConfig
    meta_lm: MetaLM
    terms: dict[str, Term]

    @classmethod
    def of(cls, *words: str) -> Model:
        config = commandline.load("pretrain", [*SMALL, *words, SIZES])
        meta_lm = build_meta_lm(config)
        terms = add_terms(meta_lm, config, word_classes())
        return cls(config, meta_lm, terms)

    def loss(self, sequences: np.ndarray, first: int = 0, step: int = 3) -> Tensor:
        groups = word_groups(
            sequences[:, :-1], KINDS, word_classes(), self.config.meta.batch_sequences, first
        )
        terms = {
            name: (weight, self.terms[name]) for name, weight in active_weights(self.config, step).items()
        }
        return next_token_objective(self.meta_lm, torch.from_numpy(sequences), terms, groups, step).loss


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (SEQUENCES, LENGTH + 1))


def gradients(meta_lm: MetaLM) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in meta_lm.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("objective", ["multitask", "twin", "episodes", "both"])
def test_the_split_into_micro_batches_does_not_matter(objective: str):
    model = Model.of(f"objective={objective}")
    loss = model.loss(tokens())
    loss.backward()
    whole = gradients(model.meta_lm)
    model.meta_lm.zero_grad()
    parts = [model.loss(tokens()[first : first + 4], first) for first in (0, 4)]
    (sum(parts) / 2).backward()
    assert float(sum(parts).detach()) / 2 == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, value in gradients(model.meta_lm).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps", [0, 10])
def test_episodes_are_the_mean_of_naive_episodes(steps: int):
    model = Model.of("objective=episodes", f"episodes.inner_steps={steps}", "episodes.per_group=2")
    config, meta_lm, term = model.config, model.meta_lm, model.terms["episodes"]
    sequences = torch.from_numpy(tokens())
    hidden = meta_lm.decoder.model(input_ids=sequences[:, :-1]).last_hidden_state
    expected = cross_entropy(meta_lm.decoder.lm_head(hidden).flatten(0, 1), sequences[:, 1:].flatten())
    groups = word_groups(tokens()[:, :-1], KINDS, word_classes(), 4, 0)
    for number, group in enumerate(groups):
        states = hidden[4 * number : 4 * number + 4].flatten(0, 1).double()
        for task in (0, 1):
            episode = term.sampler.episode(group.examples, (4, LENGTH), 3, number, task)
            scale = term.parameters.scale.log_scale.exp().double()
            loss, _ = naive_loss(states, episode, steps, config.episodes.rate_scale, "prototypes", scale)
            expected = expected + config.episodes.weight * loss / 4
    found = model.loss(tokens())
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    wanted = torch.autograd.grad(
        expected, [term.parameters.scale.log_scale, meta_lm.decoder.model.norm.weight]
    )
    found.backward()
    for value, reference in zip(
        (term.parameters.scale.log_scale, meta_lm.decoder.model.norm.weight), wanted, strict=True
    ):
        torch.testing.assert_close(value.grad, reference, rtol=1e-3, atol=1e-6)


def test_multitask_is_the_mean_over_words_and_partitions():
    term = Model.of("objective=multitask").terms["multitask"]
    heads = term.parameters
    torch.nn.init.normal_(heads.weight)
    classes, sequences = word_classes(), tokens()[:4]
    hidden = torch.randn(4 * LENGTH, heads.weight.shape[1])
    output = term(hidden, word_groups(sequences[:, :-1], KINDS, classes, 4, 0), 0)
    losses = []
    for row, sequence in enumerate(sequences[:, :-1]):
        for place, token in enumerate(sequence):
            kind = int(classes.types_of(find_units(np.array([token]), KINDS).keys)[0])
            if token < 4 or place in (0, LENGTH - 1) or classes.is_held_out[kind]:
                continue
            logits = (hidden[row * LENGTH + place] @ heads.weight.T + heads.bias).split([4, 6])
            losses += [
                cross_entropy(each, torch.tensor(int(partition[kind])))
                for each, partition in zip(logits, classes.partitions, strict=False)
            ]
    assert float(output.loss.detach()) == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-5)


def test_the_probe_scores_states_that_hold_the_classes_and_states_that_do_not():
    """Held-out words of the held-out partition: one-hot states of their class are classified, random ones are not."""
    classes, sequences = word_classes(), np.random.default_rng(1).integers(0, VOCABULARY, (64, 129))
    kind_of = np.maximum(classes.types_of(find_units(np.arange(VOCABULARY), KINDS).keys), 0)
    label_of = torch.from_numpy(classes.partitions[-1][kind_of].astype(np.int64))
    probe = WordProbe(sequences, KINDS, classes, chunk=16)

    class States(torch.nn.Linear):
        def hidden_states(self, rows: Tensor) -> Tensor:
            noise = torch.randn((*rows.shape, 24), generator=torch.Generator().manual_seed(0))
            return (
                noise if self.bias is None else noise * 0.1 + torch.nn.functional.one_hot(label_of[rows], 24)
            )

    good, bad = (probe.measure(States(1, 1, bias=bias)) for bias in (True, False))
    assert np.mean(good["held_out_words_prototype_accuracy"]) > 0.95
    assert good["held_out_words_adapted_accuracy"][-1] > 0.95
    assert (
        np.mean(good["known_words_prototype_accuracy"]) < 0.5
    )  # states hold the classes of the held-out partition alone
    ways = [episode.ways for episode in probe.episodes["held_out_words"]]
    assert set(ways) <= {2, 3}
    assert ways.count(3) > len(ways) / 2
    chance = np.mean([1 / each for each in ways])
    assert good["held_out_words_chance"] == pytest.approx(chance, abs=1e-6)
    assert np.mean(bad["held_out_words_prototype_accuracy"]) == pytest.approx(chance, abs=0.1)


@pytest.mark.parametrize("name", ["episodes", "multitask"])
def test_the_cosine_of_gradients_is_that_of_two_separate_backward_passes(name: str):
    model = Model.of(f"objective={name}")
    for head in model.terms[name].parameters.parameters():
        torch.nn.init.normal_(head)  # persistent heads of zeros send no gradient
    sequences = torch.from_numpy(tokens()[:4])
    groups = word_groups(tokens()[:4, :-1], KINDS, word_classes(), 4, 0)
    output = next_token_objective(model.meta_lm, sequences, {name: (0.3, model.terms[name])}, groups, 3)
    output.loss.backward()
    found, count = output.after_backward[f"{name}_gradient_cosine"]()
    hidden = model.meta_lm.hidden_states(sequences[:, :-1])
    logits = model.meta_lm.decoder.lm_head(hidden).flatten(0, 1)
    losses = [
        cross_entropy(logits, sequences[:, 1:].flatten()),
        model.terms[name](hidden.flatten(0, 1), groups, 3).loss,
    ]
    one, two = (torch.autograd.grad(loss, hidden, retain_graph=True)[0].flatten() for loss in losses)
    assert float(count) == 1
    assert float(found) == pytest.approx(float(torch.cosine_similarity(one, two, dim=0)), rel=1e-3)


def test_weights_start_and_rise_as_configured():
    term = MultitaskConfig(weight=0.4, start_step=5, ramp_steps=4)
    assert [weight_at(term, update) for update in (0, 4, 5, 6, 8, 100)] == pytest.approx(
        [0, 0, 0.1, 0.2, 0.4, 0.4]
    )


def test_flops_of_the_terms_are_counted():
    words = ["model=laptop", "classes.sizes=[64,256,64]", "classes.repeats=2"]
    vanilla, multitask, episodes = (
        flops_of_step(commandline.load("pretrain", [f"objective={name}", *words]), False)
        for name in ("vanilla", "multitask", "episodes")
    )
    assert multitask - vanilla == round(3 * 2 * 96 * 2 * (64 + 256) * 0.6 * 8192)
    assert episodes - vanilla == 4 * (3 + 2 * 10 + 2) * 2 * 96 * 32 * 1024


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective=multitask", "classes.sizes=[8]"], "at least two partitions"),
        (["objective=vanilla", "multitask.weight=1", SIZES], "objective=vanilla has no such term"),
        (["objective=twin", "episodes.inner_steps=3"], "objective=twin has no inner loop"),
        (["objective=episodes", "train.micro_batch=6"], "must be a multiple of meta.batch_sequences"),
        (["objective=episodes", "episodes.inner_steps=0", "episodes.initial_head=zero"], "learns nothing"),
        (["objective=episodes", "episodes.weight=0"], "needs episodes.weight or multitask.weight"),
        (["objective=maml", "train.max_steps=100"], "start_step=100: must be less than train.max_steps=100"),
    ],
)
def test_what_does_not_combine_is_refused(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        commandline.load("pretrain", ["model=nano", *words])


@pytest.mark.commands
def test_two_ranks_equal_one_and_heads_stay_out_of_the_model(
    forks: Forks, nano_arguments: list[str], tmp_path: Path
):
    """At every ZeRO stage, with both terms; a run goes on from a checkpoint of another stage's number of ranks."""
    fixed = [
        *nano_arguments,
        "train.max_steps=3",
        "train.lr=1e-3",
        "train.checkpoint_every=3",
        "objective=both",
    ]
    fixed += [
        "classes.sizes=[8,16,8]",
        "classes.repeats=1",
        "episodes.start_step=0",
        "episodes.n_way=4",
        "meta.batch_sequences=4",
        "episodes.inner_steps=3",
    ]
    stages = ("zero0", "zero2", "zero3")
    runs = {ranks: {stage: Run(tmp_path / f"{stage}-{ranks}") for stage in stages} for ranks in (1, 2)}
    for ranks, by_stage in runs.items():
        forks.pretrain_many(
            [[*fixed, f"ds={stage}", f"run_dir={run.path}"] for stage, run in by_stage.items()], ranks
        )
    for stage in stages:
        compare_runs(runs[1][stage], runs[2][stage], FROM_THE_START)
        compare_weights(runs[1][stage], runs[2][stage], 3)
    lines = [line for line in runs[1]["zero0"].metrics() if line["kind"] == "lm"]
    assert all(line["episodes_ways"] >= 2 and 0 <= line["multitask_accuracy"] <= 1 for line in lines)
    assert len(lines[0]["episodes_query_loss_nats"]) == 4
    names = load_file(runs[1]["zero0"].checkpoint(3) / "model" / "model.safetensors")
    assert not [name for name in names if "term" in name or "head" in name.replace("lm_head", "")]
    assert set(runs[1]["zero0"].provenance()["fingerprints"]) == {"corpus", "classes"}


def test_more_episodes_launch_no_more_kernels() -> None:
    """All episodes of a micro-batch are one batched inner loop."""
    sequences = np.random.default_rng(0).integers(4, VOCABULARY, (8, 41))

    def kernels(episodes: int) -> int:
        model = Model.of("objective=episodes", f"episodes.per_group={episodes}")
        return kernels_of(lambda: model.loss(sequences).backward())

    assert (
        kernels(6)
        == kernels(2)
        > kernels_of(lambda: Model.of("objective=vanilla").loss(sequences).backward())
    )
