"""The NER tagger: its model, its CRF, how words become subwords, and its folder on disk."""
