"""The NER tagger: model, CRF, words to subwords, prediction, and saving to disk."""
