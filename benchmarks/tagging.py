"""Time and memory of tagging on a CPU: `python benchmarks/tagging.py` writes benchmarks/tagging.md.

Taggers of sizes nano, tiny and small with random weights, in fp32 and bf16, are compared with two alternatives:
transformers' pipeline on the same folder in fp32, and that pipeline on encoders of the sizes of BERT-base and XLM-R-base.
All tag the same synthetic sentences with the same tokenizer. Times are medians of all systems in turn, and the table has
their ratios. Memory is the peak of the resident set of a process (VmHWM) that loads one system and tags all sentences.
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
VOCABULARY = 2048
"""Vocabulary size of nano, used for all systems."""
SINGLE_SENTENCES, ALL_SENTENCES, BATCH = 16, 64, 32
"""Number of sentences tagged one by one, number tagged in batches, and batch size."""
BERT, XLMR = "BERT-base size", "XLM-R-base size"
Tag = Callable[[Sequence[str]], object]


def sentences() -> list[str]:
    return [" ".join(each.words) for each in demo.sentences("en_demo", "test")[:ALL_SENTENCES]]


def write_tagger(folder: Path, size: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the folder of a tagger with random weights."""
    shape = commandline.load("pretrain", [f"model={size}", "objective=vanilla"]).model
    decoder = build_decoder(shape, seed=0, eos_id=tokenizer.eos_token_id).model
    layer = TagLayer(shape.hidden_size, TAGS, "crf", dropout=0.1)
    folder.mkdir()
    save_tagger(
        folder, Tagger(decoder, layer, "first"), tokenizer, EncodingSettings(prefix_space=True, max_len=128)
    )


def write_encoder(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a token-classification encoder with random weights."""
    config.num_labels = len(TAGS)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: str, kind: str) -> tuple[Tag, Tag]:
    """Functions that tag sentences one by one and in batches.

    Args:
        kind: precision of a metapt tagger, or "pipeline" for that of transformers.
    """
    if kind != "pipeline":
        tagger = metapt.load_tagger(folder, precision=kind, batch_size=BATCH)
        return lambda texts: [tagger.tag([text]) for text in texts], tagger.tag
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForTokenClassification.from_pretrained(folder)
    classify: Any = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    return (
        lambda texts: [classify(text) for text in texts],
        lambda texts: classify(list(texts), batch_size=BATCH),
    )


def peak_bytes(folder: Path, kind: str) -> int:
    """Peak memory of a process that loads one system and tags."""
    command = [sys.executable, __file__, str(folder), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return int(done.stdout.splitlines()[-1])


def time_table(folder: Path) -> list[str]:
    """Time of the taggers relative to transformers' pipeline."""
    texts = sentences()
    systems = [(size, kind) for size in SIZES for kind in (*PRECISIONS, "pipeline")] + [(BERT, "pipeline")]
    loaded = [load(str(folder / name), kind) for name, kind in systems]
    single = medians(*[lambda tag=tag: tag(texts[:SINGLE_SENTENCES]) for tag, _ in loaded])
    batched = medians(*[lambda tag=tag: tag(texts) for _, tag in loaded])
    index = {system: number for number, system in enumerate(systems)}
    lines = [
        "| tagger | precision | one sentence, same model | one sentence, BERT-base | batches, same model | batches, BERT-base |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        for precision in PRECISIONS:
            ratios = [
                seconds[index[size, precision]] / seconds[index[baseline, "pipeline"]]
                for seconds in (single, batched)
                for baseline in (size, BERT)
            ]
            lines.append(f"| {size} | {precision} | {' | '.join(f'{ratio:.2g}' for ratio in ratios)} |")
    return lines


def memory_table(folder: Path) -> list[str]:
    """Peak memory of each system."""
    systems = [(size, kind) for size in SIZES for kind in (*PRECISIONS, "pipeline")]
    lines = ["| model | system | peak of the resident set, MiB |", "|---|---|---:|"]
    for name, kind in [*systems, (BERT, "pipeline"), (XLMR, "pipeline")]:
        system = "transformers' pipeline, fp32" if kind == "pipeline" else f"metapt, {kind}"
        lines.append(f"| {name} | {system} | {peak_bytes(folder / name, kind) / 2**20:,.0f} |")
    return lines


def main() -> None:
    """Create the systems, measure them, and write the tables."""
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
        lines = [*time_table(folder), "", *memory_table(folder)]
    words = sum(len(text.split()) for text in sentences()) / ALL_SENTENCES
    introduction = (
        "# Time and memory of tagging\n\n"
        "`python benchmarks/tagging.py` measured this and describes it. Times are ratios to transformers' pipeline in fp32, with the same\n"
        f"model and with an encoder of BERT-base size. Sentences have {words:.1f} words; batches have {BATCH} sentences.\n\n"
        f"Machine: {machine()}.\n\n"
    )
    (Path(__file__).parent / "tagging.md").write_text(
        introduction + "\n".join(lines) + "\n", encoding="utf-8"
    )
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
