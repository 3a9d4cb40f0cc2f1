"""A token stream in memory, for episodes of random tokens."""

from __future__ import annotations

import numpy as np


class Tokens:
    """Has the method of a TokenStream that episodes need."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.tokens[starts[:, None] + np.arange(length)]
