"""Textual inversion of Stable Diffusion on clusters of plain CPU servers."""

__version__ = "0.2.0"
