"""Fine-tuning a decoder or encoder as a NER tagger."""
