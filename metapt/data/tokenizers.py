"""The tokenizer of a corpus: trained on it, read from a file, or downloaded from the hub.

In each case the result is a `PreTrainedTokenizerFast` with an end-of-text and a mask token. It never encodes text as a
special token: the text `<|mask|>` becomes ordinary subwords (`split_special_tokens`, which is saved with the tokenizer,
so that it applies wherever the tokenizer is loaded).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from metapt.data.hub_files import download, tokenizer_files
from metapt.errors import UserError, first_line

EOS, MASK = "<|endoftext|>", "<|mask|>"
# Names of the two in other tokenizers, in the order in which they are searched among the special tokens.
KNOWN_EOS = (EOS, "<|end_of_text|>", "</s>", "<eos>")
KNOWN_MASK = (MASK, "<mask>", "[MASK]")
FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """The properties of a tokenizer that models and episodes use.

    size: largest token id + 1; sha256: of its tokenizer.json.
    """

    eos_id: int
    mask_id: int
    size: int
    name: str
    sha256: str


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016, on bytes as in GPT-2). Deterministic.

    Args:
        texts: documents; they are iterated over once.
        vocab_size: maximum number of entries, including end-of-text and mask; a small corpus may give fewer.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return with_special_tokens(backend, {})


def read_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer.json, the one in a folder, or that of a hub repository.

    Raises:
        UserError: it does not exist, or has no fast (Rust) version.
        OperationalError: the hub is not available.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return with_special_tokens(_read_json(path), {})
    if not path.is_dir() and is_path(name):
        raise UserError(
            f"data.tokenizer={name}: no such file; give a tokenizer.json, its folder, or the name of a hub repository"
        )
    if path.is_dir() and not (path / FILE).is_file():
        raise UserError(f"data.tokenizer={name}: this folder contains no {FILE}")
    folder = path if path.is_dir() else download(tokenizer_files(name))
    try:
        original = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"data.tokenizer={name}: cannot be loaded: {first_line(error)}") from error
    if not original.is_fast:
        raise UserError(f"data.tokenizer={name}: has no {FILE} (no fast tokenizer), so it cannot be used")
    roles = {
        role: str(token) for role, token in original.special_tokens_map.items() if isinstance(token, str)
    }
    return with_special_tokens(original.backend_tokenizer, roles)


def is_path(name: str) -> bool:
    """Whether a tokenizer is given by a file or a folder, and not by the name of a hub repository."""
    path = Path(name).expanduser()
    return path.exists() or path.suffix == ".json" or path.is_absolute() or name.startswith((".", "~"))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer in the folder of a corpus, of a checkpoint, or of `save_pretrained`.

    Raises:
        UserError: the folder contains none.
    """
    if not (Path(folder) / FILE).is_file():
        raise UserError(f"{folder}: contains no {FILE}")
    return AutoTokenizer.from_pretrained(folder)


def with_special_tokens(backend: Tokenizer, roles: dict[str, str]) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer; add an end-of-text and a mask token as new entries at its end if it lacks them.

    Args:
        backend: changed in place: truncation and padding are disabled.
        roles: known special tokens by their role in transformers (`eos_token`, ...).
    Raises:
        UserError: the tokenizer encodes the spelling of a special token as that special token.
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
            raise UserError(
                f"the tokenizer encodes the text {token} as its special token; use another tokenizer"
            )
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens. Multi-threaded; meant for batches."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # True: as ordinary text; some calls of transformers reset this
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, name: str) -> TokenizerInfo:
    """Save a tokenizer for `AutoTokenizer.from_pretrained(folder)`; return its properties."""
    tokenizer.save_pretrained(folder)
    return TokenizerInfo(
        eos_id=tokenizer.eos_token_id,
        mask_id=tokenizer.mask_token_id,
        size=vocabulary_size(tokenizer),
        name=name,
        sha256=hashlib.sha256((folder / FILE).read_bytes()).hexdigest(),
    )


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Largest token id + 1: the number of rows of the embedding."""
    return max(tokenizer.get_vocab().values()) + 1


def added_ids(name: str, folder: Path) -> list[int]:
    """The token ids of a model's tokenizer that the files in its folder lack, ascending.

    Args:
        name: of the tokenizer, as in `read_tokenizer`, which adds them.
    """
    file = folder / FILE
    original = _read_json(file) if file.is_file() else AutoTokenizer.from_pretrained(folder)
    return sorted(set(read_tokenizer(name).get_vocab().values()) - set(original.get_vocab().values()))


def content_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that determines the token ids; independent of where the tokenizer was loaded from."""
    text = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token, tokenizer.mask_token])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json: {first_line(error)}") from error
