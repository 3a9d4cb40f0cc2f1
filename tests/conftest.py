"""Shared fixtures: small configurations, token streams, and runs of the real commands."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from forks import Forks

if TYPE_CHECKING:
    from metapt.data.corpus import Corpus
    from metapt.runs import Run

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
REPO = Path(__file__).parents[1]
SMALL_EPISODES = ("meta.n_way=8", "meta.k_shot=2")  # an eighth of the windows of objective=maml_paper


def extra_set(name: str) -> Path:
    """The folder of a labelled set beside Universal NER: in METAPT_EXTRA_DIR, by default in METAPT_UNER_DIR/../extra.

    Skips the test where it does not exist.
    """
    beside = Path(os.environ.get("METAPT_UNER_DIR", os.devnull)).parent / "extra"
    folder = Path(os.environ.get("METAPT_EXTRA_DIR", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is neither in METAPT_EXTRA_DIR nor in METAPT_UNER_DIR/../extra")
    return folder


@pytest.fixture(autouse=True)
def _same_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Restore environment variables after each test: with a RANK left over, the next test would wait for other ranks.

    Tests that are not about a real Slurm do not see one that runs on this machine.
    """
    before = dict(os.environ)
    if request.node.get_closest_marker("slurm") is None:
        os.environ["SLURM_CONF"] = os.devnull
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def _same_torch() -> Iterator[None]:
    """Restore after each test what runs set in torch and accelerate for the rest of a process, which is theirs alone."""
    yield
    if "torch" in sys.modules:
        import torch

        torch.nn.functional.linear = torch._C._nn.linear  # DeepSpeed replaces it at ZeRO stage 3
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.enable_cudnn_sdp(True)
        torch.set_float32_matmul_precision("highest")
    if "torch._inductor.config" in sys.modules:
        from torch._inductor import config

        config.deterministic = False
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # else it keeps the first precision


@pytest.fixture
def stream_of(tmp_path: Path) -> Callable[[np.ndarray], object]:
    """A function that builds a TokenStream of given tokens, in shards of 1,000 tokens."""
    from metapt.data.shards import ShardWriter, TokenStream

    def make(tokens: np.ndarray) -> TokenStream:
        folder = tmp_path / f"stream{len(list(tmp_path.glob('stream*')))}"
        folder.mkdir()
        writer = ShardWriter(folder, "train", np.dtype(np.uint16), shard_tokens=1000)
        writer.add(np.asarray(tokens), 0)
        writer.finish()
        return TokenStream(sorted(folder.glob("*.bin")), np.dtype(np.uint16))

    return make


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus of the documents of corpus_world, from one JSON-lines file."""
    from corpus_world import config, jsonl, write

    from metapt.data.corpus import prepare_corpus

    folder = tmp_path_factory.mktemp("small_corpus")
    return prepare_corpus(config(folder, write(folder / "all.jsonl", jsonl())))


@pytest.fixture(scope="session")
def uner_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labelled sets with one sentence each, enough for the plan of a grid."""
    folder = tmp_path_factory.mktemp("uner")
    for name in ("en_ewt", "hr_set", "sk_snk"):
        (folder / name).mkdir()
        for split in ("train", "dev", "test"):
            (folder / name / f"{split}.iob2").write_text("1\tAnna\tB-PER\t-\t-\n\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def idner_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of IDNER-News-2k with one sentence in each split."""
    folder = tmp_path_factory.mktemp("extra") / "id_news2k"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.txt").write_text("Anna\tB-PER\n\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of token shards that all tests of a session share."""
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="session")
def nano_arguments(corpus_cache: Path) -> list[str]:
    """Arguments of a pretraining run that takes seconds: nano on the synthetic corpus, with small episodes."""
    return [
        "model=nano",
        "data=demo",
        f"data.cache_dir={corpus_cache}",
        "train.seq_len=64",
        "train.micro_batch=4",
        "train.max_steps=8",
        "train.warmup_steps=2",
        "train.checkpoint_every=4",
        "train.keep_optimizer_states=0",
        "train.eval_every=4",
        "train.eval_sequences=8",
        *SMALL_EPISODES,
    ]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs in forks of one process, which saves the seconds that Python takes to start."""
    with Forks() as server:
        yield server


@pytest.fixture(scope="session")
def small_arguments(corpus_cache: Path) -> list[str]:
    """Arguments of a pretraining run that takes a second: nine updates of a decoder with 35,000 parameters."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    train = {
        "seq_len": 32,
        "micro_batch": 2,
        "micro_batches_per_update": 4,
        "max_steps": 9,
        "warmup_steps": 2,
    }
    train |= {"checkpoint_every": 3, "eval_every": 4, "dynamics_every": 4, "eval_sequences": 6}
    train["keep_optimizer_states"] = 0
    meta = {"n_way": 4, "inner_steps": 3, "head_hidden": 16, "head_layers": 2}
    sections = {"model": sizes, "train": train, "meta": meta}
    keys = [f"{name}.{key}={value}" for name, values in sections.items() for key, value in values.items()]
    return ["model=nano", "data=demo", f"data.cache_dir={corpus_cache}", *keys]


def run_module(module: str, arguments: Sequence[str], **kwargs: object) -> subprocess.CompletedProcess:
    """Run `python -m module arguments` with stdout and stderr captured."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False, **kwargs
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small decoder (`model`) and a collection of labelled sets (`uner`) for fine-tuning."""
    from ner_world import write_world

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def head_run(world: Path) -> Run:
    """A run of six epochs with tuning=head_only."""
    from tuned import tune

    return tune(world, world / "head", "ner.max_epochs=6")


@pytest.fixture(scope="session")
def full_run(world: Path) -> Run:
    """A run of six epochs with tuning=full."""
    from tuned import tune

    return tune(world, world / "full", "tuning=full", "ner.lr=0.005", "ner.max_epochs=6")


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fakes of sbatch, squeue and so on, which record their input there."""
    from launch_fakes import squeue_output

    folder = tmp_path / "slurm commands"
    folder.mkdir()
    scripts = {
        "sbatch": '[ "$1" = --test-only ] && { cat >"$HERE/tested"; echo sbatch: Job 7 to start now >&2; exit; }\n'
        'n=$(ls "$HERE" | grep -c batch_); cp "$1" "$HERE/batch_$n"; env >"$HERE/environment"\n'
        'echo "Submitted batch job $((100 + n))"',
        "squeue": f'[ ! -e "$HERE/queue" ] || {squeue_output(tmp_path / "r")} "$HERE/queue"',
        "srun": "exit 1",  # submitit checks that it exists
        "scontrol": "true",
        "sinfo": "true",
        "sacctmgr": "exit 1",  # no accounting
        "scancel": 'echo "$@" >>"$HERE/cancelled"',
    }
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\nHERE='{folder}'\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
