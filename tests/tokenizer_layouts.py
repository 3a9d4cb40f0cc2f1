"""Tokenizers in the layouts of published models, small enough to be built in a test from the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from metapt.data.tokenizers import train_tokenizer

TEXT = ["Maria and Juan Cruz went to Cebu City .", "the market of Cebu ; Juan met Maria ."] * 20
KNOWN = ("Maria", "Juan", "Cruz", "Cebu", "City", "the", "market")
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def gpt2() -> Tokenizer:
    """Byte-level BPE without a space at the start; offsets include the space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _train_bytes(tokenizer)


def roberta() -> Tokenizer:
    """Byte-level BPE that adds a space to every text; offsets exclude it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return _train_bytes(tokenizer)


def llama3() -> Tokenizer:
    """Byte-level BPE after a split by a regular expression."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _train_bytes(tokenizer)


def llama2() -> Tokenizer:
    """BPE on characters with bytes as a fallback; the normalizer puts a space before every text."""
    tokenizer = _character_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def mistral() -> Tokenizer:
    """The same vocabulary; the pre-tokenizer puts a space before the text."""
    tokenizer = _character_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def xlm_roberta() -> Tokenizer:
    """SentencePiece Unigram, NFKC, a space before every word."""
    tokenizer = _unigram()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return tokenizer


def t5() -> Tokenizer:
    """SentencePiece Unigram with bytes as a fallback."""
    tokenizer = _unigram(byte_fallback=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def bert() -> Tokenizer:
    """WordPiece, which splits every Chinese character from its neighbours."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]"], initial_alphabet=["京", "在"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def own() -> Tokenizer:
    """The project's own byte-level BPE (`data.tokenizer=train`)."""
    return train_tokenizer([" " + text for text in TEXT], 400).backend_tokenizer


LAYOUTS: dict[str, Callable[[], Tokenizer]] = {
    build.__name__: build for build in (gpt2, roberta, llama3, llama2, mistral, xlm_roberta, t5, bert, own)
}


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers uses it, with an end-of-text token."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="</s>")


def _train_bytes(tokenizer: Tokenizer) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" " + text for text in TEXT], trainer)
    return tokenizer


def _character_bpe() -> Tokenizer:
    """The known words with ▁ as single subwords, one Chinese character, and all bytes."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    merges: list[tuple[str, str]] = []
    entries = [f"<0x{byte:02X}>" for byte in range(256)] + ["京"]
    for word in KNOWN:
        prefixes = [f"▁{word}"[:end] for end in range(1, len(word) + 2)]
        entries += [*f"▁{word}", *prefixes]
        merges += [(left, right[-1]) for left, right in pairwise(prefixes)]
    for entry in entries:
        vocabulary.setdefault(entry, len(vocabulary))
    return Tokenizer(
        models.BPE(
            vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )


def _unigram(byte_fallback: bool = False) -> Tokenizer:
    letters: Sequence[str] = sorted({"▁", "京", *"".join(KNOWN)})
    entries = [("<unk>", 0.0), *((letter, -6.0) for letter in letters)]
    entries += [(f"▁{word}", -3.0) for word in KNOWN]
    if byte_fallback:
        entries += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    return Tokenizer(models.Unigram(entries, unk_id=0, byte_fallback=byte_fallback))
