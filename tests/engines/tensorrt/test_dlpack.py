"""DLPack against numpy, which speaks it on the host: values, dtypes, and who frees what when."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from samrt_engines.tensorrt import dlpack


class Lender:
    """A numpy array's memory, lent by our exporter as host memory."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(self, **_: Any) -> object:
        address, shape, dtype = self.array.ctypes.data, self.array.shape, self.array.dtype
        return dlpack.export_capsule(address, shape, dtype, self.__dlpack_device__(), self)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,), (), (0, 7)])
def test_numpy_reads_what_we_export_and_we_what_numpy_exports(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    np.testing.assert_array_equal(np.from_dlpack(Lender(array)), array)
    address, found_shape, found_dtype, strides = dlpack.read_capsule(array.__dlpack__())
    assert (found_shape, found_dtype) == (array.shape, array.dtype)
    assert strides in (None, tuple(step // array.itemsize for step in array.strides))
    if array.size:
        assert address == array.ctypes.data


def test_strides_are_in_elements() -> None:
    array = np.zeros((4, 6), np.float32)[::2, ::3]
    capsule = array.__dlpack__()
    assert dlpack.read_capsule(capsule)[3] == (12, 3)


def test_the_owner_lives_as_long_as_the_consumer() -> None:
    lender = Lender(np.arange(4))
    alive = weakref.ref(lender)
    borrowed = np.from_dlpack(lender)
    del lender
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(borrowed, [0, 1, 2, 3])
    del borrowed
    gc.collect()
    assert alive() is None


def test_a_capsule_that_nobody_consumes_frees_its_owner() -> None:
    lender = Lender(np.arange(4))
    alive = weakref.ref(lender)
    capsule = lender.__dlpack__()
    dlpack.read_capsule(capsule)  # reading is not consuming
    del lender
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_a_consumed_capsule_is_refused() -> None:
    class Once:
        capsule = np.arange(3).__dlpack__()

        def __dlpack__(self, **_: Any) -> object:
            return self.capsule

        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

    np.from_dlpack(Once())
    with pytest.raises(ValueError, match="one that was consumed"):
        dlpack.read_capsule(Once.capsule)
