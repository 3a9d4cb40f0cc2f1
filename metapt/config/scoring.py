"""Keys of `metapt score`."""

from __future__ import annotations

from dataclasses import dataclass

from metapt.config.keys import key
from metapt.config.ner import DOCUMENT_MARKS

SYSTEMS_DIR = "runs/score"


@dataclass
class ScoreConfig:
    """Score the predictions of any program against gold labels, or compare the predictions of two programs."""

    name: str | None = key(
        None,
        "name of the system PREDICTED (of A, where two are compared), also in the report",
        absent="the file name without its ending; of RUN/predictions/SET.jsonl, RUN",
    )
    name_b: str | None = key(None, "name of the system B", absent="formed from the file name in the same way")
    set_name: str | None = key(
        None,
        "name of the labelled set",
        absent="SET, where GOLD is SET/test.iob2 or UNER_Language/SET-ud-test.iob2; otherwise its file name without ending",
        identity=False,
    )
    columns: list[str] = key(
        [],
        "columns of column files from left to right, for example [word,pos,tag]; `word` and `tag` are used; "
        "empty: recognized from the first sentences",
        identity=False,
    )
    predicted_columns: list[str] = key(
        [],
        "columns of the predictions, if they differ from those of GOLD; empty: as `columns`",
        identity=False,
    )
    types: dict[str, str] = key(
        {},
        "entity types to rename in all files, or to leave out with O, for example {PERSON: PER, MISC: O}",
        identity=False,
    )
    documents: str = key(
        "auto",
        "marks of documents in GOLD, the units of resampling; in JSON lines the entry `document` marks them",
        choices=DOCUMENT_MARKS,
        identity=False,
    )
    out: str | None = key(
        None,
        "folder in which each system gets a run folder of its name, for `metapt report`",
        absent=f"{SYSTEMS_DIR} for one system; nothing is written for two",
        identity=False,
    )
