"""The ``with`` statement closes, whatever happens inside."""

import pytest

from samrt_engines.closing import ClosesItself


class Door(ClosesItself):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_with_closes_and_hides_no_error() -> None:
    door = Door()
    with door as inside:
        assert inside is door
        assert door.closed == 0
    assert door.closed == 1
    with pytest.raises(KeyError, match="inside"), door:
        raise KeyError("inside")
    assert door.closed == 2
