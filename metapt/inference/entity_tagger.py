"""The public interface of a saved tagger (`metapt.load_tagger`): sentences in, entities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metapt.data.iob2 import Sentence, spans
from metapt.data.word_splitting import word_offsets
from metapt.errors import UserError
from metapt.models.device import torch_device
from metapt.tagger.encoding import WordTokenizer, encode, word_features
from metapt.tagger.model import Tagger
from metapt.tagger.predict import emission_batches
from metapt.tagger.serialization import find_tagger_dir, load_tagger

MAX_GROUP_WORDS = 32_768  # words processed at a time, which bounds the memory
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Entity:
    """An entity span; ends are exclusive.

    Attributes:
        start, end: characters of the text.
        start_word, end_word: words of the sentence.
        probability: of exactly this span with this type under the model (Culotta and McCallum 2004, "Confidence
            estimation for information extraction").
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
    """A sentence with its tags and entities; words, offsets, tags and probabilities have the same length.

    Attributes:
        text: the given text, or the given words joined by spaces.
        offsets: begin and end of each word in the text, in characters.
        tags: the most likely IOB2 tag sequence.
        probabilities: the marginal probability of each word's tag.
    """

    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]
    entities: tuple[Entity, ...]


class EntityTagger:
    """Tags sentences with a tagger that `metapt finetune` has saved.

    Args:
        tagger: in evaluation mode, on any device.
        word_tokenizer: created with the tokenizer of the tagger.
        max_len: subwords of a window; longer sentences are split into overlapping windows.
        batch_size: sentences that the model processes at a time.
    """

    def __init__(self, tagger: Tagger, word_tokenizer: WordTokenizer, max_len: int, batch_size: int):
        self.tagger, self.word_tokenizer = tagger, word_tokenizer
        self.max_len, self.batch_size = max_len, batch_size

    @classmethod
    def load(
        cls, path: str | Path, *, precision: str = "fp32", device: str = "auto", batch_size: int = 64
    ) -> EntityTagger:
        """Load the tagger of a finished fine-tuning run or a tagger folder; arguments as in `metapt.load_tagger`."""
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision}: must be one of {', '.join(PRECISIONS)}")
        target = torch_device(device)
        tagger, tokenizer, settings = load_tagger(find_tagger_dir(path), PRECISIONS[precision])
        return cls(tagger.to(target), settings.word_tokenizer(tokenizer), settings.max_len, batch_size)

    @property
    def tags(self) -> tuple[str, ...]:
        """All possible tags, in the order of the emissions."""
        return self.tagger.layer.tags

    def tag(self, sentences: Sequence[str] | Sequence[Sequence[str]]) -> list[TaggedSentence]:
        """Tag sentences.

        Args:
            sentences: each a text, which is split into words by metapt.data.word_splitting.py, or a list of words.
        Raises:
            UserError: a word is not valid Unicode text.
        """
        if isinstance(sentences, str):
            raise TypeError("tag() takes a list of sentences, not one string")
        groups = _group_by_words(map(_split_words, sentences))
        return [tagged for group in groups for tagged in self._tag_group(group)]

    def _tag_group(self, group: Sequence[_Words]) -> list[TaggedSentence]:
        """Tag the sentences that have words; the others become empty TaggedSentences."""
        tagged = iter(self._predict([sentence for sentence in group if sentence.words]))
        return [
            next(tagged) if sentence.words else TaggedSentence(sentence.text, (), (), (), (), ())
            for sentence in group
        ]

    @torch.no_grad()
    def _predict(self, group: Sequence[_Words]) -> list[TaggedSentence]:
        if not group:
            return []
        unlabelled = [Sentence("", sentence.words, ("O",) * len(sentence.words)) for sentence in group]
        encoded = encode(unlabelled, self.word_tokenizer, self.max_len, self.tags, split=False)
        features = word_features(self.tagger, encoded, self.batch_size)
        layer, ner_head = self.tagger.layer, self.tagger.layer.ner_head
        tagged: dict[int, TaggedSentence] = {}
        for numbers, emissions, _, lengths in emission_batches(layer, features, encoded, self.batch_size):
            marginals = ner_head.log_marginals(emissions, lengths).cpu().double().numpy()
            conditionals = ner_head.log_conditionals(emissions, lengths).cpu().double().numpy()
            paths = ner_head.decode(emissions, lengths)
            for row, (number, path) in enumerate(zip(numbers, paths, strict=True)):
                tagged[number] = _tagged_sentence(
                    group[number], self.tags, path, marginals[row], conditionals[row]
                )
        return [tagged[number] for number in range(len(group))]


@dataclass(frozen=True)
class _Words:
    """A sentence that has been split into words."""

    text: str
    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]


def _split_words(sentence: str | Sequence[str]) -> _Words:
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


def _group_by_words(sentences: Iterable[_Words]) -> Iterator[list[_Words]]:
    """Yield sentences in order, in groups of at most MAX_GROUP_WORDS words (or a single longer sentence)."""
    group: list[_Words] = []
    num_words = 0
    for sentence in sentences:
        if group and num_words + len(sentence.words) > MAX_GROUP_WORDS:
            yield group
            group, num_words = [], 0
        group.append(sentence)
        num_words += len(sentence.words)
    if group:
        yield group


def _tagged_sentence(
    sentence: _Words,
    tag_names: Sequence[str],
    path: Sequence[int],
    marginals: np.ndarray,
    conditionals: np.ndarray,
) -> TaggedSentence:
    """Combine a sentence of n words with its tags.

    Args:
        path: the tag of each of the n words.
        marginals: [>= n, C], log p of each tag of each word.
        conditionals: [>= n - 1, C, C], log p of each tag of the next word given a word's tag.
    """
    tags = tuple(tag_names[tag] for tag in path)
    entities = []
    for kind, first, stop in spans(tags):
        start, end = sentence.offsets[first][0], sentence.offsets[stop - 1][1]
        log_p = marginals[first, path[first]]
        log_p += sum(conditionals[word, path[word], path[word + 1]] for word in range(first, stop - 1))
        if stop < len(path):  # times the probability that the entity ends here
            log_continues = conditionals[stop - 1, path[stop - 1], tag_names.index(f"I-{kind}")]
            log_p += np.log1p(-np.exp(min(log_continues, -1e-12)))
        text = sentence.text[start:end]
        entities.append(Entity(kind, text, start, end, first, stop, _probability(log_p)))
    probabilities = tuple(_probability(marginals[word, tag]) for word, tag in enumerate(path))
    return TaggedSentence(
        sentence.text, sentence.words, sentence.offsets, tags, probabilities, tuple(entities)
    )


def _probability(log_p: float) -> float:
    """exp(log_p), without exceeding 1 by rounding."""
    return min(1.0, float(np.exp(log_p)))
