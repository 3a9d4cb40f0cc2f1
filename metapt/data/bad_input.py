"""Malformed input: refused, or left out and counted."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from metapt.errors import UserError, listed

HINT = "; correct it, or skip malformed input with data.on_bad_input=skip"
# Names of files and folders that are never input.
DOCUMENTATION = re.compile(
    r"(readme|licen[cs]es?|copying|notice|citation|authors|changelog|sha256sums)\b", re.IGNORECASE
)
LISTED = 5  # places that a summary names


@dataclass
class BadInput:
    """Handles malformed input: stops with an error (policy `refuse`), or skips and counts it (policy `skip`).

    Attributes:
        hint: what the reader of an error can do; the end of its message.
        skipped: number of pieces by reason. With the policy `refuse` it contains only what is never an error, such as
            hidden files.
        locations: where the first LISTED pieces were.
    """

    policy: str
    hint: str = HINT
    skipped: Counter[str] = field(default_factory=Counter)
    locations: list[str] = field(default_factory=list)

    def report(self, location: str, reason: str) -> None:
        """Handle one piece of malformed input.

        Raises:
            UserError: the policy is `refuse`.
        """
        if self.policy == "refuse":
            raise UserError(f"{location}: {reason}{self.hint}")
        self.count(location, reason)

    def count(self, location: str, reason: str) -> None:
        """Count a piece that is left out with any policy."""
        self.skipped[reason] += 1
        if len(self.locations) < LISTED:
            self.locations.append(location)

    def summary(self) -> str:
        """What was left out, why and where first; empty if nothing was."""
        if not self.skipped:
            return ""
        reasons = listed([f"{reason} ({count})" for reason, count in self.skipped.most_common()], LISTED)
        return f"left out {self.skipped.total()}: {reasons}; at {listed(self.locations, LISTED)}"


def refusing() -> BadInput:
    """Refuse malformed input without mentioning a key, for commands that have none."""
    return BadInput("refuse", hint="")
