"""Case particles: what Tagalog and Cebuano put before a name. Words are compared in lower case."""

from __future__ import annotations

from collections.abc import Sequence

RULE_PARTICLES = frozenset({"si", "ni"})  # before the name of a person
CASE_PARTICLES = frozenset({"si", "ni", "ang", "ng", "sa"})


def follows_particle(start: int, words: Sequence[str]) -> bool:
    """Whether the word directly before word `start` is a case particle."""
    return start > 0 and words[start - 1].lower() in CASE_PARTICLES
