"""Fine-tuning a decoder as a named-entity tagger, scoring it, and what it is compared with."""
