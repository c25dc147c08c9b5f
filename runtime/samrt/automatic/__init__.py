"""Automatic masks: everything in a picture, without prompts."""

from samrt.automatic.dropped import Dropped
from samrt.automatic.generator import AutomaticMaskGenerator

__all__ = ["AutomaticMaskGenerator", "Dropped"]
