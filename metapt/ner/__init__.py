"""Fine-tuning a decoder as a named-entity tagger, and scoring it."""
