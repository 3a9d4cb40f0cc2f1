"""The data section of the report: resampling units, licences, and sentences shared with the sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import write_finetuning
from hypothesis import given
from hypothesis import strategies as st

from analysis.build import build
from analysis.load.collect import collect
from metapt import baseline as command
from metapt.config import NerDataConfig
from metapt.data.iob2 import Sentence, write_iob2
from metapt.data.labelled_sets import open_collection
from metapt.data.shared_sentences import shared_with_sources, source_digests
from metapt.runs import Run


def data_tables(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the tables of the data section, by head of column."""
    tables = build(collect([root]), 10).tables
    return {
        table.name: [
            dict(zip([column.head for column in table.columns], row, strict=True)) for row in table.rows
        ]
        for table in tables
        if table.name in ("data", "licences", "shared_sentences")
    }


def with_result(folder: Path, **entries: Any) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_units_licences_and_shared_sentences(tmp_path: Path) -> None:
    origin = {"model": "nano", "objective": "maml", "seed": 0, "step": 60}
    folder = write_finetuning(tmp_path, origin, sets=["tl_trg", "ceb_gja"])
    other = write_finetuning(tmp_path, origin, source="ceb_news", sets=["tl_trg", "ceb_gja"])
    for run in (folder, other):
        file = run / "predictions" / "ceb_gja.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        documents = [{**line, "document": f"text {number // 7}"} for number, line in enumerate(lines)]
        file.write_text("".join(json.dumps(line) + "\n" for line in documents))
    none = {"sentences": 0, "gold_spans": 0}
    with_result(folder, shared_sentences={"tl_trg": none, "ceb_gja": none})
    with_result(
        other,
        custom_sets={"ceb_news": {"language": "Cebuano", "licence": "CC BY-NC 4.0"}},
        shared_sentences={"tl_trg": none, "ceb_gja": {"sentences": 6, "gold_spans": 4}},
    )
    tables = data_tables(tmp_path)
    units = {row["set"]: (row["unit"], row["units"]) for row in tables["data"]}
    assert units == {"tl_trg": ("sentence", 24), "ceb_gja": ("document", 5)}
    licences = {
        row["set"]: (row["use"], row["language"], row["licence"], row["non-commercial only"])
        for row in tables["licences"]
    }
    assert licences == {
        "ceb_gja": ("evaluation", "ceb", "cc-by-sa-4.0", False),
        "ceb_news": ("fine-tuning", "Cebuano", "CC BY-NC 4.0", True),
        "en_ewt": ("fine-tuning", "en", "cc-by-sa-4.0", False),
        "tl_trg": ("evaluation", "tl", "cc-by-sa-4.0", False),
    }
    [shared] = tables["shared_sentences"]
    assert list(shared.values())[:-1] == ["ceb_news", "ceb_gja", 30, 6, 0.2, 4]


WORDS = st.lists(st.sampled_from(["Ana", "ana", "si"]), min_size=1, max_size=2).map(tuple)


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5))
def test_shared_sentences_have_the_same_words_in_any_case(
    tmp_path_factory: pytest.TempPathFactory, source: list[tuple[str, ...]], target: list[tuple[str, ...]]
) -> None:
    root = tmp_path_factory.getbasetemp() / "shared"

    def sentences(texts: list[tuple[str, ...]]) -> list[Sentence]:
        return [Sentence(str(n), text, ("B-PER", *["O"] * (len(text) - 1))) for n, text in enumerate(texts)]

    write_iob2(root / "aa" / "train.iob2", sentences(source[:1]))
    write_iob2(root / "aa" / "dev.iob2", sentences(source))
    write_iob2(root / "bb" / "test.iob2", sentences(target))
    collection = open_collection(NerDataConfig(name="uner", uner_dir=str(root), test_fraction=0))
    texts = {" ".join(text).lower() for text in source}
    expected = sum(" ".join(text).lower() in texts for text in target)
    tuning = {"source_sha256": source_digests(collection, ["aa"])}
    assert shared_with_sources(collection, [tuning], ["bb"]) == {
        "bb": {"sentences": expected, "gold_spans": expected}
    }
    for unknown in ({"gone": "0"}, {"aa": "0"}):
        assert shared_with_sources(collection, [tuning, {"source_sha256": unknown}], ["bb"]) is None
    assert shared_with_sources(collection, [], ["bb"]) == {"bb": {"sentences": 0, "gold_spans": 0}}


def test_a_baseline_records_licences_and_shared_sentences(tmp_path: Path) -> None:
    sentence = Sentence("1", ("Ana", "sleeps"), ("B-PER", "O"))
    for split in ("train", "dev", "test"):
        write_iob2(tmp_path / "aa" / f"{split}.iob2", [sentence])
    spec = tmp_path / "news.yaml"
    spec.write_text(
        f"name: bb_news\nlicence: CC BY-NC 4.0\nfolder: {tmp_path / 'aa'}\nfiles: {{test: test.iob2}}\n"
        "columns: [index, word, tag, source, annotator]\n"
    )
    run = Run(tmp_path / "run")
    data = [f"data.uner_dir={tmp_path}", f"data.corpora=[{spec}]"]
    command.main(["name=majority", "source=aa", *data, f"run_dir={run.path}"])
    result = run.result()
    assert result["custom_sets"] == {"bb_news": {"language": "", "licence": "CC BY-NC 4.0"}}
    assert result["shared_sentences"] == {
        name: {"sentences": 1, "gold_spans": 1} for name in ("aa", "bb_news")
    }
