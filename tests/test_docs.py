"""README and docs stay true: commands parse, outputs are current, links resolve, named files and keys exist."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest

from analysis import report
from metapt import __main__ as entry
from metapt import sbatch
from metapt.config import COMMANDS, commandline
from metapt.config.help_text import TEXT_ARGUMENTS
from metapt.launch.grid import plan

REPO = Path(__file__).parents[1]
README = REPO / "README.md"
DOCUMENTS = sorted([README, REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", *(REPO / "docs").rglob("*.md")])
WITH_COMMANDS = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
SHELL = ("sh", "console", "bash", "indented")
FLAGS = {"--watch": "watch=true", "--json": "json=true"}  # of metapt status and metapt describe
ENVIRONMENT = {"METAPT_TEXT_DIR": "/data/text", "METAPT_UNER_DIR": "/data/uner", "METAPT_TOKENIZER": "/data/tokenizer.json"}  # fmt: skip
PLACEHOLDER = re.compile(
    r"\.\.\.|(?:\w+\.)?(\w+)=(?!\1)(?i:\1)"
)  # words that stand for others: ... and meta.scope=SCOPE
SKIPPED_PROGRAMS = {"cp", "git", "pip", "export", ".", "source", "cd", "cat", "tail", "python3.11"}
FILE_NAME = re.compile(r"(?<![\w./-])(?:metapt|analysis|docs|tests|slurm|benchmarks|ds_configs)/[\w./-]*\w")
FORBIDDEN = re.compile(r"\bMETHOD\b|the aims\b|\b(?:LANGUAGE|HOUSE|EPISODES|METHOD)\.md|(?<!\.\./)\bshared/")


@dataclass(frozen=True)
class Block:
    """A code block of a document; `language` is "indented" for one that is indented by four spaces."""

    document: Path
    line: int
    language: str
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """Yield the fenced and the indented code blocks of a document, in order."""
    language, start, content = "", 0, list[str]()
    lines = document.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate([*lines, ""], 1):
        fence = re.match(r" *```(\w*)", line)
        if language and language != "indented":
            if fence:
                yield Block(document, start, language, "\n".join(content))
                language = ""
            else:
                content.append(line)
        elif fence:
            language, start, content = fence[1] or "none", number, []
        elif line.startswith("    "):
            if not language:
                if (
                    number > 1 and lines[number - 2].strip()
                ):  # the continuation of a paragraph or of a list item
                    continue
                language, start, content = "indented", number, []
            content.append(line[4:])
        elif language:
            yield Block(document, start, language, "\n".join(content))
            language = ""


def command_lines(document: Path) -> Iterator[list[str]]:
    """Yield the words of every shell command in the blocks, and of every `metapt ... key=value` in the text."""
    for block in blocks(document):
        if block.language in SHELL:
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                if line.strip():
                    yield from _split(line.removeprefix("$ "))
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for span in re.findall(r"`((?:metapt|python -m metapt\.)[^`\n]* [^`\n]*)`", prose):
        if not re.search(r"\[|\||COMMAND", span):
            yield from _split(span)


def _split(line: str) -> Iterator[list[str]]:
    """Yield each command of a line joined by && or a pipe, without the assignments in front of it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in [*lexer, "&&"]:
        if word in {"|", "&&", ";", "||"}:
            while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(word)


OWN_FILES = re.compile(r"^```yaml\n# ([\w.]+\.yaml): .*\n((?:.*\n)*?)```$", re.MULTILINE)  # in a document


@pytest.fixture(autouse=True)
def _data_folders(monkeypatch: pytest.MonkeyPatch, uner_dir: Path, idner_dir: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("METAPT_UNER_DIR", str(uner_dir))
    monkeypatch.setenv("METAPT_EXTRA_DIR", str(idner_dir.parent))


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: str(path.relative_to(REPO)))
def test_commands_are_valid(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in OWN_FILES.findall(document.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(text)
    shutil.copy(REPO / "slurm/site.yaml.example", tmp_path / "site.yaml")
    monkeypatch.chdir(tmp_path)
    for words in command_lines(document):
        _check_command(words, monkeypatch)


def _check_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *rest = words
    if program in {"python", ".venv/bin/python", "torchrun"} and "-m" in rest:
        name = rest[rest.index("-m") + 1]
        assert name.partition(".")[0] in {"metapt", "pytest", "venv"}, words
        arguments = rest[rest.index("-m") + 2 :]
        if name == "metapt":
            _check_metapt(arguments, monkeypatch)
        elif name.startswith("metapt."):
            _check_metapt([name.removeprefix("metapt."), *arguments], monkeypatch)
    elif program == "metapt":
        _check_metapt(rest, monkeypatch)
    elif program == "sbatch":
        _check_sbatch(rest, monkeypatch)
    elif program == "make":
        assert set(rest) <= make_targets(), words
    elif program in {"python", ".venv/bin/python"} and rest[0].endswith(".py"):
        assert (REPO / rest[0]).is_file(), words
        if rest[0] == "analysis/report.py":
            _check_report(rest[1:], monkeypatch)
    elif program == "pip":
        assert not any(word.startswith("metapt") for word in rest), "metapt on a registry is another package"
        named = [extra for word in rest for extra in re.findall(r"\.\[([\w,]+)\]", word)]
        assert {name for names in named for name in names.split(",")} <= extras()
    elif "/" in program and program.endswith(".sh"):
        assert (REPO / program).is_file(), words
    else:
        assert program in SKIPPED_PROGRAMS, (
            f"unknown command {words} in a code block: teach this test to check it"
        )


def _check_sbatch(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the site and the run of `metapt sbatch ...` or `sbatch ...`."""
    request = sbatch.read_request(words)
    if request.settings:
        commandline.load("submit", ["grid=demo", *request.settings])
    module = re.search(r"^MODULE=metapt\.(\w+)$", (REPO / request.script).read_text(), re.MULTILINE)
    assert module, request
    _check_metapt([module[1].removesuffix("_command"), *request.words], monkeypatch)


def _check_metapt(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the words of `metapt COMMAND ...` as the command itself would."""
    if words[0] in {"--help", "--version", "COMMAND"}:
        return None
    command, *arguments = (word for word in words if not PLACEHOLDER.fullmatch(word))
    assert command in entry.COMMANDS, words
    if command == "report":
        return _check_report(arguments, monkeypatch)
    if command == "sbatch" and arguments:
        return _check_sbatch(arguments, monkeypatch)
    if command == "prepare" and any(word.startswith("grid=") for word in arguments):
        command = "submit"  # whose keys it takes then
    if command == "describe" and arguments[:1] == ["classes"]:
        command, arguments = "prepare", arguments[1:]
    if command in TEXT_ARGUMENTS:
        arguments, _ = commandline.split_settings_and_texts(arguments)
    if set(arguments) & {"--help", "--print-config"} or not arguments:
        return None
    config = commandline.load(command, [FLAGS.get(word, word) for word in arguments])
    if command == "submit":
        plan(config)
    return None


def _check_report(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the options of `metapt report` with its own parser, and stop there."""

    class Parsed(Exception):
        pass

    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *values: object) -> None:
        real(self, *values)  # type: ignore[call-overload]
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(Parsed):
            report.main(list(arguments))


def make_targets() -> set[str]:
    text = (REPO / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w.$()/-]+):", text, re.MULTILINE))


def extras() -> set[str]:
    with (REPO / "pyproject.toml").open("rb") as file:
        return set(tomllib.load(file)["project"]["optional-dependencies"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_python_blocks_compile(document: Path) -> None:
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, f"{document}:{block.line}", "exec")


def output_after(pattern: str, document: Path) -> str:
    """Return the output block that follows the command block with a line that begins with `pattern`."""
    found = list(blocks(document))
    place = next(
        number
        for number, block in enumerate(found)
        if block.language in SHELL and any(line.startswith(pattern) for line in block.text.splitlines())
    )
    return next(block.text for block in found[place + 1 :] if block.language == "text")


def printed(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    entry.main(list(words))
    return capsys.readouterr().out


def trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.mark.parametrize(
    ("command", "document"), [("metapt --help", README), ("metapt estimate", REPO / "docs" / "gpu.md")]
)
def test_printed_output_is_current(command: str, document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = "\n".join(block.text for block in blocks(document) if block.language in SHELL)
    line = next(line for line in shell.splitlines() if line.startswith(command))
    assert trimmed(printed(shlex.split(line)[1:], capsys)) == trimmed(output_after(command, document))


def test_python_block_of_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_tag import random_tagger

    random_tagger(tmp_path, "crf")
    (text,) = (block.text for block in blocks(README) if block.language == "python")
    capsys.readouterr()
    exec(
        compile(
            re.sub(r"load_tagger\(\"[^\"]*\"\)", f"load_tagger({str(tmp_path / 'tagger')!r})", text),
            "README",
            "exec",
        ),
        {},
    )
    assert "Entity(" in capsys.readouterr().out


def slug(title: str) -> str:
    """Make the anchor of a heading, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def links(document: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_relative_links_resolve(document: Path) -> None:
    for link in links(document):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document}: {link}"
        if anchor and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(title) for title in titles}, f"{document}: {link}"


def test_every_page_of_docs_is_linked() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve()
        for document in DOCUMENTS
        for link in links(document)
    }
    pages = {path.resolve() for path in DOCUMENTS if "docs" in path.parts}
    assert pages <= linked


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.check_output(["git", "ls-files", "-z", *patterns], cwd=REPO, text=True).split("\0")
    return [REPO / name for name in listed if name and (REPO / name).is_file()]


@pytest.mark.skipif(not (REPO / ".git").exists(), reason="not a clone")
def test_named_files_exist() -> None:
    """Paths such as docs/slurm.md in backticks in documents, and in comments, docstrings and messages of the code."""
    missing = []
    for path in [
        *DOCUMENTS,
        *tracked("*.py", "*.sh", "*.yaml", "Makefile", "pyproject.toml", "constraints.txt"),
    ]:
        if path.name == "test_docs.py" or "log.md" in path.name:
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"`([^`\n]+)`", text))
        for name in FILE_NAME.findall(text):
            if re.search(r"(?:^|/)[A-Z]+[/.]", name):  # a placeholder such as docs/NAME.md
                continue
            is_file_name = re.search(r"\.(py|md|sh|yaml|json|csv|svg|html|j2|env)$", name)
            if is_file_name and not (REPO / name).exists() and not (path.parent / name).exists():
                missing.append(f"{path.relative_to(REPO)}: {name}")
    assert missing == []


@pytest.mark.skipif(not (REPO / ".git").exists(), reason="not a clone")
def test_no_document_outside_the_repository_is_cited() -> None:
    found = []
    for path in tracked(
        "*.py", "*.md", "*.sh", "*.yaml", "*.toml", "*.txt", "*.cff", "*.j2", "Makefile", ".ci/run"
    ):
        if path.name == "test_docs.py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if FORBIDDEN.search(line):
                found.append(f"{path.relative_to(REPO)}:{number}: {line.strip()}")
    assert found == []


def keys(node: type, prefix: str = "") -> Iterator[str]:
    for item in fields(node):
        nested = item.default_factory
        if isinstance(nested, type) and is_dataclass(nested):
            yield from keys(nested, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def test_named_keys_exist() -> None:
    """Keys such as `ner.max_len` in backticks in README and docs are keys of some command."""
    known = {name for schema in COMMANDS.values() for name in keys(schema)} | {"model.safetensors"}
    pattern = re.compile(r"`((?:meta|train|ner|data|log|grid|cluster|model)\.[a-z_0-9]+)[=`]")
    unknown = [
        f"{document.relative_to(REPO)}: {name}"
        for document in WITH_COMMANDS
        for name in pattern.findall(document.read_text(encoding="utf-8"))
        if name not in known
    ]
    assert unknown == []


def test_extras_in_readme() -> None:
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"\w+", cell)} == extras()


def test_command_list_in_readme_is_complete() -> None:
    text = output_after("metapt --help", README)
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in entry.COMMANDS)


def test_anchors() -> None:
    assert slug("A task (episodes of another kind)") == "a-task-episodes-of-another-kind"
