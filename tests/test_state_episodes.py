"""Episodes on the hidden states of the next-token batch: their sampling, and their inner loop against naive autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt.data.batch_episodes import BatchEpisode, BatchEpisodeSampler, LabelledStates
from metapt.data.word_classes import WordClasses, WordExamples
from metapt.meta import state_episodes
from metapt.meta.initial_heads import HeadShape, PrototypeHead
from metapt.meta.state_episodes import LinearHead, StateExamples

WIDTH = 12


def sampler(
    types: int = 400, capacity: int = 512, n_way: int = 5, balance: float = 0.5, held_out: bool = False
):
    draw = np.random.default_rng(0)
    keys = np.sort(draw.integers(0, 2**63, types).astype(np.uint64))
    partitions = np.stack([draw.integers(0, size, types) for size in (8, 12, 10)]).astype(np.int16)
    classes = WordClasses(keys, np.ones(types, np.int64), partitions, ())
    return BatchEpisodeSampler(classes, n_way, capacity, balance, seed=3, held_out=held_out)


def examples(rows: int = 8, length: int = 100, types: int = 400, seed: int = 1) -> WordExamples:
    draw = np.random.default_rng(seed)
    row = np.repeat(np.arange(rows), length // 2)
    return WordExamples(row, np.tile(np.arange(0, length, 2), rows), draw.integers(0, types, len(row)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 3), st.booleans())
def test_support_and_query_share_neither_sequences_nor_word_types(
    update: int, task: int, held_out: bool
) -> None:
    source, words = sampler(held_out=held_out, n_way=2), examples(rows=16, length=300)
    type_at = dict(zip((words.rows * 300 + words.positions).tolist(), words.types.tolist(), strict=True))
    episode = source.episode(words, (16, 300), update, 0, task)
    seen = []
    for side in (episode.support, episode.query):
        real = side.weights > 0
        types = [type_at[position] for position in side.positions[real].tolist()]
        assert (source.classes.is_held_out[types] == held_out).all()
        partitions = source.classes.partitions[source.partitions]
        expected = [partition[types].tolist() for partition in partitions]
        assert episode.classes[side.labels[real]].tolist() in expected
        for label in range(episode.ways):
            chosen = [kind for kind, mine in zip(types, side.labels[real], strict=True) if mine == label]
            assert len(set(chosen)) >= 2
        seen.append((set((side.positions[real] // 300).tolist()), set(types)))
    assert not seen[0][0] & seen[1][0]
    assert not seen[0][1] & seen[1][1]


def test_an_episode_is_a_function_of_seed_update_group_and_task() -> None:
    first, again = (sampler().episode(examples(), (8, 100), 7, 2, 1) for _ in range(2))
    np.testing.assert_equal(first.support.positions, again.support.positions)
    np.testing.assert_equal(first.query.labels, again.query.labels)
    for place in ((8, 2, 1), (7, 3, 1), (7, 2, 2)):
        assert (
            sampler().episode(examples(), (8, 100), *place).support.positions.tolist()
            != first.support.positions.tolist()
        )


def test_weights_balance_classes_and_more_examples_than_fit_are_dropped() -> None:
    alike = sampler(balance=1.0).episode(examples(), (8, 100), 0, 0, 0).query
    real = alike.weights > 0
    totals = np.bincount(alike.labels[real], weights=alike.weights[real])
    np.testing.assert_allclose(totals, 1.0, rtol=1e-5)
    full = sampler(capacity=20).episode(examples(), (8, 100), 0, 0, 0)
    assert (full.support.weights > 0).all()
    assert len(full.support.positions) == 20


def test_without_two_eligible_classes_there_is_no_loss() -> None:
    episode = sampler().episode(examples(rows=2, length=4), (2, 4), 0, 0, 0)
    assert (episode.ways, episode.support.weights.sum(), episode.query.weights.sum()) == (0, 0, 0)
    states = torch.randn(8, WIDTH, requires_grad=True)
    sides = [StateExamples.gather(states, [side], [0]) for side in (episode.support, episode.query)]
    ways = state_episodes.number_of_ways([episode], states.device)
    head = PrototypeHead(HeadShape(WIDTH, 5, 5)).start(sides[0], torch.zeros(1, 5, dtype=torch.int64))
    loss = state_episodes.weighted_loss(
        state_episodes.logits_of(head, sides[1].states, ways), sides[1].labels, sides[1].weights
    )
    loss.sum().backward()
    assert loss.tolist() == [0]
    assert states.grad is not None
    assert states.grad.isfinite().all()


def made_episodes(seed: int, capacity: int) -> tuple[Tensor, list[BatchEpisode]]:
    """States [60, d], and three episodes of 3, 5 and 4 ways on them, padded to a capacity."""
    draw = np.random.default_rng(seed)
    states = torch.from_numpy(draw.standard_normal((60, WIDTH)) * 2 + 1).requires_grad_()
    episodes = []
    for ways in (3, 5, 4):
        sides = []
        for count in (17, 23):
            labels = np.concatenate([np.arange(ways), draw.integers(0, ways, count - ways)])
            arrays = (draw.integers(0, 60, count), labels, draw.random(count).astype(np.float32) + 0.1)
            sides.append(LabelledStates(*(np.pad(array, (0, capacity - count)) for array in arrays)))
        episodes.append(BatchEpisode(*sides, ways, ways, 0, np.arange(ways)))
    return states, episodes


def naive_loss(
    states: Tensor,
    episode: BatchEpisode,
    steps: int,
    c: float,
    head: str,
    scale: Tensor,
    rows: tuple[Tensor, Tensor] | None = None,
    normalize: bool = True,
) -> tuple[Tensor, list[float]]:
    """Query loss of one episode and the support losses at each inner step, by autograd, without padding."""
    width = states.shape[1]
    (sx, sy, sw), (qx, qy, qw) = (
        (states[side.positions[side.weights > 0]], torch.from_numpy(side.labels[side.weights > 0]), torch.from_numpy(side.weights[side.weights > 0]).double())
        for side in (episode.support, episode.query)
    )  # fmt: skip
    mean = sx.mean(dim=0).detach()
    if normalize:
        sx, qx = ((x - mean) / ((x - mean).pow(2).mean(dim=1, keepdim=True).sqrt() + 1e-4) for x in (sx, qx))

    def loss(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return (cross_entropy(x @ weight.T + bias, y, reduction="none") * w).sum() / w.sum()

    start_bias = torch.zeros(episode.ways, dtype=torch.float64)
    if rows is not None:
        start, start_bias = rows
    elif head == "zero":
        start = torch.zeros(episode.ways, width, dtype=torch.float64)
    else:
        means = torch.stack([(sx * sw[:, None])[sy == label].sum(0) for label in range(episode.ways)])
        start = scale * means / (means.norm(dim=1, keepdim=True) * width**0.5)
    bias = start_bias.detach().requires_grad_()
    weight, rate, losses = start.detach().requires_grad_(), c * episode.ways / (max(1, steps) * width), []
    for _ in range(steps):
        value = loss(weight, bias, sx.detach(), sy, sw)
        losses.append(float(value.detach()))
        to_weight, to_bias = torch.autograd.grad(value, (weight, bias))
        weight, bias = (
            (weight - rate * to_weight).detach().requires_grad_(),
            (bias - rate * to_bias).detach().requires_grad_(),
        )
    losses.append(float(loss(weight, bias, sx.detach(), sy, sw).detach()))
    adapted = [begin + (end - begin).detach() for begin, end in ((start, weight), (start_bias, bias))]
    return loss(*adapted, qx, qy, qw), losses


@pytest.mark.parametrize("capacity", [23, 64])
@pytest.mark.parametrize("steps", [0, 1, 10])
@pytest.mark.parametrize("head", ["zero", "prototypes"])
def test_losses_and_gradients_are_those_of_naive_autograd(head: str, steps: int, capacity: int) -> None:
    states, episodes = made_episodes(steps, capacity)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    expected = [naive_loss(states, episode, steps, 4.0, head, scale) for episode in episodes]
    wanted = torch.autograd.grad(sum(loss for loss, _ in expected), (states, scale), allow_unused=True)

    ways = state_episodes.number_of_ways(episodes, states.device)
    sides = (
        StateExamples(
            states[torch.from_numpy(np.stack([getattr(e, name).positions for e in episodes]))],
            torch.from_numpy(np.stack([getattr(e, name).labels for e in episodes])),
            torch.from_numpy(np.stack([getattr(e, name).weights for e in episodes])).double(),
        )
        for name in ("support", "query")
    )
    support, query = sides
    support_states, query_states, _ = state_episodes.normalized(support.states, query.states, support.weights)
    support = StateExamples(support_states, support.labels, support.weights)
    initial = (
        state_episodes.zero_head(support, 5)
        if head == "zero"
        else LinearHead(scale * state_episodes.prototypes(support, 5), torch.zeros(3, 5, dtype=torch.float64))
    )
    heads = state_episodes.inner_steps(
        initial, support, ways, steps, state_episodes.auto_rate(ways, steps, WIDTH, 4.0)
    )
    for number, (_, losses) in enumerate(expected):
        found = [
            float(state_episodes.weighted_loss(state_episodes.logits_of(each, support.states, ways), support.labels, support.weights)[number])
            for each in heads
        ]  # fmt: skip
        assert found == pytest.approx(losses, rel=1e-6)
    final = state_episodes.first_order(initial, heads[-1])
    losses = state_episodes.weighted_loss(
        state_episodes.logits_of(final, query_states, ways), query.labels, query.weights
    )
    assert losses.tolist() == pytest.approx([float(loss) for loss, _ in expected], rel=1e-6)
    gradients = torch.autograd.grad(losses.sum(), (states, scale), allow_unused=True)
    torch.testing.assert_close(gradients[0], wanted[0], rtol=1e-6, atol=1e-9)
    assert (gradients[1] is None) == (wanted[1] is None) == (head == "zero")
    if head == "prototypes":
        torch.testing.assert_close(gradients[1], wanted[1], rtol=1e-6, atol=1e-9)


def test_balanced_accuracy_is_the_mean_of_the_classes() -> None:
    labels = torch.tensor([[0, 0, 0, 1, 2, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 1, 1, 0, 2]]), 4).float()
    weights = torch.tensor([[1.0, 1, 1, 0.2, 5, 0]])  # the last is padding
    assert float(state_episodes.balanced_accuracy(logits, labels, weights)) == pytest.approx(
        (2 / 3 + 1 + 0) / 3
    )


def test_the_derivative_by_the_log_of_the_scale_is_that_of_autograd() -> None:
    logits = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    logits[1, :, 3] = float("-inf")  # the second episode has three classes
    labels, weights = torch.arange(6).remainder(3).repeat(2, 1), torch.rand(2, 6).double()
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    found = state_episodes.scale_derivative(logits, labels, weights)
    for number, (each, ways) in enumerate(zip(logits, (4, 3), strict=True)):
        losses = cross_entropy(each[:, :ways] * log_scale.exp(), labels[number], reduction="none")
        loss = (losses * weights[number]).sum() / weights[number].sum()
        assert float(found[number]) == pytest.approx(float(torch.autograd.grad(loss, log_scale)[0]))
