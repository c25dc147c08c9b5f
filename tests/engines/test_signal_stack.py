"""Signals are handled where Python wants them handled, whatever OpenVINO does meanwhile."""

import ctypes
import sys

import pytest

from samrt_engines.openvino import OpenVinoExecutor
from samrt_engines.signal_stack import _Stack, own_signal_stack

from .tiny_graphs import square

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signal stacks of Linux")


def current() -> tuple[int | None, int, int]:
    stack = _Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.flags, stack.size_bytes


def test_a_stack_that_a_block_sets_is_taken_back() -> None:
    before = current()
    memory = ctypes.create_string_buffer(65536)

    @own_signal_stack()
    def careless() -> None:
        other = _Stack(ctypes.addressof(memory), 0, len(memory))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(other), None) == 0
        assert current()[0] == ctypes.addressof(memory)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            careless()
        assert current() == before


def test_models_may_be_closed_in_any_order() -> None:
    pytest.importorskip("openvino")
    model = square()
    before = current()
    first, second = (OpenVinoExecutor(model, threads=1) for _ in range(2))
    assert current() == before
    first.close()
    second.close()
    assert current() == before
