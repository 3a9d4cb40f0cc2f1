"""A small corpus of two dozen documents in every supported format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from transformers import AutoTokenizer

from metapt.config import CorpusConfig
from metapt.data.corpus import Corpus
from metapt.data.shards import TokenStream

DOCUMENTS = [
    f"Document {number}: the river near Malmö was café-brown.\nIts second line, {number * 7}."
    for number in range(24)
]


def config(tmp_path: Path, source: Path, **changes: Any) -> CorpusConfig:
    defaults: dict[str, Any] = {
        "name": "text",
        "text_dir": str(source),
        "vocab_size": 300,
        "eval_fraction": 0.3,
        "cache_dir": str(tmp_path / "cache"),
    }
    return CorpusConfig(**{**defaults, **changes})


def jsonl(texts: list[str] = DOCUMENTS) -> bytes:
    return b"".join(
        json.dumps({"text": text, "title": "x"}, ensure_ascii=False).encode() + b"\n" for text in texts
    )


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def all_tokens(stream: TokenStream) -> list[int]:
    return stream.tokens(0, len(stream)).tolist()


def documents_of(stream: TokenStream, corpus: Corpus) -> list[str]:
    """Decode the documents of a split."""
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    texts: list[list[int]] = [[]]
    for token in all_tokens(stream):
        if token == corpus.tokenizer.eos_id:
            texts.append([])
        else:
            texts[-1].append(token)
    assert texts.pop() == [], "the split ends with end-of-text"
    return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in texts]


def write_txt_folder(folder: Path) -> Path:
    for number, text in enumerate(DOCUMENTS):
        line_ending = "\r\n" if number % 2 else "\n"
        bom = b"\xef\xbb\xbf" if number == 3 else b""
        name = f"{'deep/er' if number > 20 else 'deep'}/{number:03d}.txt"
        write(folder / name, bom + (text + "\n").replace("\n", line_ending).encode())
    return folder


def write_parquet(folder: Path) -> Path:
    folder.mkdir()
    table = pa.table({"other": list(range(len(DOCUMENTS))), "text": DOCUMENTS})
    pq.write_table(table, folder / "a.parquet", row_group_size=7)
    return folder


def write_two_zst_frames(folder: Path) -> Path:
    compress = zstandard.ZstdCompressor().compress
    return write(folder / "a.jsonl.zst", compress(jsonl(DOCUMENTS[:9])) + compress(jsonl(DOCUMENTS[9:])))


def write_two_files(folder: Path) -> Path:
    write(folder / "b" / "a.jsonl", jsonl(DOCUMENTS[11:]))
    write(folder / "a.jsonl", jsonl(DOCUMENTS[:11]))
    return folder


FORMATS = {
    "jsonl": lambda folder: write(folder / "a.jsonl", b"\xef\xbb\xbf" + jsonl() + b"\n \n"),
    "jsonl without a final line ending": lambda folder: write(folder / "a.jsonl", jsonl()[:-1]),
    "jsonl.gz": lambda folder: write(folder / "a.jsonl.gz", gzip.compress(jsonl())),
    "jsonl.gz, two members": lambda folder: write(
        folder / "a.jsonl.gz", gzip.compress(jsonl(DOCUMENTS[:5])) + gzip.compress(jsonl(DOCUMENTS[5:]))
    ),
    "jsonl.zst, two frames": write_two_zst_frames,
    "parquet": write_parquet,
    "txt, one document per file": write_txt_folder,
    "two files": write_two_files,
    "txt blocks": lambda folder: write(
        folder / "a.txt.zst", zstandard.compress(b"\n" + b"\n\r\n \n".join(map(str.encode, DOCUMENTS)))
    ),
}

GOOD = jsonl()
