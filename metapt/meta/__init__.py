"""Adaptation on copies of parameters, and the two objectives."""
