"""Subwords, windows and word features of words; saving and loading taggers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from ner_world import NOTHING, labelled, make_tokenizer, write_checkpoint
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
)

from metapt.data.iob2 import TAGS, Sentence, read_iob2, spans, to_iob2
from metapt.data.word_subwords import WordSubwords
from metapt.errors import UserError
from metapt.models.base_model import load_base_model
from metapt.tagger.crf import SoftmaxHead
from metapt.tagger.encoding import (
    EncodingSettings,
    WordTokenizer,
    collate,
    encode,
    epoch_batches,
    word_features,
)
from metapt.tagger.model import Tagger, TagLayer, pad_packed
from metapt.tagger.serialization import load_tagger, save_tagger
from metapt.tagger.windows import split_into_windows

LONG_TEXT = "Maria lives in Davao City and Juan Cruz works for the Red Cross"
LONG = Sentence("long", tuple(LONG_TEXT.split(" ") * 3), ("O",) * 39)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def make_tagger(checkpoint: Path, subword_pooling: str = "first", head: str = "crf") -> Tagger:
    torch.manual_seed(1)
    layer = TagLayer(32, TAGS, head, dropout=0.1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return Tagger(load_base_model(checkpoint), layer, subword_pooling).eval()


def test_words_are_tokenized_independently() -> None:
    tokenizer = make_tokenizer()
    words = ["Maria", "Zzyx", "Maria", "日本", "a b"]
    for prefix in (True, False):
        found = [word.ids for word in WordTokenizer(tokenizer, prefix, max_subwords=64)(words)]
        alone = [tokenizer.tokenize(" " + word)[0] == "Ġ" for word in words]
        assert alone == [False, True, False, True, True]
        spaces = [" " * (prefix and not is_alone) for is_alone in alone]
        expected = [space + word for space, word in zip(spaces, words, strict=True)]
        assert found == [tokenizer.encode(text, add_special_tokens=False) for text in expected]
        assert [tokenizer.decode(subwords).strip() for subwords in found] == words
    assert (
        WordTokenizer(tokenizer, True, max_subwords=2)(["Zzyxabc"])[0].ids
        == WordTokenizer(tokenizer, True, max_subwords=64)(["Zzyxabc"])[0].ids[:2]
    )


def test_word_without_subwords_gets_the_end_of_text_token() -> None:
    tokenizer = make_tokenizer()
    word_tokenizer = WordTokenizer(tokenizer, False, max_subwords=64)
    assert word_tokenizer(["Maria", NOTHING, "Cebu"]) == [
        *word_tokenizer(["Maria"]),
        WordSubwords([tokenizer.eos_token_id], 0, holds_character=False),
        *word_tokenizer(["Cebu"]),
    ]
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        WordTokenizer(tokenizer, False, max_subwords=64)


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 12), st.data())
def test_windows_contain_every_word_once_with_context(max_len: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, max_len // 2), min_size=1, max_size=30))
    subwords = np.split(
        np.arange(sum(sizes)), np.cumsum(sizes)[:-1]
    )  # each subword is its position in the sentence
    firsts = [data.draw(st.integers(0, size - 1)) for size in sizes]
    words = [WordSubwords(ids.tolist(), first, True) for ids, first in zip(subwords, firsts, strict=True)]
    read = []
    for window in split_into_windows(words, max_len):
        assert len(window.subwords) <= max_len
        for first, last in zip(window.firsts, window.lasts, strict=True):
            read.append(window.subwords[first : last + 1].tolist())
            before = read[-1][0]
            assert first >= min(before, max_len // 2 - max(sizes) + 1)
    assert read == [word.ids[word.first :] for word in words]


def test_short_sentences_are_one_window() -> None:
    words = [WordSubwords(ids, 0, True) for ids in ([1], [2, 3], [4])]
    assert [len(split_into_windows(words, max_len)) for max_len in (4, 5, 128)] == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-ORG", "I-ORG"]), min_size=1, max_size=60),
    st.integers(8, 24),
)
def test_units_of_a_long_sentence_have_all_its_words_and_divide_no_entity(
    raw: list[str], max_len: int
) -> None:
    word_tokenizer = WordTokenizer(make_tokenizer(), True, max_subwords=max_len // 2)
    tags = to_iob2(raw)
    words = tuple(("Maria", "Davao", "lives")[number % 3] for number in range(len(tags)))
    long, short = Sentence("1", words, tags), Sentence("2", ("Maria", "lives"), ("B-PER", "O"))
    split, whole = (
        encode([long, short, long], word_tokenizer, max_len, TAGS, split=split) for split in (True, False)
    )
    assert (split.sentences, split.sentences_split) == (whole.sentences, whole.sentences_split)
    assert whole.lengths.tolist() == [len(words), 2, len(words)]
    assert len(split.lengths) == len(split.windows)
    assert [len(window.firsts) for window in split.windows] == split.lengths.tolist()
    subwords = [
        window.subwords[first : last + 1].tolist()
        for window in split.windows
        for first, last in zip(window.firsts, window.lasts, strict=True)
    ]
    expected = [word.ids[word.first :] for word in word_tokenizer([*words, *short.words, *words])]
    assert subwords == expected
    starts = split.lengths.cumsum(0) - split.lengths
    assert not any(TAGS[split.tags[start]].startswith("I-") for start in starts)
    changed = split.tags != whole.tags  # only where an entity is longer than a window
    sizes = [len(word.ids) for word in word_tokenizer(words)]
    longest = max((sum(sizes[start:end]) for _, start, end in spans(tags)), default=0)
    assert not changed.any() or longest > max_len - 2  # subwords; two are special tokens
    assert all(row in starts for row in changed.nonzero().flatten())


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["tl_trg", "ceb_gja", "zh_gsd", "sv_pud"])
def test_real_sets_keep_every_word(name: str) -> None:
    folder, tokenizer_file = os.environ.get("METAPT_UNER_DIR"), os.environ.get("METAPT_TOKENIZER")
    if not folder or not tokenizer_file:
        pytest.skip("METAPT_UNER_DIR and METAPT_TOKENIZER are not both set")
    path = Path(folder) / name / "test.iob2"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    sentences = read_iob2(path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, eos_token="<|endoftext|>")
    word_tokenizer = WordTokenizer(tokenizer, True, max_subwords=16)
    encoded = encode(
        sentences, word_tokenizer, 32, TAGS, split=False
    )  # short windows, so that many sentences need several
    assert encoded.tags.tolist() == [TAGS.index(tag) for sentence in sentences for tag in sentence.tags]
    encoded_words = [
        window.subwords[a : b + 1].tolist()
        for window in encoded.windows
        for a, b in zip(window.firsts, window.lasts, strict=True)
    ]
    assert encoded_words == [
        word.ids[word.first :] for sentence in sentences for word in word_tokenizer(sentence.words)
    ]
    assert len(encoded.windows) > len(sentences) * (name in ("zh_gsd", "sv_pud"))


@pytest.mark.parametrize("subword_pooling", ["first", "last", "mean"])
def test_word_features_are_hidden_states_of_own_subwords(checkpoint: Path, subword_pooling: str) -> None:
    tagger = make_tagger(checkpoint, subword_pooling)
    word_tokenizer = WordTokenizer(make_tokenizer(), True, max_subwords=64)
    sentences = [*labelled(7, 5), LONG, Sentence("odd", ("Qwertyuiop", "日本"), ("O", "O"))]
    encoded = encode(sentences, word_tokenizer, 256, TAGS, split=False)
    packed = word_features(tagger, encoded, 4, Accelerator())
    expected = []
    for sentence in sentences:
        by_word = word_tokenizer(sentence.words)
        ids = [subword for word in by_word for subword in word.ids]
        hidden = tagger.decoder(torch.tensor([ids])).last_hidden_state[0].detach()
        position = 0
        for word in by_word:
            states = hidden[position + word.first : position + len(word.ids)]
            expected.append({"first": states[0], "last": states[-1], "mean": states.mean(0)}[subword_pooling])
            position += len(word.ids)
    torch.testing.assert_close(packed, torch.stack(expected), rtol=1e-4, atol=1e-5)
    chosen = np.array([8, 0, 7])
    ends = np.cumsum([len(each.words) for each in sentences])
    rows = torch.cat(
        [packed[ends[number] - len(sentences[number].words) : ends[number]] for number in chosen]
    )
    torch.testing.assert_close(packed[encoded.word_rows(chosen)], rows)


def test_windows_affect_only_words_after_the_first_window(checkpoint: Path) -> None:
    tagger = make_tagger(checkpoint)
    word_tokenizer = WordTokenizer(make_tokenizer(), True, max_subwords=8)
    whole, split = (encode([LONG], word_tokenizer, max_len, TAGS, split=False) for max_len in (256, 16))
    assert len(split.windows) > 3
    features = [word_features(tagger, encoded, 2, Accelerator()) for encoded in (whole, split)]
    assert len(features[1]) == len(LONG.words)
    first = len(split.windows[0].firsts)
    torch.testing.assert_close(features[0][:first], features[1][:first], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features[0][first:], features[1][first:], atol=1e-2)


def test_epoch_batches_contain_every_sentence_once() -> None:
    encoded = encode(
        labelled(333, 6), WordTokenizer(make_tokenizer(), True, max_subwords=64), 128, TAGS, split=True
    )
    batches = epoch_batches(encoded, 4, seed=1, epoch=2)
    assert sorted(np.concatenate(batches)) == list(range(333))
    assert [len(batch) for batch in batches].count(4) == 83
    orders = [
        np.concatenate(epoch_batches(encoded, 4, *where)).tolist() for where in ((1, 2), (1, 3), (2, 2))
    ]
    assert np.concatenate(batches).tolist() == orders[0]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    sizes = np.array([len(window.subwords) for window in encoded.windows])
    spread = [np.ptp(sizes[batch]) for batch in batches]
    assert np.mean(spread) < np.ptp(sizes) / 4


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_loss_is_negative_log_likelihood_per_word(checkpoint: Path, head: str) -> None:
    tagger = make_tagger(checkpoint, head=head)
    encoded = encode(
        labelled(5, 7), WordTokenizer(make_tokenizer(), True, max_subwords=64), 128, TAGS, split=True
    )
    loss = tagger(collate(encoded.windows), encoded.tags, encoded.lengths)
    features = word_features(tagger, encoded, 2, Accelerator())
    for number in range(5):
        words, length = encoded.word_rows(np.array([number])), encoded.lengths[[number]]
        emissions = tagger.layer.linear(features[words])[None]
        alone = tagger.layer.ner_head.log_likelihood(emissions, encoded.tags[words][None], length)
        torch.testing.assert_close(loss[number], -alone[0] / length[0], rtol=1e-4, atol=1e-5)


def test_autocast_affects_only_the_decoder(checkpoint: Path) -> None:
    tagger = make_tagger(checkpoint)
    encoded = encode(
        labelled(3, 8), WordTokenizer(make_tokenizer(), True, max_subwords=64), 128, TAGS, split=True
    )
    batch = collate(encoded.windows)
    with torch.autocast("cpu", torch.bfloat16):
        features, exact = tagger.word_features(batch), torch.randn(int(encoded.lengths.sum()), 32)
        low = tagger.layer(exact, encoded.tags, encoded.lengths)
    assert features.dtype == low.dtype == torch.float32
    assert not torch.equal(features, tagger.word_features(batch))
    assert torch.equal(low, tagger.layer(exact, encoded.tags, encoded.lengths))


def test_pad_packed_arranges_rows_and_passes_gradients() -> None:
    rows = torch.arange(8.0).reshape(4, 2).requires_grad_()
    padded = pad_packed(rows, torch.tensor([1, 3]))
    assert padded.tolist() == [[[0, 1], [0, 0], [0, 0]], [[2, 3], [4, 5], [6, 7]]]
    (padded * torch.arange(12.0).reshape(2, 3, 2)).sum().backward()
    assert rows.grad is not None
    assert rows.grad.flatten().tolist() == [0, 1, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_saved_tagger_is_self_contained(checkpoint: Path, tmp_path: Path, head: str) -> None:
    tagger = make_tagger(checkpoint, subword_pooling="mean", head=head)
    save_tagger(
        tmp_path,
        tagger,
        make_tokenizer(),
        EncodingSettings(False, 96, prefix_tokens=(1,), suffix_tokens=(2, 3)),
    )
    loaded, tokenizer, settings = load_tagger(tmp_path)
    assert (loaded.subword_pooling, loaded.layer.tags, loaded.layer.head_name) == ("mean", TAGS, head)
    assert (settings, loaded.layer.dropout.p) == (EncodingSettings(False, 96, (1,), (2, 3)), 0.1)
    assert isinstance(loaded.layer.ner_head, SoftmaxHead) == (head == "softmax")
    assert not loaded.training
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    state, expected = loaded.state_dict(), tagger.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert tagger.decoder.config.num_labels == 2  # saving does not change the decoder's configuration
    low, _, _ = load_tagger(tmp_path, torch.bfloat16)
    assert {each.dtype for each in low.decoder.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in low.layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("subword_pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Bert"])
def test_transformers_class_gives_the_same_emissions(
    checkpoint: Path, tmp_path: Path, subword_pooling: str, family: str
) -> None:
    tagger, special_tokens = make_tagger(checkpoint, subword_pooling), ((), ())
    if family == "GPT2":
        config = GPT2Config(vocab_size=320, n_positions=256, n_embd=32, n_layer=1, n_head=2)
        tagger = Tagger(GPT2Model(config), tagger.layer, subword_pooling).eval()
    elif family == "Bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        tagger = Tagger(BertModel(BertConfig(vocab_size=320, **sizes)), tagger.layer, subword_pooling).eval()
        special_tokens = ((1,), (2, 3))
    settings = EncodingSettings(True, 128, *special_tokens)
    save_tagger(tmp_path, tagger, make_tokenizer(), settings)
    model, report = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == f"{family}ForTokenClassification"
    assert not any(report.values())  # no missing and no unexpected weights
    assert model.config.label2id == {tag: number for number, tag in enumerate(TAGS)}
    sentences = labelled(4, 9)
    word_tokenizer = settings.word_tokenizer(make_tokenizer())
    encoded = encode(sentences, word_tokenizer, 128, TAGS, split=False)
    emissions = tagger.layer.linear(word_features(tagger, encoded, 2)).detach()
    found = []
    for sentence in sentences:
        by_word = word_tokenizer(sentence.words)
        with torch.no_grad():
            ids = [subword for word in by_word for subword in word.ids]
            logits = model(torch.tensor([[*special_tokens[0], *ids, *special_tokens[1]]])).logits[0]
        sizes = [len(each.ids) for each in by_word]
        of_words = logits[len(special_tokens[0]) :][: sum(sizes)].split(sizes)
        found += [
            {"first": each[0], "last": each[-1], "mean": each.mean(0)}[subword_pooling] for each in of_words
        ]
    torch.testing.assert_close(torch.stack(found), emissions, rtol=1e-4, atol=1e-4)


def test_damaged_folders_are_rejected(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a tagger folder"):
        load_tagger(checkpoint)
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    values = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(values | {"tagger": {"head": "crf"}}), encoding="utf-8")
    with pytest.raises(UserError, match="damaged tagger"):
        load_tagger(broken)
    (tmp_path / "model.safetensors").write_bytes(b"not one")
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base_model(tmp_path)
