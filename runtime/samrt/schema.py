"""Reading untrusted JSON: a cursor that knows where it stands, so that every complaint names the place.

    Cursor(document, "").key("graphs").key("image_encoder").key("forms").items()[0].key("sha256").text()

complains about ``graphs.image_encoder.forms[0].sha256``, says what was found there and what was expected.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from samrt_engines.errors import ManifestError

_FIX = "export the bundle again, or restore the file from where it came"
_MISSING = object()


def parse_json(text: bytes, name: str) -> Any:
    """Parse strict JSON: UTF-8, no repeated key, no NaN or Infinity, no nesting beyond the interpreter's.

    Raises ManifestError.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ManifestError(f"cannot read {name}", got="JSON nested too deeply", fix=_FIX) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise ManifestError(f"cannot read {name}", got=f"{error}", expected="JSON in UTF-8", fix=_FIX) from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        repeated = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {_shown(repeated)} stands twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the constant {name}")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A JSON value and where it stands. Every method returns the checked value or raises ManifestError."""

    value: Any
    where: str

    def fail(self, expected: str, fix: str = _FIX) -> NoReturn:
        place = f"manifest.json: {self.where}" if self.where else "manifest.json"
        raise ManifestError(place, got=_shown(self.value), expected=expected, fix=fix)

    def keys(self, known: Sequence[str] | None = None) -> tuple[str, ...]:
        """The keys of an object; with `known`, no others are allowed."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        for key in self.value:
            if known is not None and key not in known:
                self._at(key, self.value[key]).fail(f"no such key; known here: {', '.join(known)}")
        return tuple(self.value)

    def has(self, key: str) -> bool:
        return key in self.keys()

    def key(self, key: str) -> "Cursor":
        self.keys()
        return self._at(key, self.value.get(key, _MISSING))

    def items(self, least: int = 0, most: int = 4096) -> "list[Cursor]":
        """The elements of an array."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            self.fail(f"an array of {least if least == most else f'{least} to {most}'} elements")
        return [Cursor(value, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def children(self, pattern: str = r"[\w.-]{1,100}") -> "dict[str, Cursor]":
        """The members of an object whose keys are free, each key matching `pattern`."""
        for key in self.keys():
            if not re.fullmatch(pattern, key):
                self.fail(f"keys that match {pattern}, not {_shown(key)}")
        return {key: self._at(key, value) for key, value in self.value.items()}

    def text(self, pattern: str | None = None, choices: Sequence[str] | None = None, most: int = 1000) -> str:
        if not isinstance(self.value, str):
            self.fail("a text" if choices is None else " or ".join(map(repr, choices)))
        if choices is not None and self.value not in choices:
            self.fail(" or ".join(map(repr, choices)))
        if pattern is not None and not re.fullmatch(pattern, self.value):
            self.fail(f"a text that matches {pattern}")
        if len(self.value) > most:
            self.fail(f"a text of at most {most} characters")
        return self.value

    def integer(self, least: int, most: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not least <= self.value <= most:
            self.fail(f"a whole number from {least} to {most}")
        return self.value

    def number(self, least: float = -math.inf, most: float = math.inf) -> float:
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            self.fail("a number")
        # 1e999 is valid JSON and reads as infinity; a whole number may be too large for a float.
        if abs(self.value) > 1e300 or not least <= self.value <= most:
            bounded = math.isfinite(least) or math.isfinite(most)
            self.fail(f"a number from {least} to {most}" if bounded else "a finite number")
        return float(self.value)

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def is_null(self) -> bool:
        return self.value is None

    def _at(self, key: str, value: Any) -> "Cursor":
        return Cursor(value, f"{self.where}.{key}" if self.where else key)


def _shown(value: Any) -> str:
    """A value as a message shows it: short, printable, nothing for a missing one."""
    if value is _MISSING:
        return "nothing"
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys"
    if isinstance(value, list):
        return f"an array of {len(value)} elements"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a whole number of more than 60 digits"
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
