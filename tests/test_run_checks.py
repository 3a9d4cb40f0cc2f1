"""What a run would refuse is found before it starts: by check=true, by metapt submit, and by the batch scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metapt import finetune_command as finetune
from metapt import pretrain
from metapt.config import commandline
from metapt.errors import EXIT_USER, UserError
from metapt.launch import requeues
from metapt.launch.submission import submit
from metapt.models.pretrained import model_folder
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[1]
REFUSED = {  # words of metapt pretrain: what the message says
    "no text": (["data=text", "data.text_dir=nowhere"], "data.text_dir=nowhere: no such file or folder"),
    "empty": (["data=text", "data.text_dir=empty"], "data.text_dir=empty: contains no text file"),
    "no tokenizer": (["data.tokenizer=./none.json"], r"data\.tokenizer=\./none\.json: no such file"),
    "large tokenizer": (["data.tokenizer=large"], r"model\.vocab_size=2048: the tokenizer has 2051 entries"),
    "another run": (["run_dir=used"], "contains a run with a different configuration"),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize("case", REFUSED)
def test_what_pretraining_would_refuse(case: str, tmp_path: Path) -> None:
    words, message = REFUSED[case]
    if case == "large tokenizer":
        write_tokenizer(tmp_path / "large", entries=2049)  # and two special tokens
    if case == "another run":
        Run(tmp_path / "used").start({"train": {"max_steps": 3}}, {})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        pretrain.main(["model=nano", "check=true", *words])
    assert sorted(tmp_path.rglob("*")) == before


def write_tokenizer(folder: Path, entries: int) -> None:
    from tokenizers import Tokenizer, models

    folder.mkdir()
    words = {f"w{number}": number for number in range(entries)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))


def test_a_good_run_is_not_refused_and_not_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.main(["model=nano", "--check", "nodes=2", "gpus=0", "run_dir=r"])
    assert capsys.readouterr().out == "r: nothing to refuse on 2 rank(s)\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_what_fine_tuning_would_refuse(tmp_path: Path) -> None:
    words = ["checkpoint=nowhere", "source=xx", "data=demo", "run_dir=r", "check=true"]
    with pytest.raises(UserError) as caught:
        finetune.main(words)
    model, source = str(caught.value).splitlines()
    assert model == (
        "nowhere: not a finished run, a checkpoint or a model folder; a model of the hub is written hub:nowhere"
    )
    assert source.startswith("source=xx: 'xx' does not exist")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (['grid.pretrain=["data=text","data.text_dir=nowhere"]'], "data.text_dir=nowhere: no such file"),
        (["grid.models=[nowhere]"], "nowhere: not a finished run, a checkpoint or a model folder"),
        (["grid.sources=[xx]"], "source=xx: 'xx' does not exist"),
    ],
)
def test_a_grid_is_checked_before_it_is_submitted(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        submit(commandline.load("submit", ["grid=demo", "cluster=inline", *words]))
    assert not (tmp_path / "runs").exists()


def test_the_batch_scripts_check_the_ranks_of_their_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    words = ["metapt.finetune", "tuning=head_only", "checkpoint=c", "source=s", "data=demo", "run_dir=r"]
    with pytest.raises(UserError, match="runs in a single process, not in 8"):
        requeues.main(words)


def test_a_check_imports_no_torch() -> None:
    script = (
        "import sys; from metapt import pretrain; pretrain.main(['model=nano', 'check=true']); "
        "print({'torch', 'transformers', 'deepspeed'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    output = subprocess.check_output([sys.executable, "-c", script], text=True, env=environment)
    assert output.splitlines()[-1] == "set()"
    bad = [sys.executable, "-m", "metapt.pretrain", "check=true", "data=text", "data.text_dir=nowhere"]
    ended = subprocess.run(bad, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr.count("\n")) == (EXIT_USER, 1)


def test_an_unknown_source_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["grid=demo", "cluster=local", "grid.sources=[nope]", f"root={tmp_path / 'grid'}"]
    with pytest.raises(UserError, match="nope"):
        submit(commandline.load("submit", words))
    assert not (tmp_path / "grid").exists()
    submit(commandline.load("submit", [*words, "dry_run=true"]))
    assert "nope" in capsys.readouterr().out.partition("not ready, would be refused here:")[2]


def test_a_wrong_checkpoint_says_what_exists(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "pretrain")
    for step in (100, 200):
        run.checkpoint(step).mkdir(parents=True)
    with pytest.raises(UserError, match=r"the run has checkpoints at step 100, 200$"):
        model_folder(run.checkpoint(150))
    run.result_file.write_text("{}")
    for path in (tmp_path / "runs", tmp_path / "runs" / "pretrian"):
        with pytest.raises(UserError, match=f"finished runs there: {run.path}$"):
            model_folder(path)
    with pytest.raises(UserError, match=r"is written hub:xlm-roberta/base$"):
        model_folder("xlm-roberta/base")
