"""What the jobs of a grid read from the hub: fetched before they are submitted, pinned, and read without internet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from fake_hub import NOWHERE, FakeHub, serve, use_hub, write_repositories

from metapt import prepare
from metapt.config import ClusterConfig, commandline
from metapt.data.corpus import SETTINGS, Corpus
from metapt.data.hub_files import HubFiles, cached_commit, fetch, model_files
from metapt.data.labelled_sets import hub_tables, open_collection
from metapt.data.text_sources import open_source
from metapt.errors import OperationalError, UserError
from metapt.launch import hub_inputs
from metapt.launch.grid import plan
from metapt.launch.submission import submit
from metapt.models.pretrained import model_folder

PRETRAIN = [
    "data=hub",
    "data.hub_name=some/corpus",
    "data.hub_column=text",
    "data.tokenizer=some/tokenizer",
    "data.eval_fraction=0.2",
    "classes.sizes=[]",
]
FINETUNE = ["data=uner", "data.hub_name=some/uner", "data.hub_revision=main"]
GRID = [
    *(
        "grid=demo",
        "grid.per_size={}",
        "grid.objectives=[vanilla]",
        "grid.tunings=[head_only]",
        "grid.baselines=[]",
    ),
    f"grid.pretrain={json.dumps(PRETRAIN)}",
    f"grid.finetune={json.dumps(FINETUNE)}",
    *(
        "grid.sources=[en_ewt]",
        "grid.models=['hub:some/encoder']",
        "cluster=slurm",
        "cluster.gpus_per_node=0",
    ),
]


@pytest.fixture(scope="module")
def repositories(
    small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    return write_repositories(small_corpus, tmp_path_factory.mktemp("parquet"))


@pytest.fixture
def hub(
    repositories: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub with these repositories, for this process and its children."""
    with serve() as server:
        for name, files in repositories.items():
            server.push(name, files)
        use_hub(server.url, tmp_path, monkeypatch)
        yield server


OFFLINE_JOB = """
import sys
from metapt import prepare
from metapt.config import commandline
from metapt.data.labelled_sets import open_collection
from metapt.models.pretrained import model_folder
corpus, tuning = sys.argv[1].split("|"), sys.argv[2].split("|")
prepare.main(corpus)
config = commandline.load("finetune", tuning)
print(open_collection(config.data).load("tl_trg", "test")[0].words, open_collection(config.data).load("en_ewt", "dev")[0].tags)
print((model_folder(config.checkpoint) / "model.safetensors").read_text())
"""


def test_what_was_fetched_is_read_offline(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = commandline.load(
        "finetune", [*FINETUNE, "checkpoint=hub:some/encoder", "source=en_ewt", "run_dir=r"]
    )
    for files in (*(table.files() for table in hub_tables(config.data)), model_files("some/encoder")):
        fetch(files, tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    requests = len(hub.requests)
    sets = open_collection(config.data)
    assert {sets.load(name, "test")[0].words for name in ("en_ewt", "tl_trg")} == {("si", "Juan")}
    assert (model_folder(config.checkpoint) / "model.safetensors").read_bytes() == b"weights"
    assert len(hub.requests) == requests


@pytest.mark.nightly
def test_jobs_without_internet_read_what_the_submitter_fetched(
    hub: FakeHub, tmp_path: Path, slurm_commands: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "the cache"
    config = commandline.load("submit", [*GRID, f"root={tmp_path / 'r'}", f"cluster.cache={cache}"])
    submit(config)
    printed = capfd.readouterr().out
    for kind, name in (("model", "some/tokenizer"), ("data set", "some/uner"), ("model", "some/encoder")):
        key = f"{'datasets' if kind == 'data set' else 'models'}/{name}"
        assert f"{kind} {name} (main): commit {hub.hash(key, 0)}" in printed
    scripts = [path.read_text() for path in slurm_commands.glob("batch_*")]
    exported = f"export HF_HUB_CACHE='{cache}/hub' HF_DATASETS_CACHE='{cache}/datasets' HF_HUB_OFFLINE=1\n"
    assert len(scripts) == 5
    assert all(exported in script for script in scripts)
    (manifest,) = cache.glob("corpus/hub-*/manifest.json")
    assert json.loads(manifest.read_text())["hub_commit"] == hub.hash("datasets/some/corpus", 0)
    assert not any("onnx" in request for request in hub.requests)

    jobs = plan(config).jobs
    words = ["|".join(job.argv) for job in (jobs[0], next(job for job in jobs if job.model))]
    variables = {"HF_HUB_CACHE": f"{cache}/hub", "HF_DATASETS_CACHE": f"{cache}/datasets"}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT"), NOWHERE)
    environment = {**os.environ, **variables, **proxies, "HF_HUB_OFFLINE": "1"}
    requests = len(hub.requests)
    command = [sys.executable, "-c", OFFLINE_JOB, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "('si', 'Juan') ('O', 'B-PER')\nweights\n" in done.stdout
    assert f"corpus      {manifest.parent}" in done.stdout
    assert len(hub.requests) == requests
    assert len(list(cache.glob("corpus/hub-*/manifest.json"))) == 1


def test_a_missing_piece_is_refused_before_sbatch(
    tmp_path: Path, slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(NOWHERE, tmp_path, monkeypatch)
    config = commandline.load("submit", [*GRID, f"root={tmp_path / 'r'}"])
    with pytest.raises(OperationalError) as raised:
        submit(config)
    *problems, advice = str(raised.value).splitlines()
    names = ["model some/tokenizer (main)", "data set some/uner (main)", "model some/encoder (main)"]
    assert [problem.split(": ")[0] for problem in problems] == names
    assert f"{tmp_path / 'r' / 'hub'}" in advice
    assert "metapt prepare" in advice
    assert "cluster.online=true" in advice
    assert not list(slurm_commands.glob("batch_*"))
    assert not (tmp_path / "r" / "plan.json").exists()


def test_an_unknown_repository_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model some/none \(main\): cannot be downloaded"):
        fetch(model_files("some/none"), tmp_path)


def test_weights_of_models_are_safetensors_or_else_bin(hub: FakeHub, tmp_path: Path) -> None:
    config = {"config.json": b"{}"}
    hub.push("models/some/both", {**config, "model.safetensors": b"1", "pytorch_model.bin": b"2"})
    hub.push("models/some/older", {**config, "pytorch_model.bin": b"2", "training_args.bin": b"3"})
    hub.push("models/some/flax", {**config, "flax_model.msgpack": b"4"})
    expected = {"both": "model.safetensors", "older": "pytorch_model.bin"}
    for name, weights in expected.items():
        commit = fetch(model_files(f"some/{name}"), tmp_path)
        assert cached_commit(model_files(f"some/{name}"), tmp_path) == commit
        folder = tmp_path / f"models--some--{name}" / "snapshots" / commit
        assert {path.name for path in folder.iterdir()} == {"config.json", weights}
        (folder / weights).unlink()
        assert cached_commit(model_files(f"some/{name}"), tmp_path) is None
    with pytest.raises(UserError, match=r"contains neither \*\.safetensors nor pytorch_model\*\.bin"):
        fetch(model_files("some/flax"), tmp_path)


def test_an_incomplete_download_is_refused_with_the_command_that_completes_it(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": b"weights" for number in (1, 2)}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards}
    commit = hub.push("models/some/large", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = model_folder("hub:some/large")
    (folder / "model-00002-of-00002.safetensors").unlink()
    command = (
        f"hf download some/large model-00002-of-00002.safetensors --repo-type model --revision {commit} "
        f"--cache-dir {tmp_path / 'hub'}"
    )
    expected = (
        f"{folder}: lacks model-00002-of-00002.safetensors; download where the hub can be reached: {command}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OperationalError) as by_name:
        model_folder("hub:some/large")
    with pytest.raises(UserError) as by_path:
        model_folder(folder)
    assert str(by_name.value) == str(by_path.value) == expected
    shutil.copytree(tmp_path / "hub", tmp_path / "old", symlinks=True)
    shutil.rmtree(tmp_path / "old" / "models--some--large" / "trees")  # as before huggingface_hub 2
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "old"))
    with pytest.raises(UserError) as without_list:
        model_folder("hub:some/large")
    assert str(without_list.value) == expected.replace(str(tmp_path / "hub"), str(tmp_path / "old"))
    (folder / "model-00002-of-00002.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors; "):
        model_folder(folder)


def test_a_branch_keeps_the_commit_that_was_fetched_first(hub: FakeHub, tmp_path: Path) -> None:
    english, tagalog = (
        HubFiles("dataset", "some/uner", "main", (f"{name}/*",)) for name in ("en_ewt", "tl_trg")
    )
    first = fetch(english, tmp_path)
    newer = hub.push("datasets/some/uner", {"en_ewt/x": b"1", "tl_trg/x": b"2"})
    assert newer != first
    assert cached_commit(tagalog, tmp_path) is None, "its files are not there, those of another folder are"
    assert fetch(tagalog, tmp_path) == first
    requests = len(hub.requests)
    assert fetch(english, tmp_path) == fetch(tagalog, tmp_path) == cached_commit(tagalog, tmp_path) == first
    assert len(hub.requests) == requests, "what is in the cache needs no hub"
    assert fetch(english, tmp_path / "another cache") == newer


def test_online_jobs_download_for_themselves(
    tmp_path: Path, slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(NOWHERE, tmp_path, monkeypatch)
    submit(commandline.load("submit", [*GRID, f"root={tmp_path / 'r'}", "cluster.online=true"]))
    scripts = [path.read_text() for path in slurm_commands.glob("batch_*")]
    assert len(scripts) == 5
    assert not any("HF_" in script for script in scripts)


def test_a_dry_run_names_what_is_to_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_hub(NOWHERE, tmp_path, monkeypatch)
    config = commandline.load("submit", [*GRID, f"root={tmp_path / 'r'}", "dry_run=true"])
    submit(config)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to be downloaded")]
    corpus = plan(config).jobs[0].id
    assert line == (
        "to be downloaded first: model some/tokenizer (main), data set some/uner (main), model some/encoder (main), "
        f"corpus of {corpus}"
    )


def test_a_grid_is_prepared_where_there_is_no_slurm(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = []
    monkeypatch.setattr(hub_inputs, "_prepare", lambda command, variables: prepared.append(command))
    words = [*GRID, f"root={tmp_path / 'r'}"]
    prepare.main(words)
    assert len(capsys.readouterr().out.splitlines()) == 3
    config = commandline.load("submit", words)
    jobs = plan(config)
    assert prepared == [jobs.jobs[0].command]
    assert hub_inputs.missing_inputs(jobs, jobs.jobs, config.cluster, config.root) == [
        f"corpus of {jobs.jobs[0].id}"
    ]
    for other in ("cluster=local", "cluster.online=true"):
        with pytest.raises(UserError, match="its jobs download what they read"):
            prepare.main([*words, other])


def test_a_corpus_is_prepared_in_each_cache(tmp_path: Path) -> None:
    """Also if the job that prepares it is done: that was in another cache, or before this one was emptied."""

    def missing(cache: Path) -> list[str]:
        config = commandline.load("submit", [*GRID, f"root={tmp_path / 'r'}", f"cluster.cache={cache}"])
        jobs = plan(config)
        todo = [job for job in jobs.jobs if job.kind == "pretrain"]
        return [job.argv[-1] for job in hub_inputs.corpora_on_hub(jobs, todo)]

    first, second = (f"data.cache_dir={tmp_path / name / 'corpus'}" for name in "12")
    assert missing(tmp_path / "1") == [first]
    data = commandline.load("prepare", [*PRETRAIN, first]).data
    manifest = {
        "sources": open_source(data).identity(),
        "settings": {name: getattr(data, name) for name in SETTINGS},
        "tokenizer": {"name": "some/tokenizer"},
    }
    folder = tmp_path / "1/corpus/hub-0"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert missing(tmp_path / "1") == []
    assert missing(tmp_path / "2") == [second]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sources": []}))
    assert missing(tmp_path / "1") == [first]


def test_a_corpus_that_cannot_be_prepared_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    config = commandline.load("submit", [*GRID, f"root={tmp_path / 'r'}"])
    jobs = plan(config)
    failing = replace(jobs.jobs[0], program=("-c", "raise SystemExit(2)"), argv=())
    with pytest.raises(OperationalError, match=r"could not be prepared \(exit code 2"):
        hub_inputs.fetch_inputs(jobs, [failing], config.cluster, config.root)


def test_the_cache_of_a_grid_is_its_folder_by_default(tmp_path: Path) -> None:
    (line,) = hub_inputs.shell_lines(ClusterConfig(name="slurm"), tmp_path / "r")
    assert (
        line
        == f"export HF_HUB_CACHE={tmp_path}/r/hub HF_DATASETS_CACHE={tmp_path}/r/datasets HF_HUB_OFFLINE=1"
    )
