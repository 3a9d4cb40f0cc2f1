"""Published results on the same evaluation sets, from published.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).resolve().parents[1] / "published.yaml"


@cache
def published_results() -> dict[str, Any]:
    """The content of published.yaml."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def published_scale_curve(sets: Sequence[str]) -> dict[str, Any] | None:
    """The published mean F1 by scale, if it is over exactly these sets."""
    curve = published_results()["scale_curve"]
    return curve if set(curve["sets"]) == set(sets) else None
