"""Tagging new text with a fine-tuned tagger."""
