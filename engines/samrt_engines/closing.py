"""The ``with`` statement for what has a `close`."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class ClosesItself:
    """Makes a class a context manager that closes itself. Closing twice has to be fine."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
