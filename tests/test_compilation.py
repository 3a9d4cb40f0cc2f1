"""Compiled runs: when they are compiled, without graph breaks and recompilation, and equal to eager ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Fault, Forks

from metapt.config import commandline, is_compiled
from metapt.data.episodes import EpisodeSampler, WindowIndex
from metapt.meta.objectives import next_token_objective
from metapt.meta.window_episodes import episode_objective
from metapt.models.meta_lm import MetaLM, build_meta_lm
from metapt.runs import Run
from metapt.training import compilation
from metapt.training.compilation import compile_where_possible

SHAPE = (4, 24)
TOKENS = np.random.default_rng(0).integers(2, 50, 20_000)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("setting", "device", "stage", "expected"),
    [
        ("auto", "cuda", 0, True),
        ("auto", "cuda", 2, True),
        ("auto", "cuda", 3, False),
        ("auto", "cpu", 0, False),
        ("true", "cpu", 1, True),
        ("false", "cuda", 0, False),
    ],
)
def test_runs_on_gpus_are_compiled_below_stage_3(
    setting: str, device: str, stage: int, expected: bool
) -> None:
    config = commandline.load("pretrain", [f"train.compile={setting}", f"ds=zero{stage}"])
    assert is_compiled(config, device) == expected


def meta_lm_of(*words: str) -> MetaLM:
    return build_meta_lm(commandline.load("pretrain", ["objective=maml_paper", *words]))


def sequences(number: int, rows: int = SHAPE[0], length: int = SHAPE[1]) -> torch.Tensor:
    start = 1000 * number
    return torch.from_numpy(TOKENS[start : start + rows * (length + 1)].reshape(rows, length + 1))


def one_of_each(meta_lm: MetaLM, stream: object, number: int, scope: str) -> list[torch.Tensor]:
    """The losses of a micro-batch, an episode and an evaluation with a last chunk of fewer sequences."""
    config = commandline.load(
        "pretrain", ["objective=maml_paper", f"meta.scope={scope}", "meta.inner_steps=2"]
    )
    config.meta.max_window_fraction, config.meta.head_dropout = 1.0, 0.0
    index = WindowIndex.build(TOKENS, 64, config.meta.window, config.meta.min_context)
    sampler = EpisodeSampler(stream, index, config.meta, 0, 1, 0)
    losses = [next_token_objective(meta_lm, sequences(number)).loss]
    losses += [episode_objective(meta_lm, sampler.episode(0, number), config.meta, 0, 0, number).loss]
    torch.stack(losses).sum().backward()
    with torch.no_grad():
        losses += [meta_lm.lm_loss(rows) for rows in (sequences(number), sequences(number, rows=3))]
    return [loss.detach() for loss in losses]


@pytest.mark.parametrize(("scope", "precision"), [("head", "bf16"), ("full", "fp32")])
def test_no_graph_breaks_and_none_is_compiled_after_the_first_update_of_each_kind(
    stream_of: Callable[[np.ndarray], object], scope: str, precision: str
) -> None:
    """fullgraph=True turns a break into an error, which would end compilation with a warning."""
    words = [f"meta.scope={scope}", f"train.precision={precision}", "meta.head_dropout=0"]
    compiled, eager, stream = meta_lm_of(*words), meta_lm_of(*words), stream_of(TOKENS)
    compiled.compile_parts(SHAPE, backend="aot_eager")
    one_of_each(compiled, stream, 0, scope)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        losses = [one_of_each(compiled, stream, number, scope) for number in (1, 2)]
    assert compiled.compiled_shape == SHAPE  # nothing has failed
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    # all blocks share the graphs of training and of evaluation; the loss and the inner step have one of their own
    assert graphs == (4 if scope == "head" else 3)
    expected = [one_of_each(eager, stream, number, scope) for number in (1, 2)]
    bound = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    for found, losses_eager in zip(losses, expected, strict=True):
        torch.testing.assert_close(torch.stack(found), torch.stack(losses_eager), rtol=bound, atol=0)


def test_a_compiler_that_fails_during_a_run_leaves_it_eager(capsys: pytest.CaptureFixture[str]) -> None:
    """As a signal to all processes of a job ends the C compiler too; the forward pass is repeated eagerly."""

    def fails(graph: object, inputs: object) -> Callable[..., object]:
        raise OSError("gcc was killed")

    broken, eager = meta_lm_of("train.precision=fp32"), meta_lm_of("train.precision=fp32")
    broken.compile_parts(SHAPE, backend=fails)
    losses = [broken.lm_loss(sequences(number)) for number in range(2)]
    assert losses == [eager.lm_loss(sequences(number)) for number in range(2)]
    losses[0].backward()
    assert capsys.readouterr().err.count("warning: torch.compile fails") == 1
    assert broken.compiled_shape is None


@torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True})
def test_a_node_without_a_compiler_gets_one_warning_and_an_eager_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = commandline.load("pretrain", ["train.compile=true", "objective=vanilla"])
    meta_lm = build_meta_lm(config)
    compile_where_possible(meta_lm, config, torch.device("cpu"))
    assert meta_lm.compiled_shape is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch.compile fails" in line
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: None)
    compile_where_possible(meta_lm, config, torch.device("cpu"))
    assert meta_lm.compiled_shape == (config.train.micro_batch, config.train.seq_len)


@pytest.mark.nightly
def test_a_hundred_compiled_updates_have_the_losses_of_eager_ones(
    forks: Forks, small_arguments: list[str], tmp_path: Path
) -> None:
    words = [*small_arguments, "objective=maml_paper", "train.precision=fp32", "train.max_steps=100"]
    words += ["meta.head_dropout=0", "train.checkpoint_every=100"]
    runs = {setting: Run(tmp_path / setting) for setting in ("false", "true")}
    for setting, run in runs.items():
        done = forks.run([*words, f"train.compile={setting}", f"run_dir={run.path}"])
        assert done.codes == [0], done.stderr
        assert "torch.compile fails" not in done.stderr[0]
    assert [run.starts()[0]["compiled"] for run in runs.values()] == [False, True]
    eager, compiled = (
        [
            line[name]
            for line in run.metrics()
            for name in ("lm_loss_nats", "query_loss_nats", "eval_loss_nats")
            if name in line
        ]
        for run in runs.values()
    )
    assert len(eager) > 100
    assert compiled == pytest.approx(eager, rel=1e-4)


@pytest.mark.nightly
def test_a_signal_during_compilation_ends_the_run_with_75_and_loses_nothing(
    forks: Forks, small_arguments: list[str], tmp_path: Path
) -> None:
    words = [*small_arguments, "objective=vanilla", "train.precision=fp32", "train.compile=true"]
    run, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    fault = Fault("compilation", "TERM", call=2)  # the first is the trial of the compiler
    stopped = forks.run([*words, f"run_dir={run.path}"], faults=[fault])
    assert stopped.codes == [75], stopped.stderr
    assert [step for step, _ in run.checkpoints()] == [0]
    for path in (run.path, whole.path):
        assert forks.run([*words, f"run_dir={path}"]).codes == [0]
    losses = [[line.get("loss_nats") for line in each.metrics()] for each in (run, whole)]
    assert losses[0] == losses[1]
