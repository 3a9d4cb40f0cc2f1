"""Case particles of Tagalog and Cebuano, which precede names. Words are compared in lower case."""

from __future__ import annotations

from collections.abc import Sequence

RULE_PARTICLES = frozenset({"si", "ni"})  # precede names of persons
CASE_PARTICLES = frozenset({"si", "ni", "ang", "ng", "sa"})


def follows_particle(start: int, words: Sequence[str]) -> bool:
    """Whether the word directly before word number `start` is a case particle."""
    return start > 0 and words[start - 1].lower() in CASE_PARTICLES
