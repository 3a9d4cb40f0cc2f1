"""Span F1, bootstrap intervals, prediction files, and baselines. Imports no torch, so that the analysis can use it."""
