"""Evaluation sets as columns of a table, in groups by what the set means for transfer."""

from __future__ import annotations

from ..load.collect import Collection

SOURCES = "source languages"


def grouped_sets(collection: Collection) -> dict[str, str]:
    """Return the group of each evaluation set, in the order of the columns: targets, other languages, the rest."""
    groups = {"target sets": collection.target_sets(), "other languages": collection.other_language_sets()}
    by_set = {name: group for group, names in groups.items() for name in names}
    return by_set | {name: SOURCES for name in collection.set_names() if name not in by_set}
