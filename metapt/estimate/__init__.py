"""Estimates of the memory, FLOPs and time of a pretraining run before it starts. Imports no torch."""
