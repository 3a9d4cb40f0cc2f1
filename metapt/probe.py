"""The command `metapt probe`: score a checkpoint on fixed episodes of word classes, whatever it was pretrained with.

By default the episodes are those that pretraining runs with word classes measure as learning dynamics, on the same held-out text:
lengths, numbers and precision that are not given are those of the checkpoint's run (metapt/config/checkpoint_keys.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metapt.config import ProbeConfig, commandline
from metapt.data import DEMO_NOTICE
from metapt.data.tokenizers import FILE as TOKENIZER_FILE
from metapt.errors import UserError, run_command

NAMES = {
    "known_words": "words and partitions of training",
    "held_out_words": "held-out words, held-out partition",
}


def main(argv: Sequence[str]) -> None:
    """Print the accuracies of the checkpoint of these arguments.

    Raises:
        UserError: an error in the arguments, or the checkpoint has another tokenizer than the corpus.
    """
    config: ProbeConfig = commandline.load("probe", argv)
    print(table(probe(config)))
    if config.data.name == "demo":
        print(DEMO_NOTICE)


def probe(config: ProbeConfig) -> dict[str, float | list[float]]:
    """The accuracies of a checkpoint (`WordProbe.measure`). Raises as `main`."""
    if not config.classes.sizes:
        raise UserError(
            "classes.sizes is empty: give the classes of the episodes, or objective=episodes, which has some"
        )
    from metapt.data.batches import eval_sequences
    from metapt.data.corpus import prepare_corpus
    from metapt.data.corpus_classes import corpus_classes, corpus_token_kinds
    from metapt.estimate.memory import Ranks
    from metapt.estimate.update_split import with_numbers
    from metapt.meta.word_probe import WordProbe
    from metapt.models.device import training_device
    from metapt.models.meta_lm import load_meta_lm
    from metapt.models.pretrained import model_folder
    from metapt.training.progress_line import log

    device = training_device(config.device)
    folder, corpus, train = model_folder(config.checkpoint), prepare_corpus(config.data), config.train
    _check_tokenizer(folder, corpus.tokenizer_dir)
    rows = eval_sequences(corpus.eval, train.seq_len, train.eval_sequences)
    classes = corpus_classes(corpus, config.classes, log)
    chunk = with_numbers(config, Ranks(1, device.type), None).train.micro_batch
    kinds = corpus_token_kinds(corpus)
    episodes = WordProbe(rows, kinds, classes, chunk, config.probe_episodes, config.probe_tokens)
    return episodes.measure(load_meta_lm(folder, train.precision).to(device))


def _check_tokenizer(model: Path, corpus: Path) -> None:
    """Refuse a model whose tokenizer is not that of the corpus: its states would be those of other words."""
    files = [folder / TOKENIZER_FILE for folder in (model, corpus)]
    if not files[0].exists() or files[0].read_bytes() != files[1].read_bytes():
        raise UserError(
            f"{model}: its tokenizer is not that of the corpus in {corpus.parent}; give the data.* keys with which it was pretrained"
        )


def table(scores: Mapping[str, float | list[float]]) -> str:
    """Accuracies of both kinds of words as text."""
    lines = [
        f"{'class-balanced query accuracy':38}{'prototypes':>12}{'10 steps':>10}{'chance':>8}{'episodes':>10}"
    ]
    for kind, name in NAMES.items():
        prototypes, adapted = (
            scores.get(f"{kind}_{score}") for score in ("prototype_accuracy", "adapted_accuracy")
        )
        if not isinstance(prototypes, list) or not isinstance(adapted, list):
            lines.append(f"{name:38}too few words in the held-out text")
            continue
        numbers = f"{np.mean(prototypes):>12.3f}{adapted[-1]:>10.3f}{scores[f'{kind}_chance']:>8.3f}"
        lines.append(f"{name:38}{numbers}{len(prototypes):>10}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
