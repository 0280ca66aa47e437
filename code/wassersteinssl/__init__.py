"""Shared code of the reproduction of "Rethinking the Uniformity Metric in Self-Supervised Learning" (ICLR 2024)."""

__version__ = "0.1.0"
