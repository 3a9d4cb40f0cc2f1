"""What may change when a run folder is continued, and what is refused."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launch_fakes import save_checkpoint

from metapt.config import TrainConfig, commandline, identity, identity_in, learning_rate
from metapt.errors import UserError
from metapt.runs import Run

WORDS = ["model=nano", "objective=maml_paper", "train.schedule=constant", "train.warmup_steps=3"]


def started(path: Path, *words: str, updates: int = 10) -> Run:
    config, run = commandline.load("pretrain", [*WORDS, *words]), Run(path)
    run.start(identity_in(config, run), {}, asdict(config))
    save_checkpoint(run, updates)
    return run


def check(run: Run, *words: str) -> None:
    run.check_identity(identity_in(commandline.load("pretrain", [*WORDS, *words]), run))


@pytest.mark.parametrize(
    ("recorded", "requested"),
    [
        ([], ["train.micro_batch=4", "train.micro_batches_per_update=4"]),
        ([], ["train.micro_batch=1", "train.micro_batches_per_update=16", "ds=zero2_offload"]),
        ([], ["train.checkpoint_every=5", "train.compile=true"]),
        ([], ["train.max_steps=301"]),
        (
            ["train.max_steps=10"],
            ["train.max_steps=20", "train.micro_batch=16", "train.micro_batches_per_update=1"],
        ),
        (
            ["train.schedule=cosine", "train.max_steps=10"],
            ["train.schedule=cosine", "train.max_steps=20", "train.schedule_steps=10"],
        ),
        (
            ["train.schedule=cosine", "train.schedule_steps=8"],
            ["train.schedule=cosine", "train.schedule_steps=8", "train.max_steps=400"],
        ),
    ],
)
def test_what_leaves_the_data_and_the_updates_so_far_alone_is_accepted(
    tmp_path: Path, recorded: list[str], requested: list[str]
) -> None:
    check(started(tmp_path, *recorded), *requested)


@pytest.mark.parametrize(
    ("recorded", "requested", "message"),
    [
        ([], ["train.micro_batch=4"], "train.micro_batch: recorded 8, requested 4"),
        ([], ["train.micro_batches_per_update=3"], "train.micro_batches_per_update: recorded 2, requested 3"),
        (
            ["objective=maml_authors"],
            ["objective=maml_authors", "train.micro_batch=4", "train.micro_batches_per_update=4"],
            "train.micro_batch: recorded 8, requested 4",
        ),
        ([], ["train.max_steps=200"], "train.max_steps: recorded 300, requested 200"),
        (["train.schedule=cosine"], ["train.schedule=cosine", "train.max_steps=400"], "train.max_steps"),
        (
            ["train.schedule=cosine", "train.schedule_steps=8"],
            ["train.schedule=cosine", "train.max_steps=400"],
            "train.schedule_steps: recorded 8, requested None",
        ),
        ([], ["train.lr=1e-5"], "train.lr"),
        ([], ["train.max_steps=400", "train.warmup_steps=2"], "train.warmup_steps: recorded 3, requested 2"),
    ],
)
def test_what_changes_data_order_or_updates_is_refused(
    tmp_path: Path, recorded: list[str], requested: list[str], message: str
) -> None:
    run = started(tmp_path, *recorded)
    with pytest.raises(UserError, match=message):
        check(run, *requested)


def test_a_cosine_without_its_own_end_can_grow_during_the_warm_up(tmp_path: Path) -> None:
    check(
        started(tmp_path, "train.schedule=cosine", updates=3), "train.schedule=cosine", "train.max_steps=400"
    )


def test_the_split_does_not_rename_a_run() -> None:
    """Unless it decides which micro-batches are episodes."""
    halved = [
        "train.micro_batch=4",
        "train.micro_batches_per_update=4",
        "ds=zero1",
        "train.checkpoint_every=7",
    ]
    for objective, is_equal in (("vanilla", True), ("maml_paper", True), ("maml_authors", False)):
        words = ["model=nano", f"objective={objective}"]
        one, other = (identity(commandline.load("pretrain", [*words, *more])) for more in ([], halved))
        assert (one == other) == is_equal
    assert one["train"]["micro_batch"] == 8


@settings(deadline=None)
@given(
    st.integers(0, 30),
    st.integers(1, 60),
    st.one_of(st.none(), st.integers(31, 60)),
    st.floats(0, 1, width=16),
)
def test_the_learning_rate_of_a_longer_cosine_with_an_end_begins_alike(
    warmup: int, steps: int, end: int | None, ratio: float
) -> None:
    """With an end, rates do not depend on the length; they never rise after the warm-up and stay at the minimum."""
    short, long = (
        TrainConfig(warmup_steps=warmup, max_steps=n, schedule_steps=end, min_lr_ratio=ratio)
        for n in (steps, 90)
    )
    rates = [learning_rate(long, step) for step in range(90)]
    if end is not None:
        assert rates[:steps] == [learning_rate(short, step) for step in range(steps)]
        assert rates[end:] == pytest.approx([ratio * long.lr] * (90 - end))
    after = rates[max(0, warmup - 1) :]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))
