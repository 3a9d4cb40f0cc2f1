"""Running text to words, with their places in it.

A word is the first of these that fits at its place, as long as it goes:

- a single ideograph (Han; whoever has Chinese in words gives words, since a run of ideographs has no borders);
- initials: two or more single letters, each with a full stop (U.S., J.R.R.);
- letters, marks, digits and underscores; a hyphen or an apostrophe between two of them, and a full stop, comma or colon
  between two digits, belong to the word (nag-aaral, O'Brien, 3.14, 10:30);
- any other character (grapheme cluster) as often as it is repeated (..., !!, --).

White space stands between words and belongs to none; everything else belongs to exactly one.
"""

from __future__ import annotations

import regex

SPACE = r"[\s\x1c-\x1f]"  # what str.split() takes for white space
LETTER = r"[\p{L}\p{M}\p{N}\p{Cf}_--\p{Ideographic}]"
WORD = regex.compile(
    rf"""\p{{Ideographic}}\p{{M}}*
    | (?:\p{{L}}\.){{2,}}
    | {LETTER}(?:{LETTER}|[-\u2010\u2011'\u2019](?={LETTER})|(?<=\d)[.,:](?=\d))*
    | ((?!{SPACE})\X)\1*""",
    regex.VERBOSE | regex.VERSION1,
)


def word_offsets(text: str) -> list[tuple[int, int]]:
    """Begin and end of each word of a text, in characters, from left to right."""
    return [match.span() for match in WORD.finditer(text)]
