"""The demo data: deterministic, well-formed, learnable, with the linguistic properties that the examples need."""

import math
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from metapt.config import NerDataConfig
from metapt.data import demo
from metapt.data.demo_english_forms import add_s, detokenize, fix_articles, verb_form
from metapt.data.demo_grammar import Sampler, TaggedWord, entity, expand
from metapt.data.demo_slovak import decline
from metapt.data.iob2 import TAGS, TYPES, read_iob2, spans
from metapt.data.labelled_sets import open_collection, source_sets

PARTS = [(name, split) for name, sizes in demo.SIZES.items() for split in sizes]
PARTICLES = {"si", "ni", "ang", "ng", "sa"}


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(demo.documents())


@pytest.fixture(scope="module")
def tokens(corpus) -> list[list[str]]:
    return [re.findall(r"\w+|[^\w\s]", text) for text in corpus]


# --- the text ---------------------------------------------------------------------------------------------------


def test_text_is_a_function_of_the_seed():
    first, again, other = (list(demo.documents(seed, 20_000)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_a_longer_text_begins_with_the_shorter_one(corpus):
    short = list(demo.documents(size_bytes=20_000))
    assert corpus[: len(short)] == short
    assert len(corpus) == len(set(corpus))


def test_size_of_the_text(corpus):
    sizes = [len(text.encode()) for text in corpus]
    assert demo.CORPUS_BYTES <= sum(sizes) < demo.CORPUS_BYTES + max(sizes)


def test_all_templates_are_filled(corpus):
    assert not any(set("{}_:") & set(text) for text in corpus)


def test_english_spelling_and_punctuation(corpus):
    for text in corpus[:300]:
        assert not re.search(r" [.,?!]|  |\b[Aa] [aeiou]|\b[Aa]n [^aeiouAEIOU]", text), text
        assert text.count('"') % 2 == 0
        assert text[0].isupper() or text.startswith('"')


def test_a_document_has_one_tense(corpus):
    for text in corpus:
        words = set(text.split())
        assert not words & {"is", "are"} or not words & {"was", "were"}, text


def test_many_words_have_medium_frequency(tokens):
    """Enough classes for 8-way episodes: in at least 16 windows of 64 words, and in at most 5 % of them."""
    stream = [word for document in tokens for word in document]
    windows = [set(stream[start : start + 64]) for start in range(0, len(stream), 64)]
    counts = Counter(word for window in windows for word in window)
    assert sum(16 <= count <= 0.05 * len(windows) for count in counts.values()) > 400
    assert 5_000 < len(set(stream)) < 20_000


def test_a_bigram_model_learns_the_text(tokens):
    """Held-out perplexity of an interpolated bigram model is far below that of the unigram model."""
    train, held_out = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    words = Counter(word for document in train for word in document)
    pairs = Counter(pair for document in train for pair in pairwise(document))
    contexts = Counter(word for document in train for word in document[:-1])
    total, types = sum(words.values()), len(words) + 1
    losses = {"unigram": 0.0, "bigram": 0.0}
    predictions = [pair for document in held_out for pair in pairwise(document)]
    for left, right in predictions:
        unigram = (words[right] + 0.1) / (total + 0.1 * types)
        bigram = 0.8 * (pairs[left, right] / contexts[left] if contexts[left] else unigram) + 0.2 * unigram
        losses["unigram"] -= math.log(unigram)
        losses["bigram"] -= math.log(bigram)
    unigram_ppl, bigram_ppl = (math.exp(loss / len(predictions)) for loss in losses.values())
    assert bigram_ppl < unigram_ppl / 4


def test_a_document_has_one_topic(tokens):
    """A rare word of a document occurs again in the same document far more often than in the next one."""
    counts = Counter(word for document in tokens for word in set(document))
    rare = {word for word, count in counts.items() if count < 0.05 * len(tokens) and word.islower()}
    repeated = total = elsewhere = 0
    for document, following in pairwise(tokens):
        half = len(document) // 2
        first, second = set(document[:half]) & rare, set(document[half:])
        total += len(first)
        repeated += len(first & second)
        elsewhere += len(first & set(following[half:]))
    assert repeated > 5 * elsewhere
    assert repeated > 0.3 * total


# --- the labelled sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "split"), PARTS)
def test_sets_have_their_size_and_valid_iob2(name, split):
    sentences = demo.sentences(name, split)
    assert len(sentences) == demo.SIZES[name][split]
    assert len({sentence.id for sentence in sentences}) == len(sentences)
    for sentence in sentences:
        assert len(sentence.words) == len(sentence.tags)
        assert set(sentence.tags) <= set(TAGS)
        assert sum(end - start for _, start, end in spans(sentence.tags)) == sum(
            tag != "O" for tag in sentence.tags
        )
        assert all(word and not re.search(r"[\s{}]", word) for word in sentence.words)


@pytest.mark.parametrize(("name", "split"), PARTS)
def test_all_entity_types_occur(name, split):
    sentences = demo.sentences(name, split)
    counts = Counter(kind for sentence in sentences for kind, _, _ in spans(sentence.tags))
    assert min(counts[kind] for kind in TYPES) >= 10
    assert 0.1 < sum(not spans(sentence.tags) for sentence in sentences) / len(sentences) < 0.6


@pytest.mark.parametrize("name", demo.SIZES)
def test_sentences_are_unique_across_splits(name):
    words = [sentence.words for split in demo.SIZES[name] for sentence in demo.sentences(name, split)]
    assert len(words) == len(set(words))


def test_sets_are_a_function_of_the_seed():
    first = demo.sentences("sk_demo", "test", seed=5)
    demo._splits.cache_clear()
    assert demo.sentences("sk_demo", "test", seed=5) == first != demo.sentences("sk_demo", "test", seed=6)


def test_callers_get_copies():
    demo.sentences("tl_demo", "test").clear()
    assert demo.sentences("tl_demo", "test")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["tl_demo", "ceb_demo"])
def test_most_persons_follow_a_particle(name, seed):
    before = [
        sentence.words[start - 1].lower() if start else ""
        for sentence in demo.sentences(name, "test", seed)
        for kind, start, _ in spans(sentence.tags)
        if kind == "PER"
    ]
    assert 0.6 <= sum(word in PARTICLES for word in before) / len(before) <= 0.95
    assert 0.6 <= sum(word in PARTICLES | {"kay", "kang"} for word in before) / len(before) <= 0.95


@pytest.mark.parametrize("name", ["tl_demo", "ceb_demo"])
def test_score_of_the_particle_rule(name):
    """The rule "the word after si or ni is a person" misses unmarked names and the ends of longer names."""
    sentences = demo.sentences(name, "test")
    gold = {(s.id, start, end) for s in sentences for kind, start, end in spans(s.tags) if kind == "PER"}
    predicted = {
        (s.id, i + 1, i + 2)
        for s in sentences
        for i, word in enumerate(s.words)
        if word.lower() in ("si", "ni")
    }
    assert 0.3 < 2 * len(gold & predicted) / (len(gold) + len(predicted)) < 0.9


@pytest.mark.parametrize("name", ["en_demo", "sk_demo"])
def test_about_half_of_the_names_in_the_test_split_are_new(name):
    train, test = (
        [
            word
            for sentence in demo.sentences(name, split)
            for word, tag in zip(sentence.words, sentence.tags, strict=True)
            if tag != "O"
        ]
        for split in ("train", "test")
    )
    assert 0.3 < sum(word not in set(train) for word in test) / len(test) < 0.8


def test_slovak_like_persons_occur_in_several_cases():
    endings = Counter(
        sentence.words[end - 1][-3:]
        for sentence in demo.sentences("sk_demo", "train")
        for kind, _, end in spans(sentence.tags)
        if kind == "PER"
    )
    assert all(endings[ending] >= 5 for ending in ("ovi", "vej"))


def test_demo_collection():
    collection = open_collection(NerDataConfig(name="demo"))
    assert collection.sets("test") == ["ceb_demo", "en_demo", "sk_demo", "tl_demo"]
    assert source_sets(collection, "all") == ["en_demo", "sk_demo"]
    assert collection.load("tl_demo", "test") == demo.sentences("tl_demo", "test")


def test_fingerprint_depends_on_seed_and_faker(monkeypatch):
    first = demo.fingerprint(0)
    assert demo.fingerprint(0) == first != demo.fingerprint(1)
    monkeypatch.setattr(demo, "VERSION", "0.0")
    assert demo.fingerprint(0) != first


# --- the command ------------------------------------------------------------------------------------------------


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metapt.data.demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(demo.__file__).parents[2])


def test_the_command_writes_all_data(tmp_path, corpus):
    done = run_demo(str(tmp_path))
    assert done.returncode == 0
    assert demo.DEMO_NOTICE in done.stderr
    assert (tmp_path / "corpus.txt").read_text(encoding="utf-8").splitlines() == corpus
    for name, split in PARTS:
        assert read_iob2(tmp_path / name / f"{split}.iob2") == demo.sentences(name, split)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_wrong_arguments(arguments):
    done = run_demo(*arguments)
    assert (done.returncode, done.stderr) == (2, "error: usage: python -m metapt.data.demo OUT_DIR\n")


# --- the grammar ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("carry", "carry carries carried carried carrying"),
        ("bake", "bake bakes baked baked baking"),
        ("drop", "drop drops dropped dropped dropping"),
        ("see", "see sees saw seen seeing"),
        ("tie", "tie ties tied tied tying"),
        ("lie", "lie lies lay lain lying"),
        ("go", "go goes went gone going"),
        ("have", "have has had had having"),
        ("watch", "watch watches watched watched watching"),
        ("play", "play plays played played playing"),
        ("cut", "cut cuts cut cut cutting"),
        ("forget", "forget forgets forgot forgotten forgetting"),
    ],
)
def test_forms_of_verbs(verb, forms):
    assert [verb_form(verb, form) for form in ("base", "s", "past", "pp", "ing")] == forms.split()


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("cake", "cakes"),
        ("compass", "compasses"),
        ("story", "stories"),
        ("match", "matches"),
        ("day", "days"),
    ],
)
def test_plurals(noun, plural):
    assert add_s(noun) == plural


@pytest.mark.parametrize(
    ("name", "kind", "forms"),
    [
        ("Nováková", "f", "Novákovej Novákovej Novákovú Novákovej Novákovou"),
        ("Jana", "f", "Jany Jane Janu Jane Janou"),
        ("Mária", "f", "Márie Márii Máriu Márii Máriou"),
        ("Ivan", "m", "Ivana Ivanovi Ivana Ivanovi Ivanom"),
        ("Marek", "m", "Marka Markovi Marka Markovi Markom"),
        ("Janko", "m", "Janka Jankovi Janka Jankovi Jankom"),
        ("Červený", "m", "Červeného Červenému Červeného Červenom Červeným"),
        ("Žilina", "place", "Žiliny Žiline Žilinu Žiline Žilinou"),
        ("Martin", "place", "Martina Martinu Martin Martine Martinom"),
        ("Košice", "place", "Košíc Košiciam Košice Košiciach Košicami"),
        ("Piešťany", "place", "Piešťan Piešťanom Piešťany Piešťanoch Piešťanmi"),
        ("Henri", "m", "Henri Henri Henri Henri Henri"),
    ],
)
def test_declension(name, kind, forms):
    declined = [decline(name, case, kind) for case in ("gen", "dat", "acc", "loc", "ins")]
    assert declined == forms.split()
    assert decline(name, "", kind) == name


def test_articles_and_punctuation():
    words = [
        TaggedWord(word, "O")
        for word in [
            '"',
            "A",
            "old",
            "map",
            "and",
            "a",
            "egg",
            "?",
            '"',
            "asks",
            "Ana",
            ",",
            "a",
            "cook",
            ".",
        ]
    ]
    assert detokenize(fix_articles(words)) == '"An old map and an egg?" asks Ana, a cook.'


def test_expand():
    rules = {
        "s": ["{who} sees {LOC:gen} and {thing:pl}"],
        "who": [entity("PER", "Ana Gil")],
        "thing": ["cat"],
    }
    words = expand(
        "s",
        rules,
        Sampler(0, "test"),
        lambda sampler, kind, form: entity(kind, f"{form} Ita"),
        lambda word, form: word + form,
    )
    assert words == [
        *(
            TaggedWord("Ana", "B-PER"),
            TaggedWord("Gil", "I-PER"),
            TaggedWord("sees", "O"),
            TaggedWord("gen", "B-LOC"),
            TaggedWord("Ita", "I-LOC"),
        ),
        *(TaggedWord("and", "O"), TaggedWord("catpl", "O")),
    ]
