"""The help of every command, and its configuration as YAML."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import MISSING as REQUIRED

from metapt.config import COMMANDS, commandline
from metapt.config.composition import default_options, describe_option, group_options
from metapt.config.help_text import WIDTH, help_text
from metapt.config.keys import fields_by_path, key_of
from metapt.errors import UserError

UNITS = {
    "_gbs": "GB/s",  # last part of a key's path, or its end: its unit
    "_s": "seconds",
    "_min": "minutes",
    "_gb": "GB",
    "tflops": "TFLOP/s",
    "_every": "updates",
    "warmup_steps": "updates",
    "seq_len": "tokens",
    "max_positions": "tokens",
    "window": "tokens",
    "min_context": "tokens",
    "max_len": "subwords",
    "batch_size": "sentences",
    "micro_batch": "sequences",
    "hidden_size": "dimensions",
    "head_hidden": "dimensions",
    "intermediate_size": "dimensions",
    "hours_per_size": "hours",
    "min_per_kind": "minutes",
    "gb_per_size": "GB",
    "grid.checkpoints": "updates",
    "extra_checkpoints": "updates",
    "margin": "F1 points",
}
PURE_NUMBERS = re.compile(  # words of the help of a number that has no unit
    r"\b(number|probability|fraction|utilization|learning rate|seed|weight decay|beta[12]|dropout|epsilon|base|norm"
    r"|penalty|seeds|rank|alpha|relative|column)\b"
)
PRIVATE_ENGLISH = re.compile(
    r"\b(told|tells|drawn|drawing|stands?|so many|goes on|given up|at most those that|share|shares|pieces?|regime"
    r"|kin|of it|of them|what is to|word on|asked for|made ready|heldout|absent)\b"
)
KEYS = [
    pytest.param(command, path, item, id=f"{command}:{path}")
    for command, schema in COMMANDS.items()
    for path, item in fields_by_path(schema).items()
    if not key_of(item).internal
]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The help of every command without arguments."""
    return {command: help_text(command, []) for command in COMMANDS}


def entry(text: str, path: str) -> str:
    """The help of one key as one line."""
    match = re.search(rf"^  {re.escape(path)}\s((?:.*\n)(?: {{20,}}.*\n)*)", text, re.MULTILINE)
    assert match, path
    return " ".join(match[1].split())


@pytest.mark.parametrize(("command", "path", "item"), KEYS)
def test_every_key_is_explained(texts: dict[str, str], command: str, path: str, item: Field[Any]):
    key, shown = key_of(item), entry(texts[command], path)
    assert len(key.help.split()) >= 2
    assert shown.startswith(key.help)
    assert re.search(r"\((required|default: .+?)\)", shown)
    assert ("None" in str(item.type)) == bool(key.absent), "a key that may be null says what null means"
    for choice, meaning in key.choices.items():
        assert meaning
        assert f"{choice} " in shown


@pytest.mark.parametrize(("command", "path", "item"), KEYS)
def test_every_number_has_its_unit(texts: dict[str, str], command: str, path: str, item: Field[Any]):
    key = key_of(item)
    if not re.search(r"\b(int|float|NumberOrAuto)\b", str(item.type)):
        assert not key.unit
        return
    expected = next((unit for end, unit in UNITS.items() if path.endswith(end)), "")
    assert key.unit == expected
    assert f"[{key.unit}]" in entry(texts[command], path) if key.unit else PURE_NUMBERS.search(key.help)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable(texts: dict[str, str], command: str):
    text = texts[command]
    assert text.startswith(f"usage: metapt {command} ")
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    assert "\n\n\n" not in text
    found = [match[0] for match in PRIVATE_ENGLISH.finditer(text)]
    assert found == []


@pytest.mark.parametrize("command", COMMANDS)
def test_internal_keys_are_not_shown(texts: dict[str, str], command: str):
    internal = [path for path, item in fields_by_path(COMMANDS[command]).items() if key_of(item).internal]
    assert [path for path in internal if path in texts[command]] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_configuration_group_is_explained(texts: dict[str, str], command: str):
    for group, options in group_options(command).items():
        assert default_options(command)[group] in options
        for option in options:
            described = describe_option(command, group, option)
            assert described.endswith(".")
            assert described.split()[-1] in texts[command]


@pytest.mark.parametrize(
    ("arguments", "path", "shown"),
    [
        ([], "train.lr", "(default: 0.003)"),
        (["model=laptop"], "train.lr", "(default: 0.004)"),
        (["model=laptop", "train.lr=1e-3"], "train.lr", "(given: 0.001)"),
        (["model=laptop"], "model", "(given: laptop)"),
        ([], "model", "(default: nano)"),
        (["model=tiny", "objective=maml"], "run_dir", "(default: runs/pretrain/tiny-maml-s0)"),
        (["model.vocab_size=512"], "data.vocab_size", "(default: 512)"),
        (["objective=maml_paper"], "meta.rho", "(default: 0.5)"),
        ([], "data.max_tokens", "(default: with data=hub what the updates need"),
        ([], "variant", "(default: empty)"),
        ([], "train.compile", "(default: auto)"),
    ],
)
def test_help_shows_the_values_of_this_command_line(arguments: list[str], path: str, shown: str):
    assert shown in entry(help_text("pretrain", arguments), path)


def test_help_says_which_group_is_required_and_where_a_key_has_an_effect() -> None:
    text = help_text("submit", [])
    assert entry(text, "grid").startswith("(required; the values below are those of grid=demo) ")
    assert entry(text, "cluster").startswith("(default: local) ")
    assert "Slurm partition (cluster=slurm) (default: not specified)" in entry(text, "cluster.partition")
    assert "(cluster=local or slurm) [seconds] (default: 120)" in entry(text, "cluster.signal_delay_s")
    assert entry(help_text("submit", ["grid=study"]), "grid").startswith("(given: study) ")


def test_help_shows_lists_mappings_and_required_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAPT_TEXT_DIR", raising=False)
    text = help_text("submit", ["grid=study"])  # needs this environment variable
    assert "(default: [vanilla, maml_paper])" in entry(text, "grid.objectives")
    assert "(default: {})" in entry(text, "cluster.extra")
    assert "data.text_dir='${oc.env:METAPT_TEXT_DIR}'" in entry(text, "grid.pretrain")
    text = help_text("finetune", ["source=en_ewt"])
    assert "(required)" in entry(text, "checkpoint")
    assert "(required; given: en_ewt)" in entry(text, "source")
    assert "(default: [])" in entry(text, "data.eval_sets")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_the_command(capsys: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as stopped:
        commandline.load(command, ["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_help_with_an_unknown_key_is_an_error():
    with pytest.raises(UserError, match=r"train\.sed: no such key; did you mean train\.seed"):
        commandline.load("pretrain", ["train.sed=1", "--help"])


def required_arguments(command: str) -> list[str]:
    """Values for the required keys of a command."""
    return [
        f"{path}={next(iter(key_of(item).choices), 'x')}"
        for path, item in fields_by_path(COMMANDS[command]).items()
        if item.default is not MISSING and item.default == REQUIRED and "." not in path
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_print_config_prints_the_checked_configuration(capsys: pytest.CaptureFixture[str], command: str):
    arguments = required_arguments(command)
    with pytest.raises(SystemExit) as stopped:
        commandline.load(command, ["--print-config", *arguments])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    config = commandline.load(command, arguments)
    for path in fields_by_path(COMMANDS[command]):
        value, expected = yaml.safe_load(printed), config
        for name in path.split("."):
            value, expected = value[name], getattr(expected, name)
        assert value == expected or float(value) == expected  # YAML 1.1 reads 1e-06 as text
    with pytest.raises(UserError, match="configuration error"):
        commandline.load(command, ["--print-config", *arguments, "no.such.key=1"])


def test_flags_stand_for_keys():
    config = commandline.load("status", ["root=x", "--watch", "--json"])
    assert config.watch
    assert config.json


def test_print_config_is_no_sentence_to_tag():
    settings, sentences = commandline.split_settings_and_texts(
        ["--print-config", "checkpoint=x", "Maria", "--", "format=json"]
    )
    assert settings == ["--print-config", "checkpoint=x"]
    assert sentences == ["Maria", "format=json"]


def test_shipped_yaml_files_do_not_name_a_default_that_is_missing():
    conf = Path(commandline.__file__).parent / "conf"
    for file in conf.glob("*/config.yaml"):
        groups = default_options(file.parent.name)
        assert groups == {} or set(groups) == set(group_options(file.parent.name))
