"""Fine-tuning a decoder or encoder as an NER tagger."""
