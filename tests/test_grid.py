"""Plans: shipped grids, properties of random grids, configuration errors, values with any characters."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.config import ClusterConfig, GridConfig, SubmitConfig, commandline
from metapt.errors import UserError
from metapt.launch import grid as planning
from metapt.launch import slurm
from metapt.launch.code_snapshot import live_code
from metapt.launch.job_sources import JobSources
from metapt.launch.jobs import Job, Plan
from metapt.launch.submission import submit

SUBSETS = {
    "sizes": ["nano", "tiny", "small", "medium", "large"],
    "objectives": ["vanilla", "maml"],
    "seeds": [0, 1, 7],
    "sources": ["en_demo", "sk_demo", "all"],
    "tunings": ["head_only", "full"],
    "checkpoints": [0, 100, 300],
}

LIVE = JobSources(live_code())


def planned(*words: str) -> Plan:
    return planning.plan(commandline.load("submit", ["cluster=local", *words]))


def bare(name: str) -> str:
    """A job's name without its hash."""
    return re.sub(r"-[0-9a-f]{6}$", "", name)


def kinds(plan: Plan) -> dict[str, int]:
    return dict(Counter(job.kind for job in plan.jobs))


def subsets(name: str, min_size: int, max_size: int = 2) -> st.SearchStrategy[list]:  # type: ignore[type-arg]
    return st.lists(st.sampled_from(SUBSETS[name]), min_size=min_size, max_size=max_size, unique=True)


grids = st.builds(
    GridConfig,
    name=st.just("random"),
    sizes=subsets("sizes", 1),
    objectives=subsets("objectives", 1),
    seeds=subsets("seeds", 1),
    sources=subsets("sources", 0),
    tunings=subsets("tunings", 1),
    checkpoints=subsets("checkpoints", 0),
    variants=st.sampled_from(
        [{}, {"v1": []}, {"v1": ["train.lr=1e-3"], "small_bpe": ["data.vocab_size=1000"]}]
    ),
    pretrain=st.just(["data=demo"]),
    finetune=st.just(["data=demo"]),
)


def test_vanilla_runs_once_for_variants_that_differ_in_episodes_only() -> None:
    variants = (
        'grid.variants={a:[],b:["meta.rho=0.25"],c:["train.lr=1e-2","meta.rho=0.25"],d:["train.lr=1e-2"]}'
    )
    jobs = [job for job in planned("grid=demo", variants, "grid.sources=[]").jobs if job.kind == "pretrain"]
    variants_of = {
        name: [job.variant for job in jobs if job.objective == name] for name in ("vanilla", "maml")
    }
    assert all(f"objective={job.objective}" in job.argv for job in jobs)
    assert variants_of == {"vanilla": ["a", "c"], "maml": ["a", "b", "c", "d"]}


def test_extra_checkpoints_are_fine_tuned_beside_the_last() -> None:
    words = ["grid.sources=[en_demo]", "grid.tunings=[head_only]", 'grid.variants={a:[],b:["meta.rho=0.25"]}']
    jobs = planned("grid=demo", *words, "grid.extra_checkpoints={vanilla:[100],b:[200]}").jobs
    names = [job.id.partition("/")[2].rpartition("-")[0] for job in jobs if job.kind == "finetune"]
    assert names == [
        "nano-vanilla-s0-a-en_demo-head_only",
        "nano-vanilla-s0-a-en_demo-head_only-step000100",
        "nano-maml-s0-a-en_demo-head_only",
        "nano-maml-s0-b-en_demo-head_only",
        "nano-maml-s0-b-en_demo-head_only-step000200",
    ]


def test_the_fields_of_a_job_are_those_of_its_command() -> None:
    words = ["grid.variants={a:[],b:['meta.rho=0.25']}", "grid.models=['hub:some/encoder']", "grid.seeds=[3]"]
    plan = planned("grid=demo", *words, "grid.checkpoints=[100]")
    for job in plan.jobs:
        if not job.is_run:
            continue
        config = commandline.load(job.kind, job.argv)
        if job.kind == "pretrain":
            fields = (config.model.name, config.meta.objective, config.variant, config.train.seed)
            assert fields == (job.size, job.objective, job.variant, job.seed)
        elif job.kind == "finetune":
            assert (config.source, config.tuning, config.train.seed) == (job.source, job.tuning, job.seed)
            checkpoint = job.model or f"runs/demo/{job.needs[0]}/checkpoints/step_{job.checkpoint_step:06d}"
            assert config.checkpoint == checkpoint
        else:
            assert (config.name, config.source or "") == (job.baseline, job.source)
        assert config.run_dir == f"runs/demo/{job.id}"
    assert plan.jobs[-1].command[1:] == ["-m", "metapt", "report", "runs/demo"]


@settings(max_examples=15, deadline=None)
@given(grids)
def test_every_run_is_planned_once_and_after_the_jobs_that_it_needs(grid: GridConfig) -> None:
    plan = planning.plan(SubmitConfig(grid=grid, cluster=ClusterConfig(name="local"), root="/r"))
    seen: set[str] = set()
    for job in plan.jobs:
        assert job.id not in seen
        assert set(job.needs) <= seen  # hence no cycle
        seen.add(job.id)
    assert len({job.run_dir for job in plan.jobs}) == len(plan.jobs)
    blocks = [job.seed for job in plan.jobs if job.kind in ("pretrain", "finetune")]
    assert blocks == sorted(blocks, key=grid.seeds.index), "all arms of a seed come before the next seed"
    pretrains = len(grid.sizes) * len(grid.objectives) * len(grid.seeds) * max(1, len(grid.variants))
    finetunes = pretrains * len(grid.sources) * len(grid.tunings) * max(1, len(grid.checkpoints))
    assert kinds(plan).get("pretrain") == pretrains
    assert kinds(plan).get("finetune", 0) == finetunes
    assert set(plan.jobs[-1].needs) == seen - {"report"}
    assert plan.jobs[-1].id == "report"
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_runs_of_a_grid_share_a_cache_unless_it_is_overridden() -> None:
    for words, folder in (
        ([], "runs/demo/features"),
        (['grid.finetune=["data=demo","ner.cache_dir=null"]'], None),
    ):
        jobs = [job for job in planned("grid=demo", *words).jobs if job.kind == "finetune"]
        assert {commandline.load("finetune", job.argv).ner.cache_dir for job in jobs} == {folder}


def test_only_tuning_of_the_decoder_uses_several_gpus() -> None:
    words = ["cluster.gpus_per_node=4", "cluster.finetune_gpus=2", "grid.tunings=[head_only,full,lora]"]
    jobs = [job for job in planned("grid=demo", *words).jobs if job.kind == "finetune"]
    gpus = {(commandline.load("finetune", job.argv).tuning, job.gpus_per_node) for job in jobs}
    assert gpus == {("head_only", 1), ("full", 2), ("lora", 2)}


def test_ids_do_not_depend_on_the_rest_of_the_grid() -> None:
    small = planned("grid=demo")
    large = planned(
        "grid=demo", "grid.sizes=[tiny,nano]", "grid.seeds=[1,0]", "grid.sources=[sk_demo,en_demo,all]"
    )
    assert {job.id for job in small.jobs} <= {job.id for job in large.jobs}
    runs = {(job.id, job.argv) for job in small.jobs if job.is_run}
    assert runs <= {(job.id, job.argv) for job in large.jobs}


def test_each_corpus_is_prepared_once() -> None:
    plan = planned(
        "grid=demo", 'grid.variants={a:[],b:["train.lr=1e-2"],c:["data.vocab_size=1000"]}', "grid.sources=[]"
    )
    assert kinds(plan) == {"prepare": 2, "pretrain": 6, "report": 1}
    corpus_of = {bare(job.id): job.needs for job in plan.jobs if job.kind == "pretrain"}
    assert corpus_of["pretrain/nano-maml-s0-a"] == corpus_of["pretrain/nano-vanilla-s0-b"]
    assert corpus_of["pretrain/nano-maml-s0-a"] != corpus_of["pretrain/nano-maml-s0-c"]
    prepare = plan.jobs[0]
    assert commandline.load("pretrain", prepare.argv).data.cache_dir == "runs/demo/corpus"


def test_baselines_and_other_models_are_jobs_of_the_grid() -> None:
    plan = planned(
        "grid=demo",
        "grid.baselines=[particle,majority]",
        "grid.models=['hub:some/encoder',/models/b]",
        "grid.seeds=[0,1]",
        "grid.tunings=[full]",
        'grid.finetune=["data=demo","data.eval_sets=[tl_demo]","ner.max_len=64"]',
    )
    jobs = {job.id: job for job in plan.jobs}
    configs = {name.rpartition("-")[0]: config for name, config in plan.configs.items()}  # without the hash
    found = sorted(name for name in configs if name.startswith("baseline/"))
    assert found == ["baseline/majority-en_demo", "baseline/majority-sk_demo", "baseline/particle"]
    config = configs["baseline/majority-sk_demo"]
    assert (config.source, config.data.eval_sets) == ("sk_demo", ["tl_demo"])
    models = [
        job for name, job in jobs.items() if name.startswith(("finetune/some_encoder-", "finetune/models_b-"))
    ]
    assert len(models) == 2 * 2 * 2
    assert all(job.needs == () for job in models)
    tuned = configs["finetune/some_encoder-sk_demo-full-s1"]
    assert (tuned.checkpoint, tuned.source, tuned.tuning) == ("hub:some/encoder", "sk_demo", "full")
    assert (tuned.train.seed, tuned.ner.max_len, tuned.ner.lr) == (1, 64, 1e-3)
    assert set(jobs) - {"report"} == set(jobs["report"].needs)
    assert not any(job.kind == "baseline" for job in planned("grid=demo", "grid.sources=[]").jobs)
    with pytest.raises(UserError, match="'best' must be one of particle"):
        planned("grid=demo", "grid.baselines=[best]")
    with pytest.raises(UserError, match=r"grid\.baselines: duplicate value crf"):
        planned("grid=demo", "grid.baselines=[crf,crf]")


@pytest.mark.parametrize(
    ("name", "cluster", "counts"),
    [
        ("demo", "local", {"prepare": 1, "pretrain": 2, "finetune": 8, "baseline": 4, "report": 1}),
        ("demo", "slurm", {"prepare": 1, "pretrain": 2, "finetune": 8, "baseline": 4, "report": 1}),
        ("first", "slurm", {"prepare": 2, "pretrain": 4, "finetune": 16, "baseline": 8, "report": 1}),
        ("scales", "slurm", {"prepare": 2, "pretrain": 8, "finetune": 160, "baseline": 24, "report": 1}),
        ("paper", "slurm", {"prepare": 2, "pretrain": 8, "finetune": 160, "baseline": 24, "report": 1}),
        ("seeds", "slurm", {"prepare": 2, "pretrain": 20, "finetune": 80, "baseline": 4, "report": 1}),
        ("ablation", "slurm", {"prepare": 1, "pretrain": 12, "finetune": 24, "baseline": 3, "report": 1}),
        ("episodes", "slurm", {"prepare": 1, "pretrain": 25, "finetune": 75, "report": 1}),
        ("study", "slurm", {"prepare": 1, "pretrain": 12, "finetune": 108, "baseline": 10, "report": 1}),
        ("study_ablations", "slurm", {"prepare": 1, "pretrain": 6, "finetune": 36, "report": 1}),
        ("checkpoints", "slurm", {"prepare": 1, "pretrain": 2, "finetune": 122, "baseline": 3, "report": 1}),
    ],
)
def test_dry_run_of_every_shipped_grid(
    name: str,
    cluster: str,
    counts: dict[str, int],
    tmp_path: Path,
    uner_dir: Path,
    idner_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAPT_TEXT_DIR", "/data/the text, all=of it")
    monkeypatch.setenv("METAPT_TOKENIZER", "/data/tokenizer.json")
    monkeypatch.setenv("METAPT_UNER_DIR", str(uner_dir))
    monkeypatch.setenv("METAPT_EXTRA_DIR", str(idner_dir.parent))
    submit(commandline.load("submit", [f"grid={name}", f"cluster={cluster}", "dry_run=true"]))
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    assert f"grid {name}: {sum(counts.values())} jobs ({total})" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_all_errors_of_a_grid_are_reported_at_once() -> None:
    with pytest.raises(UserError) as raised:
        planned(
            "grid=demo",
            "grid.sizes=[nano,tinny]",
            'grid.pretrain=["data=demo","train.lrr=1"]',
            "grid.tunings=[head_only,tail]",
        )
    message = str(raised.value)
    assert (
        "model=tinny: must be one of laptop, laptop_192, laptop_48, large, medium, nano, pretrained, small, tiny, or a file of yours that ends in .yaml "
        "(in pretrain/tinny-vanilla-s0 and 1 more)" in message
    )
    assert "train.lrr: no such key" in message
    assert "(in pretrain/nano-vanilla-s0 and 3 more)" in message
    assert "tuning=tail" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid.seeds=[0,1,0]"], "grid.seeds: duplicate value 0"),
        (["grid.sizes=[]"], "grid.sizes is empty"),
        (['grid.pretrain=["train.seed=3"]'], "grid.pretrain: train.seed is set by the grid"),
        (["grid.per_size={nanno:[]}"], "grid.per_size.nanno: must be one of"),
        (["grid.variants={a-b:[]}"], "'a-b' becomes part of a folder's name"),
        (["grid.extra_checkpoints={maml:[150]}"], "pretrain/nano-maml-s0 writes no checkpoint at step 150"),
        (["grid.extra_checkpoints={reptile:[100]}"], "reptile: neither an objective nor a variant"),
        (["grid.checkpoints=[0,150]"], "pretrain/nano-vanilla-s0 writes no checkpoint at step 150"),
        (["cluster.nodes=2"], "cluster.nodes: has no effect with cluster=local, only with cluster=slurm"),
        (
            ["cluster.python=/x", "cluster.setup=[date]", "cluster.exports={A: b}"],
            "cluster.exports, cluster.setup, cluster.python: have no effect with cluster=local, only with cluster=slurm",
        ),
        (
            ["cluster=inline", "cluster.timeout_min=5"],
            "no effect with cluster=inline, only with cluster=local or slurm",
        ),
        (
            ["cluster=slurm", "cluster.max_parallel=3"],
            "cluster.max_parallel: has no effect with cluster=slurm",
        ),
        (["cluster=slurm", "cluster.gpu_request=constraint"], "cluster.gpu_type is required"),
        (["cluster=slurm", "cluster.gpu_request=none", "cluster.gpu_type=a100"], "requests no GPUs"),
        (["cluster=slurm", "root=/a%b"], "root=/a%b: must not contain %"),
        (["dry_run=test"], "dry_run=test: calls sbatch, which needs cluster=slurm"),
        (["dry_run=perhaps"], "dry_run=perhaps: must be one of false, true, test"),
        (["grid.hours_per_size={nano:0}"], "grid.hours_per_size.nano=0.0: must be above 0"),
        (["grid.mem_gb_per_size={nanno:8}"], "grid.mem_gb_per_size.nanno: must be one of"),
    ],
)
def test_errors_of_a_grid(words: list[str], message: str) -> None:
    words = words if words[0].startswith("cluster=") else ["cluster=local", *words]
    with pytest.raises(UserError, match="configuration error") as raised:
        planning.plan(commandline.load("submit", ["grid=demo", *words]))
    assert message in str(raised.value)


def test_mappings_on_the_command_line() -> None:
    words = ['grid.variants={olmo:["data.tokenizer=/a b/t.json"],bpe:["data.tokenizer=train"]}']
    words.append("grid.gpus_per_size.tiny=4")
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


def test_true_is_text_where_a_key_takes_text() -> None:
    assert commandline.load("pretrain", ["variant=true"]).variant == "true"
    assert commandline.load("submit", ["dry_run=true"]).dry_run == "true"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12))
def test_any_text_survives_the_command_line(text: str) -> None:
    if "${" in text:  # an interpolation wherever it appears
        return
    assert (
        commandline.load(
            "finetune", ["data=demo", "checkpoint=c", "source=s", commandline.quote_override("run_dir", text)]
        ).run_dir
        == text
    )


@pytest.mark.parametrize(
    "text", ["/a b/c=d,e", "it's", "back\\", "a\\'b", "true", "null", "1e3", "007", "[x]", " ", "a:b"]
)
def test_special_text_survives_the_command_line(text: str) -> None:
    config = commandline.load(
        "finetune", ["data=demo", "checkpoint=c", "source=s", commandline.quote_override("run_dir", text)]
    )
    assert config.run_dir == text


def test_gpus_are_spread_over_nodes() -> None:
    cluster = ["cluster=slurm", "cluster.gpus_per_node=4"]
    config = commandline.load(
        "submit",
        [
            "grid=scales",
            "grid.sources=[]",
            "grid.gpus_per_size={tiny:2,large:8}",
            *cluster,
        ],
    )
    shapes = {bare(job.id): (job.nodes, job.gpus_per_node) for job in planning.plan(config).jobs}
    assert shapes["pretrain/tiny-maml_paper-s0"] == (1, 2)
    assert shapes["pretrain/small-maml_paper-s0"] == (1, 4)
    assert shapes["pretrain/large-maml_paper-s0"] == (2, 4)
    assert shapes["report"] == (1, 0)


def test_the_paper_has_160_fine_tuning_runs_and_resources_by_size() -> None:
    jobs = planning.plan(commandline.load("submit", ["grid=paper", "cluster=slurm"])).jobs
    tuned = Counter(bare(need) for job in jobs if job.kind == "finetune" for need in job.needs)
    sizes = ("tiny", "small", "medium", "large")
    assert tuned == {f"pretrain/{size}-{kind}-s0": 20 for size in sizes for kind in ("vanilla", "maml_paper")}
    resources = {
        (job.nodes, job.gpus_per_node, job.hours)
        for job in jobs
        if "large" in job.id and job.kind == "pretrain"
    }
    assert resources == {(1, 4, 24)}
    arrays = Counter((array[0].kind, len(array)) for array in slurm.group_into_arrays(jobs, 1000, LIVE))
    assert arrays == {
        ("prepare", 2): 1,  # tiny needs fewer tokens
        ("pretrain", 2): 4,
        ("finetune", 20): 8,
        ("baseline", 24): 1,
        ("report", 1): 1,
    }
    assert [len(array) for array in slurm.group_into_arrays([jobs[-2]] * 2001, 1000, LIVE)] == [1000, 1000, 1]


def test_a_checkpoint_is_part_of_name_and_command() -> None:
    plan = planned(
        "grid=demo", "grid.checkpoints=[0,100]", "grid.sources=[en_demo]", "grid.objectives=[maml]"
    )
    job: Job = next(
        job for job in plan.jobs if bare(job.id) == "finetune/nano-maml-s0-en_demo-head_only-step000100"
    )
    assert f"checkpoint=runs/demo/{job.needs[0]}/checkpoints/step_000100" in job.argv
