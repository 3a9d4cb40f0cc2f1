"""Pairs of runs and their differences with intervals, matched budgets, convergence speed."""
