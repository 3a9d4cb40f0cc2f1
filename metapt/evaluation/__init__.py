"""Span F1, bootstrap intervals, prediction files, and the baselines. Imports no torch; the analysis uses this package."""
