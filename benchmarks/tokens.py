"""Made-up tokens for episodes."""

from __future__ import annotations

import numpy as np


class Tokens:
    """A token stream in memory."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.tokens[starts[:, None] + np.arange(length)]
