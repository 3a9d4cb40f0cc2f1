"""The tokenizer of a corpus: trained here, read from a file, or taken from the hub.

Whatever its origin it ends up as one `PreTrainedTokenizerFast` that has an end-of-text and a mask token, and
that never makes any special token out of text: a document that spells `<|mask|>` gets the subwords of that
spelling (`split_special_tokens`, which is saved with the tokenizer and so holds for whoever loads it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from metapt.errors import UserError

EOS, MASK = "<|endoftext|>", "<|mask|>"
# What other tokenizers call the two; looked for in this order among a tokenizer's special tokens.
KNOWN_EOS = (EOS, "<|end_of_text|>", "</s>", "<eos>")
KNOWN_MASK = (MASK, "<mask>", "[MASK]")
FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """What models and episodes need to know of a tokenizer.

    `size` is one more than the largest id; `sha256` is of its tokenizer.json.
    """

    eos_id: int
    mask_id: int
    size: int
    name: str
    sha256: str


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016, on bytes as GPT-2 does), the same for the same texts.

    Args:
        texts: documents; they are read once.
        vocab_size: entries wanted, with end-of-text and mask; a small corpus may give fewer.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return complete(backend, {})


def read_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a tokenizer.json, of a folder that holds one, or of a hub repository.

    Raises:
        UserError: there is no such thing, or it has no fast (Rust) form.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return complete(_read_json(path), {})
    if not path.is_dir() and (path.suffix == ".json" or path.is_absolute() or name.startswith((".", "~"))):
        raise UserError(
            f"data.tokenizer={name}: no such file; give a tokenizer.json, its folder, or a hub name"
        )
    if path.is_dir() and not (path / FILE).is_file():
        raise UserError(f"data.tokenizer={name}: no {FILE} in this folder")
    try:
        original = AutoTokenizer.from_pretrained(name if not path.is_dir() else path)
    except (OSError, ValueError) as error:
        raise UserError(f"data.tokenizer={name}: cannot be loaded: {str(error).splitlines()[0]}") from error
    if not original.is_fast:
        raise UserError(f"data.tokenizer={name}: has no {FILE}, so cannot be used here")
    roles = {
        role: str(token) for role, token in original.special_tokens_map.items() if isinstance(token, str)
    }
    return complete(original.backend_tokenizer, roles)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a corpus, a checkpoint or `save_pretrained` put into a folder.

    Raises:
        UserError: there is none.
    """
    if not (Path(folder) / FILE).is_file():
        raise UserError(f"{folder}: no {FILE} here")
    return AutoTokenizer.from_pretrained(folder)


def complete(backend: Tokenizer, roles: dict[str, str]) -> PreTrainedTokenizerFast:
    """Wraps a tokenizer, and gives it what it lacks of end-of-text and mask, as new entries at its end.

    Args:
        backend: is changed: truncation and padding are taken off.
        roles: special tokens by role as transformers names them (`eos_token`, ...), where known.
    Raises:
        UserError: its own vocabulary spells out a special token, so text could be taken for one.
    """
    backend.no_truncation()
    backend.no_padding()
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    roles = dict(roles)
    for role, known, new in (("eos_token", KNOWN_EOS, EOS), ("mask_token", KNOWN_MASK, MASK)):
        roles.setdefault(role, next((token for token in known if token in special), new))
    backend.add_special_tokens([roles["eos_token"], roles["mask_token"]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True, **roles)
    reserved = {tokenizer.eos_token_id, tokenizer.mask_token_id}
    for token in (roles["eos_token"], roles["mask_token"]):
        if any(reserved & set(ids) for ids in encode(tokenizer, [token, f"a{token}b", f"a {token} b"])):
            raise UserError(f"the tokenizer makes its special token {token} out of text that spells it")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without any special token. Multi-threaded; meant for batches."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # "encode their spelling": transformers sets this back on some calls
    return [one.ids for one in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, name: str) -> TokenizerInfo:
    """Writes what `AutoTokenizer.from_pretrained(folder)` reads, and describes it."""
    tokenizer.save_pretrained(folder)
    return TokenizerInfo(
        eos_id=tokenizer.eos_token_id,
        mask_id=tokenizer.mask_token_id,
        size=vocabulary_size(tokenizer),
        name=name,
        sha256=hashlib.sha256((folder / FILE).read_bytes()).hexdigest(),
    )


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the largest id: the rows that an embedding needs."""
    return max(tokenizer.get_vocab().values()) + 1


def content_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Of everything that decides its ids: the same wherever the tokenizer came from."""
    text = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token, tokenizer.mask_token])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json: {str(error).splitlines()[0]}") from error
