"""Sentences in, entities out: what a saved tagger is for (`metapt.load_tagger`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metapt.data.iob2 import Sentence, spans
from metapt.errors import UserError
from metapt.inference.word_splitting import word_offsets
from metapt.tagger.encoding import WordTokenizer, encode, word_features
from metapt.tagger.model import Tagger
from metapt.tagger.predict import emission_batches
from metapt.tagger.serialization import find_tagger_dir, load_tagger

WORDS_AT_ONCE = 32_768  # bounds the memory, however many sentences there are and however long they are
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Entity:
    """A span of words. start, end: characters of the text; start_word, end_word: words; ends are exclusive.

    probability: that these words and no others around them are an entity of this type, under the model (Culotta and McCallum
    2004, "Confidence estimation for information extraction").
    """

    type: str
    text: str
    start: int
    end: int
    start_word: int
    end_word: int
    probability: float


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence and what the tagger makes of it; words, offsets, tags and probabilities are equally many.

    text: as it was given, or the given words with a space between two;
    offsets: begin and end of each word in it, in characters;
    tags: IOB2, of the most likely sequence; probabilities: the marginal one of each word's tag.
    """

    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]
    entities: tuple[Entity, ...]


class EntityTagger:
    """Tags sentences with a tagger of `metapt.finetune`, or any folder made by it.

    Args:
        tagger: in evaluation mode, on any device.
        word_tokenizer: subwords of words, by its tokenizer.
        max_len: subwords of a window; longer sentences are read in overlapping ones.
        batch_size: sentences that are read at once, of the up to WORDS_AT_ONCE words that are held.
    """

    def __init__(self, tagger: Tagger, word_tokenizer: WordTokenizer, max_len: int, batch_size: int):
        self.tagger, self.word_tokenizer, self.max_len, self.batch_size = (
            tagger,
            word_tokenizer,
            max_len,
            batch_size,
        )

    @classmethod
    def load(
        cls, path: str | Path, *, precision: str = "fp32", device: str = "cpu", batch_size: int = 64
    ) -> EntityTagger:
        """From a finished fine-tuning run or its tagger folder; arguments as in `metapt.load_tagger`."""
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision}: must be one of {', '.join(PRECISIONS)}")
        tagger, tokenizer, settings = load_tagger(find_tagger_dir(path), PRECISIONS[precision])
        return cls(tagger.to(device), settings.word_tokenizer(tokenizer), settings.max_len, batch_size)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags there are, in the order of the emissions."""
        return self.tagger.layer.tags

    def tag(self, sentences: Sequence[str] | Sequence[Sequence[str]]) -> list[TaggedSentence]:
        """Tags sentences, each a text (split into words as metapt/inference/word_splitting.py says) or a list of words.

        Raises:
            UserError: a word is no valid Unicode text.
        """
        if isinstance(sentences, str):
            raise TypeError("tag() takes a list of sentences, not one string")
        return [each for group in _groups(map(_split, sentences)) for each in self._tag(group)]

    def _tag(self, group: Sequence[_Words]) -> list[TaggedSentence]:
        """Those with words through the model; the others are as empty as they were."""
        tagged = iter(self._read([each for each in group if each.words]))
        nothing: tuple[()] = ()
        return [next(tagged) if each.words else TaggedSentence(each.text, *[nothing] * 5) for each in group]

    @torch.no_grad()
    def _read(self, group: Sequence[_Words]) -> list[TaggedSentence]:
        if not group:
            return []
        unlabelled = [Sentence("", each.words, ("O",) * len(each.words)) for each in group]
        encoded = encode(unlabelled, self.word_tokenizer, self.max_len, truncate=False)
        features = word_features(self.tagger, encoded, self.batch_size)
        sequence = self.tagger.layer.ner_head
        found: dict[int, TaggedSentence] = {}
        for numbers, emissions, _, lengths in emission_batches(self.tagger.layer, features, encoded, self.batch_size):
            marginals, steps = (
                values.cpu().double().numpy()
                for values in (
                    sequence.log_marginals(emissions, lengths),
                    sequence.log_conditionals(emissions, lengths),
                )
            )
            for row, (number, path) in enumerate(
                zip(numbers, sequence.decode(emissions, lengths), strict=True)
            ):
                found[number] = _tagged(group[number], self.tags, path, marginals[row], steps[row])
        return [found[number] for number in range(len(group))]


@dataclass(frozen=True)
class _Words:
    """A sentence before it is tagged."""

    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]


def _split(sentence: str | Sequence[str]) -> _Words:
    if isinstance(sentence, str):
        text, offsets = sentence, word_offsets(sentence)
        words = tuple(text[begin:end] for begin, end in offsets)
    else:
        text, words = " ".join(sentence), tuple(sentence)
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        offsets = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"not valid Unicode at character {error.start + 1} of {text[:60]!r}") from None
    return _Words(text, words, tuple(offsets))


def _groups(sentences: Iterable[_Words]) -> Iterator[list[_Words]]:
    """The sentences in their order, in groups of at most WORDS_AT_ONCE words (or of a single longer sentence)."""
    group: list[_Words] = []
    held = 0
    for each in sentences:
        if group and held + len(each.words) > WORDS_AT_ONCE:
            yield group
            group, held = [], 0
        group.append(each)
        held += len(each.words)
    if group:
        yield group


def _tagged(
    sentence: _Words, names: Sequence[str], path: Sequence[int], marginals: np.ndarray, steps: np.ndarray
) -> TaggedSentence:
    """One sentence with its tags.

    Args:
        names: of the tags.
        path: a tag for each of the n words.
        marginals: [>= n, C], log p of each word's tags; steps: [>= n - 1, C, C], of each next word's, given a word's tag.
    """
    tags = tuple(names[tag] for tag in path)
    found = []
    for kind, first, stop in spans(tags):
        start, end = sentence.offsets[first][0], sentence.offsets[stop - 1][1]
        log_p = marginals[first, path[first]]
        log_p += sum(steps[word, path[word], path[word + 1]] for word in range(first, stop - 1))
        if stop < len(path):  # and the entity does not go on
            goes_on = steps[stop - 1, path[stop - 1], names.index(f"I-{kind}")]
            log_p += np.log1p(-np.exp(min(goes_on, -1e-12)))
        probability = min(1.0, float(np.exp(log_p)))
        found.append(Entity(kind, sentence.text[start:end], start, end, first, stop, probability))
    of_tags = tuple(min(1.0, float(np.exp(marginals[word, tag]))) for word, tag in enumerate(path))
    return TaggedSentence(sentence.text, sentence.words, sentence.offsets, tags, of_tags, tuple(found))
