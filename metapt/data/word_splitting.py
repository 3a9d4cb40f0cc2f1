"""Split running text into words and keep their positions.

At each position the first of these rules that matches gives the longest possible word:

- a single ideograph (a run of Han characters has no word boundaries; pass words instead of text to tag Chinese words);
- initials: two or more single letters, each followed by a full stop (U.S., J.R.R.);
- letters, marks, digits and underscores; a hyphen or an apostrophe between two of them, and a full stop, comma or colon
  between two digits, belong to the word (nag-aaral, O'Brien, 3.14, 10:30);
- any other character (grapheme cluster), repeated any number of times (..., !!, --).

White space separates words and belongs to none; every other character belongs to exactly one word.
"""

from __future__ import annotations

import regex

SPACE = r"[\s\x1c-\x1f]"  # what str.split() treats as white space
LETTER = r"[\p{L}\p{M}\p{N}\p{Cf}_--\p{Ideographic}]"
WORD = regex.compile(
    rf"""\p{{Ideographic}}\p{{M}}*
    | (?:\p{{L}}\.){{2,}}
    | {LETTER}(?:{LETTER}|[-\u2010\u2011'\u2019](?={LETTER})|(?<=\d)[.,:](?=\d))*
    | ((?!{SPACE})\X)\1*""",
    regex.VERBOSE | regex.VERSION1,
)


def word_offsets(text: str) -> list[tuple[int, int]]:
    """Return begin and end of each word of a text, in characters, from left to right."""
    return [match.span() for match in WORD.finditer(text)]
