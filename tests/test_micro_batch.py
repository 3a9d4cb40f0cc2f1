"""train.micro_batch=auto: which micro-batch is chosen, that the sequences stay the same, and what is recorded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from forks import Fault, Forks
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.config import PretrainConfig, commandline, identity
from metapt.errors import UserError
from metapt.estimate.forecast import largest_micro_batch
from metapt.estimate.memory import Ranks, largest_peak
from metapt.estimate.speed import GB
from metapt.estimate.update_split import CPU_TOKENS, memory_advice, with_numbers
from metapt.runs import Run

LONG_UPDATES = ["train.sequences_per_update=1024"]
ONE_GPU = Ranks(1, "cuda")
AUTO_NANO = commandline.load("pretrain", ["objective=vanilla", "train.micro_batch=auto"])


def load(*words: str) -> PretrainConfig:
    return commandline.load("pretrain", list(words))


def split(config: PretrainConfig) -> tuple[int, int]:
    return config.train.micro_batch, config.train.micro_batches_per_update


def test_auto_keeps_the_sequences_and_the_name_of_the_run() -> None:
    given, auto = load("model=tiny"), load("model=tiny", "train.micro_batch=auto")
    assert auto.train.sequences == given.train.sequences == 1024
    assert identity(auto) == identity(given)
    later = load("model=tiny", "train.micro_batch=auto", "train.micro_batches_per_update=8")
    assert later.train.sequences == 32
    assert load("train.micro_batch=16", "train.micro_batch=auto").train.sequences == 16 * 2
    assert load("train.micro_batch=auto", "train.micro_batch=16").train.sequences == 16 * 2
    assert load("train.micro_batch=auto", "train.sequences_per_update=96").train.sequences == 96
    assert with_numbers(given, ONE_GPU, 80 * GB) is given  # numbers stay as they are


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
def test_the_largest_that_fits_80_gb(size: str) -> None:
    """With 10 % left free: a divisor of the update's sequences, twice which would not fit."""
    budget = 0.9 * 80 * GB
    auto = with_numbers(load(f"model={size}", "train.micro_batch=auto"), ONE_GPU, budget)
    chosen, number = split(auto)
    given = load(f"model={size}").train.sequences
    assert chosen * number == given
    assert largest_peak(auto, ONE_GPU) <= budget
    auto.train.micro_batch, auto.train.micro_batches_per_update = 2 * chosen, number // 2
    assert number == 1 or largest_peak(auto, ONE_GPU) > budget


@given(
    sequences=st.integers(1, 600), ranks=st.integers(1, 8), largest=st.integers(1, 600), terms=st.booleans()
)
@settings(deadline=None, max_examples=25)
def test_no_allowed_split_gives_the_slowest_rank_less_work(
    sequences: int, ranks: int, largest: int, terms: bool
) -> None:
    config = deepcopy(AUTO_NANO)
    config.train.sequences_per_update = sequences
    if terms:  # groups of sequences that belong together are never split
        config.episodes.weight, config.meta.batch_sequences = 1.0, 4
        config.train.sequences_per_update = sequences = 4 * sequences
        largest *= 4
    chosen, number = split(with_numbers(config, Ranks(ranks, "cuda"), 10**15, largest))

    def work(size: int) -> int:
        return -(-(sequences // size) // ranks) * size

    allowed = [size for size in range(1, min(largest, sequences) + 1) if sequences % size == 0]
    allowed = [size for size in allowed if not terms or size % 4 == 0]
    assert chosen * number == sequences
    assert chosen in allowed
    assert work(chosen) == min(map(work, allowed))
    assert not [size for size in allowed if size > chosen and work(size) == work(chosen)]


def test_the_rule_on_a_cpu() -> None:
    for words in (["model=tiny"], ["model=large"], ["model=laptop"], ["model=nano", "train.seq_len=32"]):
        config = with_numbers(load(*words, "train.micro_batch=auto"), Ranks(1, "cpu"), None)
        assert config.train.micro_batch * config.train.seq_len <= CPU_TOKENS
        assert config.train.sequences == load(*words).train.sequences
    long = with_numbers(
        load("train.micro_batch=auto", "train.seq_len=16384", "model.max_positions=16384"),
        Ranks(1, "cpu"),
        None,
    )
    assert long.train.micro_batch == 1


def test_a_memory_in_which_nothing_fits_is_an_error_with_a_key() -> None:
    with pytest.raises(UserError, match=r"train.micro_batch=auto: no micro-batch fits.*set ds=zero\d"):
        with_numbers(load("model=large", "train.micro_batch=auto"), Ranks(8, "cuda"), 4 * GB)


@pytest.mark.parametrize(
    ("words", "ranks", "advice"),
    [
        (
            [],
            1,
            "set train.micro_batch=2 train.micro_batches_per_update=512 (the same 1,024 sequences an update)",
        ),
        (["train.micro_batch=1"], 4, "set ds=zero1"),
        (["model=large", "train.micro_batch=1", "ds=zero1"], 4, "set ds=zero2"),
        (["train.micro_batch=1"], 1, "use more ranks"),
    ],
)
def test_the_advice_names_a_key_that_lowers_the_peak(words: list[str], ranks: int, advice: str) -> None:
    assert memory_advice(load("model=tiny", "objective=vanilla", *words), Ranks(ranks, "cuda")).startswith(
        advice
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["train.micro_batch=many"], "train.micro_batch=many: must be a number or auto"),
        (["train.micro_batch=0"], "train.micro_batch=0: must be at least 1"),
        (["train.sequences_per_update=8"], "only train.micro_batch=auto splits it"),
        (["train.micro_batch=auto", "objective=maml_authors"], "the split decides how many episodes"),
        (
            ["train.micro_batch=auto", "train.sequences_per_update=6", "objective=both"],
            "must be a multiple of",
        ),
    ],
)
def test_what_auto_does_not_combine_with(words: list[str], error: str) -> None:
    with pytest.raises(UserError, match=error):
        load(*words)


def test_the_estimate_takes_auto() -> None:
    from metapt.estimate.forecast import describe, machine_of

    config = commandline.load(
        "estimate", ["model=tiny", "train.micro_batch=auto", "gpus=1", "gpu_memory_gb=80"]
    )
    machine = machine_of(config)
    numbers = with_numbers(config, machine.ranks, machine.budget)
    assert numbers.train.micro_batch <= largest_micro_batch(numbers, machine)
    assert f"train.micro_batch={numbers.train.micro_batch} fits into 80 GB" in describe(numbers)


def test_a_trial_that_fails_takes_the_next_smaller_one_on_all_ranks() -> None:
    from metapt.training.engine_setup import try_micro_batch

    class FakeEngine:
        world_size, meta_lm = 1, None

        def any_rank(self, flag: bool) -> bool:
            return flag

    config = load("model=tiny", "train.micro_batch=auto")
    decided = with_numbers(config, ONE_GPU, 72 * GB)
    tried: list[int] = []

    def fits(_: object, candidate: PretrainConfig) -> bool:
        tried.append(candidate.train.micro_batch)
        return candidate.train.micro_batch <= 40

    found = try_micro_batch(config, decided, FakeEngine(), fits)
    assert tried == [256, 128, 64, 32]
    assert split(found) == (32, 32)
    with pytest.raises(UserError, match="no micro-batch fits"):
        try_micro_batch(config, decided, FakeEngine(), lambda *_: False)


def test_runs_with_auto_and_with_numbers_are_the_same_run(
    forks: Forks, small_arguments: list[str], tmp_path: Path
) -> None:
    """On the CPU, 8 sequences of 32 tokens are one micro-batch; episodes are the same, losses agree to rounding."""
    runs = {name: Run(tmp_path / name) for name in ("numbers", "auto", "resumed")}
    words = [*small_arguments, "objective=maml_paper", "train.precision=fp32", "meta.head_dropout=0"]
    auto = "train.micro_batch=auto"
    for name, more in (("numbers", []), ("auto", [auto]), ("resumed", [])):
        argv = [*words, *more, f"run_dir={runs[name].path}"]
        if name == "resumed":
            assert forks.run([*argv, auto], faults=[Fault("unit", "TERM", call=6)]).codes == [75]
        done = forks.run(argv)
        assert done.codes == [0], done.stderr
    splits = [
        [(start["micro_batch"], start["micro_batches_per_update"]) for start in run.starts()]
        for run in runs.values()
    ]
    assert splits == [[(2, 4)], [(8, 1)], [(8, 1), (2, 4)]]
    curves = [
        [(line["kind"], line["loss_nats"]) for line in run.metrics() if "loss_nats" in line]
        for run in runs.values()
    ]
    for curve in curves[1:]:
        assert [kind for kind, _ in curve] == [kind for kind, _ in curves[0]]
        assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in curves[0]], rel=1e-5)
    assert runs["auto"].config()["train"]["micro_batch"] == "auto"


@pytest.mark.parametrize("ds", ["zero0", "zero1", "zero2"])
def test_a_trial_pass_changes_nothing(ds: str) -> None:
    """The update after it has the gradient and the weights of an update without it, at every stage that has a trial."""
    from metapt.models.meta_lm import build_meta_lm
    from metapt.training.engine import Engine
    from metapt.training.engine_setup import try_pass

    config = load("objective=vanilla", "train.seq_len=16", "train.precision=fp32", f"ds={ds}")
    tokens, results = torch.arange(34).reshape(2, 17), []
    for has_trial in (False, True):
        engine = Engine(build_meta_lm(config), config)
        if has_trial:
            try_pass(engine.meta_lm, config)
        engine.backward(engine.meta_lm.lm_loss(tokens), last=True)
        results.append((engine.step(1e-2), engine.weights()))
    (norm, weights), (norm_after, weights_after) = results
    assert norm_after == norm > 0
    assert all(torch.equal(weights_after[name], value) for name, value in weights.items())


def test_a_trial_pass_has_the_logits_of_word_classes() -> None:
    """The pass saves as much for the backward pass as the term does, by the estimate."""
    from metapt.meta.initial_heads import PersistentHeads
    from metapt.models.meta_lm import build_meta_lm
    from metapt.training.engine_setup import try_pass

    saved = []
    for objective in ("vanilla", "multitask"):
        config = load("model=nano", f"objective={objective}")
        meta_lm, classes = build_meta_lm(config), sum(config.classes.partitions[:-1])
        meta_lm.term_heads["multitask"] = PersistentHeads(config.model.hidden_size, classes)
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            try_pass(meta_lm, config)
        saved.append(sum(value.untyped_storage().nbytes() for value in kept.values()))
    assert saved[1] - saved[0] == pytest.approx(4 * 0.6 * 8 * 128 * 6656, rel=0.1)


def test_auto_leaves_room_for_the_logits_of_word_classes() -> None:
    sizes = {
        objective: [
            with_numbers(
                load("model=laptop", f"objective={objective}", "train.micro_batch=auto", *LONG_UPDATES),
                ONE_GPU,
                budget * GB,
            ).train.micro_batch
            for budget in (4, 8, 64)
        ]
        for objective in ("vanilla", "multitask", "both")
    }
    assert sizes["vanilla"] == [256, 512, 1024]
    assert sizes["multitask"] == sizes["both"] == [128, 256, 1024]


def test_print_config_shows_what_is_split(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("model=tiny", "train.micro_batch=auto", "--print-config")
    printed = capsys.readouterr().out
    assert "micro_batch: auto" in printed
    assert "sequences_per_update: 1024" in printed
