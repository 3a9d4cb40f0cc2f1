"""Names of the baseline taggers and what each does. metapt/evaluation/baselines.py implements them.

Imports nothing, because both the configuration and the report (which runs without the training extra) need the names.
"""

from __future__ import annotations

RULE_BASELINES = {
    "particle": "the word after si or ni is a person",
    "particle_kay": "the word after si, ni, kay or kang is a person",
    "particle_phrase": "the capitalised words after si or ni are a person; titles between (Mayor, Gng.) are skipped",
    "capitals": "each run of capitalised words is a person, the first word of a sentence excepted",
}
TRAINED_BASELINES = {
    "majority": "each word gets its most frequent tag in the training set",
    "crf": "linear-chain CRF on surface features of the words",
}
BASELINE_NAMES = RULE_BASELINES | TRAINED_BASELINES
