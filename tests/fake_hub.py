"""A Hugging Face hub on this machine: the requests that its client and `datasets` send, answered from memory."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import datasets
import huggingface_hub.constants
import pytest
from corpus_world import DOCUMENTS

from metapt.data.corpus import Corpus
from metapt.data.iob2 import TAGS

NOWHERE = "http://127.0.0.1:9"  # nothing listens there
API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/(revision|tree|paths-info)/([^/?]+)/?([^?]*)")
RESOLVE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/([^?]+)")


class FakeHub:
    """Repositories by kind and name (`datasets/some/set`). The branch of each is at the commit that was pushed last."""

    def __init__(self, url: str):
        self.url = url
        self.requests: list[str] = []
        self.commits: dict[str, list[dict[str, bytes]]] = {}

    def push(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files. Returns its hash."""
        self.commits.setdefault(repository, []).append(files)
        return self.hash(repository, len(self.commits[repository]) - 1)

    @staticmethod
    def hash(repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Hash and files of a commit; of the last one if the revision is a branch."""
        commits = self.commits.get(repository, [])
        hashes = [self.hash(repository, number) for number in range(len(commits))]
        if not commits:
            return None
        number = hashes.index(revision) if revision in hashes else len(commits) - 1
        return hashes[number], commits[number]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _answer(self, body: str = "") -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if match := API.match(self.path):
            self._answer_api(*match.groups(), body)
        elif match := RESOLVE.match(self.path):
            kind, name, revision, path = match.groups()
            self._answer_file(f"{(kind or 'models/').rstrip('/')}/{name}", revision, path)
        else:
            self._send(404, b"{}")

    def _answer_api(self, kind: str, name: str, what: str, revision: str, path: str, body: str) -> None:
        found = self.hub.find(f"{kind}/{name}", revision.replace("%2F", "/"))
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        commit, files = found
        answer: Any = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        if what != "revision":
            answer = list(self._entries(files, path))
        if what == "paths-info":
            wanted = body_paths(body)
            answer = [entry for entry in [*answer, *folders(files)] if entry["path"] in wanted]
        self._send(200, json.dumps(answer).encode())

    @staticmethod
    def _entries(files: dict[str, bytes], path: str) -> Iterator[dict[str, Any]]:
        for name, content in files.items():
            if name.startswith(path):
                digest = hashlib.sha1(content).hexdigest()
                yield {"type": "file", "path": name, "size": len(content), "oid": digest}

    def _answer_file(self, repository: str, revision: str, path: str) -> None:
        found = self.hub.find(repository, revision)
        if found is None or path not in found[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        commit, content = found[0], found[1][path]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            part = content[int(wanted[1]) : int(wanted[2] or len(content)) + 1]
            headers["Content-Range"] = f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}"
            self._send(206, part, headers)
        else:
            self._send(200, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def body_paths(body: str) -> list[str]:
    """The paths in a request for information about paths, which is JSON or a form."""
    if body.startswith("{"):
        return list(json.loads(body)["paths"])
    return parse_qs(body).get("paths", [])


def folders(files: dict[str, bytes]) -> list[dict[str, Any]]:
    names = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    return [{"type": "directory", "path": name, "oid": "0" * 40} for name in names]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub on a free port, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    Handler.hub = hub
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_hub(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients in this process and its children ask the hub at this address."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name, value in {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)


def write_repositories(corpus: Corpus, folder: Path) -> dict[str, dict[str, bytes]]:
    """A corpus, its tokenizer, labelled sets in Parquet and an encoder, by repository.

    Args:
        corpus: of the documents of corpus_world.
        folder: an empty folder.
    """
    features = datasets.Features(
        {
            "idx": datasets.Value("string"),
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=list(TAGS))),
        }
    )
    rows = [{"idx": f"{number}", "tokens": ["si", "Juan"], "ner_tags": [0, 1]} for number in range(4)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "0000.parquet")
    table = (folder / "0000.parquet").read_bytes()
    splits = {"en_ewt": ("train", "validation", "test"), "tl_trg": ("test",)}
    sets = {f"{name}/{split}/0000.parquet": table for name in splits for split in splits[name]}
    tokenizer = (corpus.tokenizer_dir / "tokenizer.json").read_bytes()
    lines = [json.dumps({"text": text}) for text in DOCUMENTS]
    return {
        "datasets/some/corpus": {"train.jsonl": "\n".join(lines).encode()},
        "models/some/tokenizer": {"tokenizer.json": tokenizer, "onnx/model.json": b"not needed"},
        "datasets/some/uner": sets,
        "models/some/encoder": {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights"},
    }
