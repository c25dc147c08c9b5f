"""Automatic masks: everything in a picture, without prompts."""

from samrt.automatic.generator import AutomaticMaskGenerator

__all__ = ["AutomaticMaskGenerator"]
