"""The inner loop and the outer gradient against a naive implementation of first-order MAML."""

from __future__ import annotations

import copy
import itertools
import weakref

import numpy as np
import pytest
import reference
import torch

from metapt import randomness
from metapt.config import PretrainConfig, commandline
from metapt.data.corpus_words import TokenKind, find_units
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.data.word_classes import WordClasses
from metapt.data.word_windows import WordIndex, WordWindowSampler
from metapt.meta.adaptation import Copies, attach_gradients, straight_through
from metapt.meta.objectives import next_token_objective
from metapt.meta.terms import add_terms
from metapt.meta.update_plan import plan_update
from metapt.meta.window_episodes import episode_objective
from metapt.models.meta_lm import MetaLM, build_meta_lm
from metapt.models.packed_windows import PackedWindows

SCOPES = ["head", "full", "last_n"]
ALGORITHMS = ["fomaml", "meta_sgd", "reptile"]
SCOPES_OF = {"fomaml": SCOPES, "meta_sgd": SCOPES, "reptile": ["full", "last_n"]}


def configuration(scope: str = "head", precision: str = "fp32", **meta: object) -> PretrainConfig:
    arguments = [
        "objective=maml_paper",
        f"train.precision={precision}",
        f"meta.scope={scope}",
        "meta.head_dropout=0",
        "meta.max_window_fraction=1",
        "classes.sizes=[6,5,4]",
    ]
    return commandline.load("pretrain", [*arguments, *(f"meta.{key}={value}" for key, value in meta.items())])


def tasks(stream_of, config: PretrainConfig, count: int) -> list[Episode]:
    tokens = np.random.default_rng(0).integers(2, 50, 20_000)
    if config.meta.task == "word_classes":
        kinds, stream = np.full(64, TokenKind.BEGINS, dtype=np.uint8), stream_of(tokens)
        classes, meta = word_classes(), config.meta
        words = WordIndex.build(stream, kinds, classes, meta.window, len(tokens))
        sampler = WordWindowSampler(stream, words, classes, meta, 0, 1)
        return [sampler.episode(0, number) for number in range(count)]
    index = WindowIndex.build(tokens, 64, config.meta.window, config.meta.min_context)
    sampler = EpisodeSampler(stream_of(tokens), index, config.meta, 0, 1, 0)
    return [sampler.episode(0, number) for number in range(count)]


def word_classes() -> WordClasses:
    """48 words of one token in two partitions of training and one that is held out."""
    keys = np.sort(find_units(np.arange(2, 50), np.full(64, TokenKind.BEGINS, dtype=np.uint8)).keys)
    partitions = np.stack([np.arange(len(keys)) % size for size in (6, 5, 4)]).astype(np.int16)
    return WordClasses(keys, np.ones(len(keys), np.int64), partitions, ())


def outer_gradient(
    meta_lm: MetaLM, episodes: list[Episode], config: PretrainConfig
) -> dict[str, torch.Tensor]:
    for number, task in enumerate(episodes):
        (episode_objective(meta_lm, task, config.meta, 0, 0, number).loss / len(episodes)).backward()
    return {name: value.grad for name, value in meta_lm.named_parameters()}


@pytest.mark.parametrize(
    ("algorithm", "scope"), [(algorithm, scope) for algorithm in ALGORITHMS for scope in SCOPES_OF[algorithm]]
)
@pytest.mark.parametrize(
    ("dtype", "count", "rtol", "atol"), [(torch.float32, 3, 1e-3, 1e-5), (torch.float64, 2, 1e-9, 1e-12)]
)
def test_outer_gradient_equals_the_reference(
    stream_of, algorithm: str, scope: str, dtype: torch.dtype, count: int, rtol: float, atol: float
):
    """In double precision, differences cannot be explained by rounding."""
    config = configuration(scope, inner_lr=0.05, algorithm=algorithm)
    meta_lm = build_meta_lm(config).to(dtype)
    if meta_lm.inner_rates:
        with torch.no_grad(), randomness.torch_seed(0, "rates"):
            for value in meta_lm.inner_rates.parameters():
                value.uniform_(0.5, 1.5)
    episodes = tasks(stream_of, config, count)
    expected = reference.outer_gradient(copy.deepcopy(meta_lm), episodes, config.meta)
    gradients = outer_gradient(meta_lm, episodes, config)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=rtol, atol=atol, msg=name)


HEADS = {
    "zero": ["initial_head=zero"],
    "zero, raw states, given rate": ["initial_head=zero", "normalize=false", "inner_lr=0.05"],
    "prototypes": ["initial_head=prototypes"],
    "prototypes, no inner loop": ["initial_head=prototypes", "inner_steps=0"],
    "prototypes, raw states": ["initial_head=prototypes", "normalize=false"],
    "persistent": ["initial_head=persistent", "head_layers=1"],
    "persistent, no inner loop": ["initial_head=persistent", "inner_steps=0"],
    "learned, normalized": ["initial_head=learned"],
}


@pytest.mark.parametrize("task", ["smlmt", "word_classes"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("head", HEADS)
def test_every_initial_head_has_the_gradient_of_the_reference(stream_of, head: str, scope: str, task: str):
    settings = dict(item.split("=") for item in HEADS[head])
    shape = {"inner_steps": 3, "n_way": 4, "k_shot": 2, "q_query": 2, "window": 12, "min_context": 4}
    config = configuration(
        scope, **{"normalize": True, "inner_lr": "null", "rate_scale": 2.0, "task": task, **shape, **settings}
    )
    meta_lm = with_heads(config)
    episodes = tasks(stream_of, config, 2)
    expected = reference.outer_gradient(copy.deepcopy(meta_lm), episodes, config.meta)
    gradients = outer_gradient(meta_lm, episodes, config)
    assert any(value.any() for name, value in expected.items() if name.startswith("decoder."))
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("scope", ["full", "last_n"])
def test_reptile_moves_the_decoder_alone_where_the_head_is_made_anew(stream_of, scope: str):
    config = configuration(
        scope, algorithm="reptile", initial_head="prototypes", inner_steps=2, inner_lr=0.01
    )
    meta_lm = with_heads(config)
    episodes = tasks(stream_of, config, 1)
    expected = reference.outer_gradient(copy.deepcopy(meta_lm), episodes, config.meta)
    gradients = outer_gradient(meta_lm, episodes, config)
    assert not gradients["term_heads.windows.scale.log_scale"].any()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def with_heads(config: PretrainConfig) -> MetaLM:
    """A model in fp64 with what its initial head learns."""
    meta_lm = build_meta_lm(config)
    add_terms(meta_lm, config, None)
    return meta_lm.double()


@pytest.mark.parametrize("scope", SCOPES)
def test_support_losses_equal_the_reference_and_fall(stream_of, scope: str):
    config = configuration(scope, inner_lr=0.05 if scope == "head" else 1e-3)
    meta_lm = build_meta_lm(config)
    task = tasks(stream_of, config, 1)[0]
    _, expected, _ = reference.adapted(meta_lm, task, config.meta)
    losses = episode_objective(meta_lm, task, config.meta, 0, 0, 0).metrics["support_loss_nats"].tolist()
    assert losses[:-1] == pytest.approx(expected, rel=1e-5)
    assert len(losses) == config.meta.inner_steps + 1
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


def test_adapted_parameters_equal_plain_sgd():
    initial = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5])}
    target = torch.tensor([3.0, 1.0])

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((values["w"] + values["b"] - target) ** 2).sum()

    w, b = np.array([1.0, -2.0]), np.array([0.5])
    for _ in range(5):
        residual = w + b - target.numpy()
        w, b = w - 0.1 * 2 * residual, b - 0.1 * 2 * residual.sum()
    copies = Copies(initial, 0.1)
    for _ in range(5):
        copies.step(loss)
    adapted = copies.detached()
    np.testing.assert_allclose(adapted["w"], w, rtol=1e-5)
    np.testing.assert_allclose(adapted["b"], b, rtol=1e-5)
    assert initial["w"].tolist() == [1.0, -2.0], "the originals have changed"


def test_straight_through_passes_the_gradient_to_the_original():
    original = torch.tensor([1.0, 2.0], requires_grad=True)
    value = straight_through({"x": original}, {"x": torch.tensor([5.0, -3.0])})["x"]
    assert value.tolist() == [5.0, -3.0]
    (value**3).sum().backward()
    assert original.grad.tolist() == [75.0, 27.0]


def test_inner_steps_below_bf16_resolution_are_not_lost(stream_of):
    """Small steps on weights near 1 are below the resolution of bf16; the adapted copies are fp32."""
    config = configuration("full", "bf16", inner_lr=1e-5, inner_steps=1)
    meta_lm = build_meta_lm(config)
    task = tasks(stream_of, config, 1)[0]
    windows = PackedWindows.pack(task.support.tokens, task.support.positions, torch.device("cpu"))
    initial = []

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        initial.append(parameters["decoder.model.norm.weight"].detach().clone())
        return torch.func.functional_call(meta_lm, parameters, (windows,)).square().sum()

    copies = Copies(meta_lm.inner_loop_parameters(config.meta), 1e-5)
    copies.step(loss)
    change = (copies.detached()["decoder.model.norm.weight"] - 1).abs().max()
    assert 0 < change < 2**-8
    assert torch.equal(initial[0], torch.ones_like(initial[0]))


def test_copies_of_bf16_parameters_are_rejected():
    with pytest.raises(ValueError, match="fp32"):
        Copies({"x": torch.ones(2, dtype=torch.bfloat16)}, 0.1)


def test_copies_are_freed_as_soon_as_nothing_names_them():
    """Copies as large as a model must not wait for the garbage collector."""
    copies, seen = Copies({"x": torch.ones(2)}, 0.1, {"x": torch.ones(2)}), []

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(weakref.ref(values["x"]))
        return values["x"].sum()

    copies.step(loss)
    assert seen[0]() is not None
    del copies
    assert seen[0]() is None


@pytest.mark.parametrize("scope", SCOPES)
def test_bf16_gradient_is_close_to_fp32(stream_of, scope: str):
    """Within 15 % in norm. At random weights, rounded states flip ReLUs of the episode head, which alone causes 6 %."""
    gradients = []
    for precision in ("fp32", "bf16"):
        config = configuration(scope, precision, inner_lr=1e-4)
        meta_lm = build_meta_lm(config)
        outer = outer_gradient(meta_lm, tasks(stream_of, config, 2), config)
        assert all(value.dtype == torch.float32 for value in outer.values())
        gradients.append(torch.cat([value.flatten() for value in outer.values()]))
    exact, mixed = gradients
    assert (exact - mixed).norm() < 0.15 * exact.norm()


def test_parameters_adapted_by_scope():
    config = configuration("last_n", last_n=2)
    meta_lm = build_meta_lm(config)
    names = set(meta_lm.inner_loop_parameters(config.meta))
    prefixes = "episode_head.", "decoder.model.norm.", "decoder.model.layers.1.", "decoder.model.layers.2."
    assert all(name.startswith(prefixes) for name in names)
    assert "decoder.model.layers.1.mlp.up_proj.weight" in names
    config.meta.scope = "full"
    all_names = {name for name, _ in meta_lm.named_parameters()}
    assert all_names - set(meta_lm.inner_loop_parameters(config.meta)) == {"decoder.lm_head.weight"}


def test_unused_parameters_get_a_zero_gradient():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    attach_gradients((used * 2).sum(), [unused]).backward()
    assert used.grad.tolist() == [2, 2]
    assert unused.grad.tolist() == [0, 0, 0]


def test_both_objectives_give_every_parameter_a_gradient(stream_of):
    config = configuration()
    meta_lm = build_meta_lm(config)
    losses = [
        next_token_objective(meta_lm, torch.randint(0, 50, (2, 17))).loss,
        episode_objective(meta_lm, tasks(stream_of, config, 1)[0], config.meta, 0, 0, 0).loss,
    ]
    for loss in losses:
        meta_lm.zero_grad()
        loss.backward()
        assert all(value.grad is not None for value in meta_lm.parameters())


def test_dropout_depends_on_the_task_only(stream_of):
    config = configuration(head_dropout=0.5)
    meta_lm = build_meta_lm(config)
    task = tasks(stream_of, config, 1)[0]
    losses = [episode_objective(meta_lm, task, config.meta, 0, step, 0).loss.item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("scope", SCOPES)
def test_adaptation_learns_classes_given_by_the_context(stream_of, scope: str):
    """If the token before the mask determines the class, ten inner steps raise query accuracy from chance to near 1."""
    generator = np.random.default_rng(0)
    words = generator.integers(10, 50, 12_000)
    markers, noise = words + 100, generator.integers(200, 260, (2, len(words)))
    tokens = np.stack([markers, words, *noise], axis=1).ravel()  # each word follows its own marker
    shape = {"n_way": 4, "k_shot": 8, "q_query": 8, "window": 4, "min_context": 1}
    accuracy = {}
    for rate in (1e-9, 0.05):
        config = configuration(scope, inner_lr=rate, **shape)
        index = WindowIndex.build(tokens, 512, 4, 1)
        sampler = EpisodeSampler(stream_of(tokens), index, config.meta, 0, 1, 0)
        sampler.eligible_types = np.arange(10, 50)
        meta_lm = build_meta_lm(config)
        outputs = [
            episode_objective(meta_lm, sampler.episode(0, number), config.meta, 0, 0, number)
            for number in range(8)
        ]
        accuracy[rate] = np.mean([output.metrics["query_accuracy"].item() for output in outputs])
    assert accuracy[1e-9] < 0.45
    assert accuracy[0.05] > 0.8


@pytest.mark.parametrize("mixing", ["alternate", "sum", "per_micro_batch"])
def test_episodes_are_bernoulli_and_depend_on_seed_and_step_only(mixing: str):
    config = configuration(mixing=mixing, rho=0.3)
    config.train.micro_batches_per_update = 3

    def samples(first: int = 0) -> list[int]:
        """The episodes of updates: 0 or tasks_per_step of them, or any number with one sample for each micro-batch."""
        return [len(plan_update(config, step).episodes) for step in range(first, 3000)]

    found = samples()
    assert found == samples()
    trials = 3 if mixing == "per_micro_batch" else 1
    number = sum(found) if trials == 3 else sum(map(bool, found))
    assert abs(number / (3000 * trials) - 0.3) < 4 * (0.3 * 0.7 / (3000 * trials)) ** 0.5
    assert set(found) == ({0, 1, 2, 3} if trials == 3 else {0, config.meta.tasks_per_step})
    for step in range(50):
        plan = plan_update(config, step)
        everything = sorted((*plan.micro_batches, *plan.episodes))
        if mixing == "per_micro_batch":
            assert everything == [0, 1, 2]
        else:
            assert plan.micro_batches == (() if mixing == "alternate" and plan.episodes else (0, 1, 2))
    config.meta.start_step = 1000
    assert samples() == [0] * 1000 + found[1000:]
    config.meta.rho = 0.0
    assert not any(samples())
