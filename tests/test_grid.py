"""Plans: shipped grids, properties of random grids, mistakes, words with any characters, and the sbatch text."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt import commandline
from metapt.config import ClusterConfig, GridConfig, SubmitConfig
from metapt.errors import OperationalError, UserError
from metapt.launch import grid as planning
from metapt.launch import slurm
from metapt.launch.jobs import Job, Plan
from metapt.launch.root import Root
from metapt.launch.submission import submit

SUBSETS = {
    "sizes": ["nano", "tiny", "small", "medium", "large"],
    "objectives": ["vanilla", "maml"],
    "seeds": [0, 1, 7],
    "sources": ["en_demo", "sk_demo", "all"],
    "regimes": ["head", "full"],
    "checkpoints": [0, 100, 300],
}


def planned(*words: str) -> Plan:
    return planning.plan(commandline.load("submit", ["cluster=local", *words]))


def kinds(plan: Plan) -> dict[str, int]:
    return dict(Counter(job.kind for job in plan.jobs))


def some(name: str, least: int, most: int = 2) -> st.SearchStrategy[list]:  # type: ignore[type-arg]
    return st.lists(st.sampled_from(SUBSETS[name]), min_size=least, max_size=most, unique=True)


grids = st.builds(
    GridConfig,
    name=st.just("random"),
    sizes=some("sizes", 1),
    objectives=some("objectives", 1),
    seeds=some("seeds", 1),
    sources=some("sources", 0),
    regimes=some("regimes", 1),
    checkpoints=some("checkpoints", 0),
    variants=st.sampled_from(
        [{}, {"v1": []}, {"v1": ["train.lr=1e-3"], "small_bpe": ["data.vocab_size=1000"]}]
    ),
    pretrain=st.just(["data=demo"]),
    finetune=st.just(["data=demo"]),
)


@settings(max_examples=15, deadline=None)
@given(grids)
def test_every_run_is_planned_once_and_after_what_it_needs(grid: GridConfig) -> None:
    plan = planning.plan(SubmitConfig(grid=grid, cluster=ClusterConfig(name="local"), root="/r"))
    seen: set[str] = set()
    for job in plan.jobs:
        assert job.id not in seen
        assert set(job.needs) <= seen  # hence no cycle
        seen.add(job.id)
    assert len({job.run_dir for job in plan.jobs}) == len(plan.jobs)
    pretrains = len(grid.sizes) * len(grid.objectives) * len(grid.seeds) * max(1, len(grid.variants))
    finetunes = pretrains * len(grid.sources) * len(grid.regimes) * max(1, len(grid.checkpoints))
    assert kinds(plan).get("pretrain") == pretrains
    assert kinds(plan).get("finetune", 0) == finetunes
    assert set(plan.jobs[-1].needs) == seen - {"report"}
    assert plan.jobs[-1].id == "report"
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_ids_do_not_depend_on_the_rest_of_the_grid() -> None:
    small = planned("grid=demo")
    large = planned(
        "grid=demo", "grid.sizes=[tiny,nano]", "grid.seeds=[1,0]", "grid.sources=[sk_demo,en_demo,all]"
    )
    assert {job.id for job in small.jobs} <= {job.id for job in large.jobs}
    runs = {(job.id, job.argv) for job in small.jobs if job.is_run}
    assert runs <= {(job.id, job.argv) for job in large.jobs}


def test_one_corpus_is_prepared_for_all_runs_that_read_it_and_no_other() -> None:
    plan = planned(
        "grid=demo", 'grid.variants={a:[],b:["train.lr=1e-2"],c:["data.vocab_size=1000"]}', "grid.sources=[]"
    )
    assert kinds(plan) == {"prepare": 2, "pretrain": 6, "report": 1}
    corpus_of = {job.id: job.needs for job in plan.jobs if job.kind == "pretrain"}
    assert corpus_of["pretrain/nano-maml-s0-a"] == corpus_of["pretrain/nano-vanilla-s0-b"]
    assert corpus_of["pretrain/nano-maml-s0-a"] != corpus_of["pretrain/nano-maml-s0-c"]
    prepare = plan.jobs[0]
    assert commandline.load("pretrain", prepare.argv).data.cache_dir == "runs/demo/corpus"


def test_baselines_and_further_models_are_jobs_beside_the_grids_own() -> None:
    plan = planned(
        "grid=demo", "grid.baselines=[particle,majority]", "grid.models=['hub:some/encoder',/models/b]",
        "grid.seeds=[0,1]", "grid.regimes=[full]", 'grid.finetune=["data=demo","data.eval_sets=[tl_demo]","ner.max_len=64"]',
    )  # fmt: skip
    jobs = {job.id: job for job in plan.jobs}
    found = sorted(name for name in jobs if name.startswith("baseline/"))
    assert found == ["baseline/majority-en_demo", "baseline/majority-sk_demo", "baseline/particle"]
    config = plan.configs["baseline/majority-sk_demo"]
    assert (config.source, config.data.eval_sets) == ("sk_demo", ["tl_demo"])
    models = [
        job for name, job in jobs.items() if name.startswith(("finetune/some_encoder-", "finetune/models_b-"))
    ]
    assert len(models) == 2 * 2 * 2
    assert all(job.needs == () for job in models)
    tuned = plan.configs["finetune/some_encoder-sk_demo-full-s1"]
    assert (tuned.checkpoint, tuned.source, tuned.regime) == ("hub:some/encoder", "sk_demo", "full")
    assert (tuned.train.seed, tuned.ner.max_len, tuned.ner.lr) == (1, 64, 1e-3)
    assert set(jobs) - {"report"} == set(jobs["report"].needs)
    assert not any(job.kind == "baseline" for job in planned("grid=demo", "grid.sources=[]").jobs)
    with pytest.raises(UserError, match="'best' must be one of particle"):
        planned("grid=demo", "grid.baselines=[best]")
    with pytest.raises(UserError, match="crf stands there twice"):
        planned("grid=demo", "grid.baselines=[crf,crf]")


@pytest.mark.parametrize(
    ("name", "cluster", "counts"),
    [
        ("demo", "local", {"prepare": 1, "pretrain": 2, "finetune": 8, "baseline": 4, "report": 1}),
        ("demo", "slurm", {"prepare": 1, "pretrain": 2, "finetune": 8, "baseline": 4, "report": 1}),
        ("first", "slurm", {"prepare": 2, "pretrain": 4, "finetune": 16, "baseline": 7, "report": 1}),
        ("scales", "local", {"prepare": 1, "pretrain": 8, "finetune": 160, "baseline": 13, "report": 1}),
        ("paper", "slurm", {"prepare": 1, "pretrain": 8, "finetune": 160, "baseline": 13, "report": 1}),
        ("seeds", "slurm", {"prepare": 1, "pretrain": 20, "finetune": 80, "report": 1}),
        ("ablation", "slurm", {"prepare": 1, "pretrain": 11, "finetune": 22, "report": 1}),
        ("checkpoints", "slurm", {"prepare": 1, "pretrain": 2, "finetune": 122, "report": 1}),
    ],
)
def test_every_shipped_grid_has_a_dry_run(
    name: str,
    cluster: str,
    counts: dict[str, int],
    tmp_path: Path,
    uner_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAPT_TEXT_DIR", "/data/the text, all=of it")
    monkeypatch.setenv("METAPT_TOKENIZER", "/data/tokenizer.json")
    monkeypatch.setenv("METAPT_UNER_DIR", str(uner_dir))
    submit(commandline.load("submit", [f"grid={name}", f"cluster={cluster}", "dry_run=true"]))
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    assert f"grid {name}: {sum(counts.values())} jobs ({total})" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", ["METAPT_TEXT_DIR", "METAPT_TOKENIZER", "METAPT_UNER_DIR"])
def test_a_missing_variable_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METAPT_TEXT_DIR", "METAPT_TOKENIZER", "METAPT_UNER_DIR"):
        monkeypatch.setenv(name, "/data")
    monkeypatch.delenv(absent)
    with pytest.raises(UserError, match=absent):
        planned("grid=first")


def test_all_mistakes_of_a_grid_are_told_at_once() -> None:
    with pytest.raises(UserError) as told:
        planned(
            "grid=demo",
            "grid.sizes=[nano,tinny]",
            'grid.pretrain=["data=demo","train.lrr=1"]',
            "grid.regimes=[head,tail]",
        )
    message = str(told.value)
    assert (
        "model=tinny: model is one of large, medium, nano, small, tiny (in pretrain/tinny-vanilla-s0 and 1 more)"
        in message
    )
    assert "train.lrr: no such key" in message
    assert "(in pretrain/nano-vanilla-s0 and 3 more)" in message
    assert "regime=tail" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grid.seeds=[0,1,0]"], "grid.seeds: 0 stands there twice"),
        (["grid.sizes=[]"], "grid.sizes is empty"),
        (['grid.pretrain=["train.seed=3"]'], "train.seed follows from the grid"),
        (["grid.per_size={nanno:[]}"], "grid.per_size.nanno: must be one of"),
        (["grid.variants={a-b:[]}"], "'a-b' becomes part of a folder's name"),
        (["grid.checkpoints=[0,150]"], "150 will not exist in pretrain/nano-vanilla-s0"),
        (
            ["cluster=slurm", "grid.gpus_per_size={nano:3}"],
            "train.accumulation=2 must be a multiple of its 3 tasks",
        ),
        (["cluster.nodes=2"], "cluster.nodes=2: cluster=local has one"),
        (["grid.hours_per_size={nano:0}"], "grid.hours_per_size.nano=0.0: must be above 0"),
        (["grid.mem_gb_per_size={nanno:8}"], "grid.mem_gb_per_size.nanno: must be one of"),
    ],
)
def test_mistakes_of_a_grid(words: list[str], said: str) -> None:
    words = words if words[0].startswith("cluster=") else ["cluster=local", *words]
    with pytest.raises(UserError, match=r"mistake") as told:
        planning.plan(commandline.load("submit", ["grid=demo", *words]))
    assert said in str(told.value)


def test_mappings_are_given_on_the_command_line() -> None:
    words = [
        'grid.variants={olmo:["data.tokenizer=/a b/t.json"],bpe:["data.tokenizer=train"]}',
        "grid.gpus_per_size.tiny=4",
    ]
    grid = commandline.load("submit", words).grid
    assert grid.variants == {"olmo": ["data.tokenizer=/a b/t.json"], "bpe": ["data.tokenizer=train"]}
    assert grid.gpus_per_size == {"nano": 1, "tiny": 4}
    assert (
        commandline.load(
            "submit", ["grid=first", "grid.variants={}", "grid.pretrain=[]", "grid.finetune=[]"]
        ).grid.variants
        == {}
    )


def test_a_mapping_with_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"grid\.gpus_per_size"):
        commandline.load("submit", ["grid.gpus_per_size={tiny:many}"])


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12))
def test_a_word_carries_any_text(text: str) -> None:
    if "${" in text:  # an interpolation wherever it stands
        return
    assert (
        commandline.load(
            "finetune", ["data=demo", "checkpoint=c", "source=s", commandline.word("run_dir", text)]
        ).run_dir
        == text
    )


@pytest.mark.parametrize(
    "text", ["/a b/c=d,e", "it's", "back\\", "a\\'b", "true", "null", "1e3", "007", "[x]", " ", "a:b"]
)
def test_a_word_carries_awkward_text(text: str) -> None:
    config = commandline.load(
        "finetune", ["data=demo", "checkpoint=c", "source=s", commandline.word("run_dir", text)]
    )
    assert config.run_dir == text


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which stand-ins for sbatch and squeue keep what they were given."""
    folder = tmp_path / "slurm commands"
    folder.mkdir()
    scripts = {
        "sbatch": 'n=$(ls "$HERE" | grep -c batch_); cp "$1" "$HERE/batch_$n"; echo "Submitted batch job $((100 + n))"',
        "squeue": 'cat "$HERE/queue" 2>/dev/null',
        "srun": "exit 1",
    }
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\nHERE='{folder}'\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def pending(number: str) -> str:
    """A line of squeue, in the format in which it is asked."""
    return f"{number}|PENDING|Priority\n"


def directives(script: Path) -> dict[str, str]:
    lines = [
        line.removeprefix("#SBATCH --")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def test_what_slurm_is_told(tmp_path: Path, slurm_commands: Path) -> None:
    words = [
        "grid=demo",
        "cluster=slurm",
        f"root={tmp_path / 'r'}",
        "grid.gpus_per_size={nano:2}",
        "grid.sources=[en_demo]",
        "grid.baselines=[]",
    ]
    words += [
        "grid.regimes=[head]",
        "cluster.partition=main",
        "cluster.account=nlp",
        "cluster.qos=long",
        "cluster.mem_gb=64",
    ]
    words += [
        "cluster.timeout_min=600",
        "cluster.extra={constraint:a100}",
        'cluster.setup=["module load cuda"]',
    ]
    words += ["cluster.gpus_per_node=1", "grid.hours_per_size={nano:2.5}", "grid.mem_gb_per_size={nano:32}"]
    submit(commandline.load("submit", words))
    prepare, pretrains, vanilla, maml, report = (directives(slurm_commands / f"batch_{n}") for n in range(5))
    pretraining = {
        "job-name": "demo/pretrain",
        "array": "0-1%2",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "4",
        "mem": "32GB",
        "time": "150",
        "partition": "main",
        "account": "nlp",
        "qos": "long",
        "constraint": "a100",
        "signal": "USR2@120",
        "dependency": "afterok:100",
        "kill-on-invalid-dep": "yes",
        "open-mode": "append",
    }
    assert {name: pretrains[name] for name in pretraining} == pretraining
    assert "gpus-per-node" not in prepare
    assert "dependency" not in prepare
    tuning = {"nodes": "1", "gpus-per-node": "1", "mem": "64GB", "time": "600", "dependency": "afterok:101_0"}
    assert {name: vanilla[name] for name in tuning} == tuning
    assert maml["dependency"] == "afterok:101_1"
    assert report["dependency"] == "afterany:100:101:102:103"
    text = (slurm_commands / "batch_1").read_text()
    assert text.index("module load cuda") < text.index("srun --unbuffered")
    assert "--cpus-per-task=4" in text[text.index("srun") :]


def test_an_array_has_jobs_that_are_alike_and_a_limit(tmp_path: Path, slurm_commands: Path) -> None:
    words = [
        "grid=demo",
        "cluster=slurm",
        f"root={tmp_path / 'r'}",
        "grid.sizes=[nano,tiny]",
        "grid.seeds=[0,1,2]",
    ]
    words += ["grid.hours_per_size={tiny:9}", "cluster.max_running=3", "grid.sources=[en_demo]"]
    submit(commandline.load("submit", words))
    scripts = [
        directives(slurm_commands / f"batch_{n}") for n in range(len(list(slurm_commands.glob("batch_*"))))
    ]
    arrays = Counter((script["job-name"], script["time"], script.get("array")) for script in scripts)
    assert arrays["demo/pretrain", "1440", "0-5%3"] == 1  # nano: 2 objectives x 3 seeds
    assert arrays["demo/pretrain", "540", "0-5%3"] == 1  # tiny
    assert arrays["demo/finetune", "1440", "0-1%2"] == 12  # of each, head and full
    assert arrays["report", "1440", None] == 1


def test_jobs_in_slurms_queue_are_not_submitted_again(tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.baselines=[]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", words))
    assert len(list(slurm_commands.glob("batch_*"))) == 5
    numbers = [
        "100",
        "101_0",
        "101_1",
        *(f"{array}_{task}" for array in (102, 103) for task in range(4)),
        "104",
    ]
    (slurm_commands / "queue").write_text("".join(map(pending, numbers)))
    submit(commandline.load("submit", words))
    assert len(list(slurm_commands.glob("batch_*"))) == 5
    left = [number for number in numbers if number not in ("100", "101_1")]
    (slurm_commands / "queue").write_text("".join(map(pending, left)))
    submit(commandline.load("submit", words))  # pretrain/nano-maml-s0 has left the queue without a result
    scripts = [directives(slurm_commands / f"batch_{n}") for n in range(5, 8)]
    assert [script["job-name"] for script in scripts] == [
        "prepare/" + scripts[0]["job-name"][8:],
        "pretrain/nano-maml-s0",
        "report",
    ]
    assert "104" in scripts[-1]["dependency"]  # not at the same time as the report that is queued


def test_without_squeue_nothing_is_submitted_twice(tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.baselines=[]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", words))
    (slurm_commands / "squeue").write_text("#!/bin/bash\necho the controller is away >&2; exit 1\n")
    with pytest.raises(OperationalError, match="the controller is away"):
        submit(commandline.load("submit", words))
    assert len(list(slurm_commands.glob("batch_*"))) == 5


def test_a_refused_submission_is_told_and_what_went_before_is_recorded(
    tmp_path: Path, slurm_commands: Path
) -> None:
    refusing = '[ -e "$HERE/batch_1" ] && { echo Invalid account >&2; exit 1; }\n'
    script = slurm_commands / "sbatch"
    script.write_text(script.read_text().replace("n=$(", f"{refusing}n=$("))
    with pytest.raises(OperationalError, match="Invalid account"):
        submit(commandline.load("submit", ["grid=demo", "cluster=slurm", f"root={tmp_path / 'r'}"]))
    (slurm_commands / "queue").write_text("".join(map(pending, ["100", "101_0", "101_1"])))
    assert len(slurm.queued(Root(tmp_path / "r"))) == 3


def test_episodes_must_divide_by_the_tasks_too() -> None:
    words = ["grid=scales", "cluster=slurm", "cluster.gpus_per_node=4", "grid.gpus_per_size={large:8}"]
    with pytest.raises(
        UserError, match=r"large-maml-s0: meta.tasks_per_step=4 must be a multiple of its 8 tasks"
    ):
        planning.plan(commandline.load("submit", words))


def test_an_unknown_source_is_told_before_anything_runs() -> None:
    with pytest.raises(UserError, match="nope"):
        submit(commandline.load("submit", ["grid=demo", "grid.sources=[nope]", "dry_run=true"]))


def test_gpus_are_spread_over_nodes() -> None:
    cluster = ["cluster=slurm", "cluster.gpus_per_node=4"]
    config = commandline.load(
        "submit",
        [
            "grid=scales",
            "grid.sources=[]",
            "grid.gpus_per_size={tiny:2,large:8}",
            *cluster,
            'grid.per_size={large:["meta.tasks_per_step=8"]}',
        ],
    )
    shapes = {job.id: (job.nodes, job.gpus_per_node) for job in planning.plan(config).jobs}
    assert shapes["pretrain/tiny-maml-s0"] == (1, 2)
    assert shapes["pretrain/small-maml-s0"] == (1, 4)
    assert shapes["pretrain/large-maml-s0"] == (2, 4)
    assert shapes["report"] == (1, 0)


def test_a_checkpoint_of_the_grid_is_named_in_run_and_command() -> None:
    plan = planned(
        "grid=demo", "grid.checkpoints=[0,100]", "grid.sources=[en_demo]", "grid.objectives=[maml]"
    )
    job: Job = next(job for job in plan.jobs if job.id == "finetune/nano-maml-s0-en_demo-head-step000100")
    assert "checkpoint=runs/demo/pretrain/nano-maml-s0/checkpoints/step_000100" in job.argv
