"""The texts (documents) that the sentences of a labelled set belong to.

Sentences of one text are alike: they share names and style. So the unit of resampling is the document where a set marks
documents, and the sentence elsewhere. Column files mark documents in two ways: CoNLL-U has a comment `# newdoc` or
`# newdoc id = ID` before the first sentence of a document (universaldependencies.org/format.html), CoNLL-2003 a line
that begins with -DOCSTART-.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metapt.errors import UserError

DOCUMENT_START = "-DOCSTART-"
NEWDOC = re.compile(r"#\s*newdoc(?:\s+id\s*=\s*(?P<id>.*))?$")
BATCH = re.compile(r"batch[-_ ]?\d+", re.IGNORECASE)  # a portion of the annotators' work, not a text
SPELLED = {"newdoc": "`# newdoc`", "docstart": DOCUMENT_START}


@dataclass
class DocumentMarks:
    """The last mark of each kind while a file is read, by its id or else its number; number 0 is before the first mark."""

    newdoc: str = "newdoc-0"
    docstart: str = "docstart-0"
    newdocs: int = 0
    docstarts: int = 0

    def read_comment(self, comment: str) -> None:
        """Take note of a comment line, which may be a `# newdoc`."""
        if match := NEWDOC.match(comment.strip()):
            self.newdocs += 1
            self.newdoc = (match["id"] or "").strip() or f"newdoc-{self.newdocs}"

    def read_docstart(self) -> None:
        """Take note of a -DOCSTART- line."""
        self.docstarts += 1
        self.docstart = f"docstart-{self.docstarts}"

    @property
    def current(self) -> dict[str, str]:
        """The document of the next sentence by each kind of mark."""
        return {"newdoc": self.newdoc, "docstart": self.docstart}


def document_ids(marks: Sequence[Mapping[str, str]], mode: str, where: str) -> list[str | None]:
    """Decide the document of each sentence of a file.

    Args:
        marks: for each sentence, its document by each kind of mark (`DocumentMarks.current`).
        mode: the key `data.documents`: `newdoc` or `docstart` use these marks, `sentence` none. `auto` uses the first of
            the two that divides the file; ids such as `batch-12` and a single mark at the head of a file do not.
        where: the file, for error messages.
    Returns: an id for each sentence; None for all of them if documents are not known.
    Raises:
        UserError: `mode` names a mark that does not divide the file into two documents or more.
    """
    for kind in SPELLED:
        distinct = {mark[kind] for mark in marks}
        is_used = mode == kind or (mode == "auto" and not all(map(BATCH.fullmatch, distinct)))
        if is_used and len(distinct) > 1:
            return [mark[kind] for mark in marks]
    if mode in SPELLED:
        raise UserError(
            f"{where}: documents={mode}, but {SPELLED[mode]} does not divide its sentences into two documents or more; "
            "documents=auto uses the marks that a file has, documents=sentence none"
        )
    return [None] * len(marks)


def refuse_marks(mode: str, where: str) -> None:
    """Refuse `data.documents=newdoc` and `docstart` for sentences that are not read from a column file.

    Raises:
        UserError: `mode` names a mark.
    """
    if mode in SPELLED:
        raise UserError(
            f"{where}: documents={mode}, but only column files have such marks; use documents=auto, or files instead"
        )


def resampling_unit(documents: Sequence[str | None]) -> str:
    """Name the resampling unit of a set: "document", or "sentence" if documents are not known.

    Args:
        documents: as in `resampling_units`.
    """
    return "document" if _are_known(documents) else "sentence"


def resampling_units(documents: Sequence[str | None]) -> np.ndarray:
    """Number the resampling units of a set: its documents, or its sentences if documents are not known.

    Args:
        documents: the document of each sentence; None for all of them if documents are not known. A single document
            is as good as none: it does not show how documents vary.
    Returns: for each sentence the index of its unit, int64 [sentences]. Units are numbered from 0 in order of appearance;
        sentences of one document have one unit wherever they are.
    """
    if not _are_known(documents):
        return np.arange(len(documents))
    numbers: dict[str | None, int] = {}
    return np.array([numbers.setdefault(document, len(numbers)) for document in documents], dtype=np.int64)


def _are_known(documents: Sequence[str | None]) -> bool:
    return None not in documents and len(set(documents)) > 1
