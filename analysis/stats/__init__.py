"""Pairs of runs, differences with intervals, convergence times."""
