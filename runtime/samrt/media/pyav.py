"""PyAV, imported where it is used, and its errors in words."""

from __future__ import annotations

from types import ModuleType

from samrt_engines.errors import MissingExtraError


def import_av(purpose: str) -> ModuleType:
    """PyAV's module. `purpose` reads after "is needed": "to read clip.mp4". Raises MissingExtraError."""
    try:
        import av
    except ImportError as error:
        raise MissingExtraError.for_package("av", extra="video", purpose=purpose) from error
    return av


def reason(error: Exception) -> str:
    """What an error of FFmpeg says, without its number and the file's name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)
