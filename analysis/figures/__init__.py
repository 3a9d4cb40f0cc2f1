"""Figures as SVG and PDF: their style, how they are drawn, and the curves."""
