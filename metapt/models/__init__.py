"""Decoders, their losses, and the tagger on top of one."""
