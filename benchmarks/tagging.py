"""Tagging on this machine's CPU, in time and memory: `python benchmarks/tagging.py` writes benchmarks/tagging.md.

Taggers with random weights (what they find does not matter) at nano, tiny and small, in fp32 and bf16, beside what a user would
take instead: transformers' own pipeline on the same folder in fp32, and that pipeline on encoders of the shapes of BERT-base and
XLM-R-base. All read the same generated sentences with the same tokenizer. Times are medians of all systems measured in turn, told as
shares; memory is the peak of the resident set of a process (VmHWM) that loads one system and tags all sentences, told as it is,
since it does not depend on how busy the machine is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from memory import status_bytes
from timing import medians
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
    pipeline,
)

import metapt
from metapt.config import commandline
from metapt.data import demo
from metapt.data.iob2 import TAGS
from metapt.data.tokenizers import train_tokenizer
from metapt.models.decoder import build_decoder
from metapt.tagger.encoding import EncodingSettings
from metapt.tagger.model import Tagger, TagLayer
from metapt.tagger.serialization import save_tagger

SIZES = ("nano", "tiny", "small")
PRECISIONS = ("fp32", "bf16")
VOCABULARY = 2048  # of nano
ALONE, TOGETHER, BATCH = 16, 64, 32  # sentences tagged one by one, sentences tagged in batches of BATCH
BERT, XLMR = "BERT-base's shape", "XLM-R-base's shape"
Tag = Callable[[Sequence[str]], object]


def sentences() -> list[str]:
    return [" ".join(each.words) for each in demo.sentences("en_demo", "test")[:TOGETHER]]


def write_tagger(folder: Path, size: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tagger's folder with random weights."""
    shape = commandline.load("pretrain", [f"model={size}", "objective=vanilla"]).model
    decoder = build_decoder(shape, seed=0, eos_id=tokenizer.eos_token_id).model
    layer = TagLayer(shape.hidden_size, TAGS, "crf", dropout=0.1)
    folder.mkdir()
    save_tagger(folder, Tagger(decoder, layer, "first"), tokenizer, EncodingSettings(prefix_space=True, max_len=128))


def write_encoder(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """A token-classification encoder with random weights."""
    config.num_labels = len(TAGS)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: str, kind: str) -> tuple[Tag, Tag]:
    """What tags one sentence after another, and what tags in batches: metapt in a precision, or transformers' pipeline."""
    if kind != "pipeline":
        tagger = metapt.load_tagger(folder, precision=kind, batch_size=BATCH)
        return lambda texts: [tagger.tag([text]) for text in texts], tagger.tag
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForTokenClassification.from_pretrained(folder)
    classify: Any = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    return lambda texts: [classify(text) for text in texts], lambda texts: classify(
        list(texts), batch_size=BATCH
    )


def peak_bytes(folder: Path, kind: str) -> int:
    """Of a process that loads one system and tags."""
    command = [sys.executable, __file__, str(folder), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return int(done.stdout.splitlines()[-1])


def table(folder: Path) -> list[str]:
    """Measures everything; the rows of the two tables."""
    texts = sentences()
    systems = [(size, kind) for size in SIZES for kind in (*PRECISIONS, "pipeline")] + [(BERT, "pipeline")]
    loaded = [load(str(folder / name), kind) for name, kind in systems]
    alone = medians(*[lambda tag=one: tag(texts[:ALONE]) for one, _ in loaded])
    together = medians(*[lambda tag=many: tag(texts) for _, many in loaded])
    places = {system: place for place, system in enumerate(systems)}
    lines = [
        "| tagger | precision | one sentence, share of the pipeline's time | of BERT-base's | batches, of the pipeline's | of BERT-base's |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        for precision in PRECISIONS:
            mine = places[size, precision]
            shares = [
                times[mine] / times[places[other, "pipeline"]]
                for times in (alone, together)
                for other in (size, BERT)
            ]
            lines.append(f"| {size} | {precision} | {' | '.join(f'{share:.2g}' for share in shares)} |")
    del loaded
    lines += ["", "| system | by | peak of the resident set, MiB |", "|---|---|---:|"]
    for name, kind in [*systems, (XLMR, "pipeline")]:
        by = "transformers' pipeline, fp32" if kind == "pipeline" else f"metapt, {kind}"
        lines.append(f"| {name} | {by} | {peak_bytes(folder / name, kind) / 2**20:,.0f} |")
    return lines


def main() -> None:
    """Makes the systems, measures them, and writes the table."""
    from machine import machine

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(demo.documents(), VOCABULARY)
        for size in SIZES:
            write_tagger(folder / size, size, tokenizer)
        write_encoder(folder / BERT, BertConfig(), tokenizer)
        xlmr = XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1)
        write_encoder(folder / XLMR, xlmr, tokenizer)
        lines = table(folder)
    words = sum(len(text.split()) for text in sentences()) / TOGETHER
    head = (
        "# Tagging: time and memory\n\n`python benchmarks/tagging.py` measured this; it also says how.\n\n"
        f"Machine: {machine()}. Sentences of {words:.1f} words; batches of {BATCH}.\n\n"
    )
    (Path(__file__).parent / "tagging.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.manual_seed(0)
        for tag in load(*sys.argv[1:]):
            tag(sentences())
        print(status_bytes("VmHWM"))
    else:
        main()
