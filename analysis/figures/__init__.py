"""Figures as SVG and PDF: style, rendering, and the figures that several sections share."""
