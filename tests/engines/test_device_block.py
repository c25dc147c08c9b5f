"""Memory that is written in place, on a simulated GPU: copies that run late, freed memory that is overwritten."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from samrt_engines import device as device_module
from samrt_engines import device_block as block_module
from samrt_engines.device import DeviceArray, memory_of
from samrt_engines.device_block import DeviceBlock
from samrt_engines.errors import DeviceError, TensorError
from samrt_engines.tensorrt import Cuda, CudaArray
from samrt_engines.tensorrt.dlpack import read_capsule
from samrt_engines.tensorrt.memory import Pool

from .driver_double import DriverDouble
from .tensorrt.doubles import CudaDouble


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> DriverDouble:
    double = DriverDouble(CudaDouble())
    for module in (device_module, block_module):
        monkeypatch.setattr(module, "load_cuda_driver", lambda: double)
    return double


class Foreign:
    """Somebody's array on the GPU, whose memory is somebody else's as soon as nobody holds it: as in ONNX Runtime."""

    def __init__(self, gpu: CudaDouble, values: np.ndarray[Any, Any], stream: int | None = None) -> None:
        self.block = gpu.new(values.nbytes)
        self.block.content[:] = np.frombuffer(values.tobytes(), np.uint8)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.block.address, False),
            "version": 3,
            "strides": None,
            "stream": stream,
        }

    def __del__(self) -> None:
        self.block.content[:] = 0xCD
        self.block.live = False


def values(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_it_begins_as_zeros(driver: DriverDouble) -> None:
    block = DeviceBlock((2, 3), np.float32, 0)
    assert isinstance(block, DeviceArray)
    assert (block.shape, block.dtype, block.nbytes, block.device) == ((2, 3), np.float32, 24, "cuda:0")
    assert repr(block) == "DeviceBlock(shape=(2, 3), dtype=float32, device='cuda:0')"
    np.testing.assert_array_equal(block.numpy(), np.zeros((2, 3), np.float32))


def test_parts_are_written_from_the_gpu_and_the_host(driver: DriverDouble) -> None:
    """Items, items of items, beginnings of items, rows, everything."""
    block = DeviceBlock((4, 3, 2), "float32", 0)
    expected = np.zeros((4, 3, 2), np.float32)
    item, pair, two = values(3, 2), values(1, 2, seed=1), values(2, 2, seed=2)
    block.write(Foreign(driver.gpu, item), 1)
    block.write(pair, 2, 1)
    block.write(Foreign(driver.gpu, two), 3)
    block.rows(0, 1).write(item.astype(np.float32))
    expected[1], expected[2, 1], expected[3, :2], expected[0] = item, pair[0], two, item
    assert driver.calls["cuStreamSynchronize"] == 0  # all of it is only queued
    np.testing.assert_array_equal(block.numpy(), expected)
    np.testing.assert_array_equal(block.part(3, 1).numpy(), expected[3, 1])
    np.testing.assert_array_equal(block.part(1).rows(1, 9).numpy(), expected[1, 1:])
    np.testing.assert_array_equal(block.rows(1, 3).part(1, 1).numpy(), expected[2, 1])
    assert block.rows(2, 2).numpy().shape == (0, 3, 2)
    other = DeviceBlock((3, 2), "float32", 0)
    other.write(block.part(1))
    np.testing.assert_array_equal(other.numpy(), item)
    assert driver.sizes["cuMemcpyDtoDAsync_v2"] == [24, 16, 24]
    assert driver.sizes["cuMemcpyHtoDAsync_v2"] == [8, 24]


def test_what_is_copied_from_is_held_until_the_copy_is_done(driver: DriverDouble) -> None:
    block = DeviceBlock((2, 3), np.float32, 0)
    source = Foreign(driver.gpu, values(2, 3))
    memory = source.block
    block.write(source)
    del source
    gc.collect()
    assert memory.live  # the copy has not run yet
    interface = block.rows(1, 2).__cuda_array_interface__  # whoever asks for the memory gets it complete
    assert not memory.live
    assert interface["stream"] is None
    found = driver.gpu.at(interface["data"][0], 12).view(np.float32)
    np.testing.assert_array_equal(found, values(2, 3)[1])
    waits = driver.calls["cuStreamSynchronize"]
    assert memory_of(block, "x", "graph").pointer == interface["data"][0] - 12
    assert driver.calls["cuStreamSynchronize"] == waits  # nothing was queued since


def test_results_of_tensorrt_are_copied_after_they_are_computed(driver: DriverDouble) -> None:
    """One that is settled waits for nothing; one that is computed on somebody's stream is waited for."""
    cuda = Cuda(driver.gpu)
    pool, stream = Pool(cuda), cuda.create_stream()
    for settled in (True, False):
        array = CudaArray(pool, (4,), "float32", stream)
        address = array.address
        driver.gpu.enqueue(stream, lambda to=address: driver.gpu.at(to, 16).view(np.float32).fill(7))
        if settled:
            cuda.synchronize(stream)
            array.settle()
        block = DeviceBlock((4,), np.float32, 0)
        block.write(array)
        del array
        assert block.numpy().tolist() == [7] * 4


def test_its_memory_is_freed_with_the_last_part(driver: DriverDouble) -> None:
    block = DeviceBlock((8, 64), np.float32, 0)
    block.write(Foreign(driver.gpu, values(64)), 3)
    part = block.part(3)
    capsule = part.__dlpack__()
    assert part.__dlpack_device__() == (2, 0)
    assert read_capsule(capsule)[1:3] == ((64,), np.float32)
    del block
    np.testing.assert_array_equal(part.numpy(), values(64))
    del part
    assert len(driver.live()) == 1
    del capsule
    assert driver.live() == []
    unread = DeviceBlock((2,), np.float32, 0)
    unread.write(Foreign(driver.gpu, values(2)))
    del unread  # with a copy under way, which has to end first
    assert driver.live() == []
    driver.gpu.drain(driver.gpu.streams[0])
    assert (driver.depth, driver.retained) == (0, 0)


def test_values_that_do_not_fit(driver: DriverDouble) -> None:
    block = DeviceBlock((2, 3), np.float32, 0)
    message = r"a value does not fit into a block on cuda:0 \| got: float32 \(4,\) \| expected: float32, at most \(3,\)"
    with pytest.raises(TensorError, match=message):
        block.write(values(4), 0)
    with pytest.raises(TensorError, match=r"got: float16 \(3,\) \| expected: float32, at most \(3,\)"):
        block.write(values(3).astype(np.float16), 0)
    with pytest.raises(TensorError, match=r"a block on the GPU: input 'value' is not an array \| got: list"):
        block.write([1.0], 0)
    assert not block.numpy().any()


def test_failures_say_what_failed(driver: DriverDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.gpu.limit_bytes = 1000
    message = (
        r"allocating GPU memory failed in cuMemAlloc_v2 \| got: CUDA error 2 \| "
        r"fix: fewer objects at once, or free GPU memory: nvidia-smi"
    )
    with pytest.raises(DeviceError, match=message):
        DeviceBlock((1000,), np.float32, 0)
    block = DeviceBlock((10,), np.float32, 0)
    for name, doing in (("cuMemcpyHtoDAsync_v2", "copying to"), ("cuMemcpyDtoHAsync_v2", "copying from")):
        driver.failing = name
        with pytest.raises(DeviceError, match=rf"^{doing} GPU memory failed in {name} \| got: CUDA error 700$"):
            block.write(values(10)) if doing == "copying to" else block.numpy()
    driver.failing = "cuStreamSynchronize"
    with pytest.raises(DeviceError, match=r"^copying to GPU memory failed in cuStreamSynchronize"):
        memory_of(block, "x", "graph")
    driver.failing = "cuMemsetD8Async"
    with pytest.raises(DeviceError, match="allocating GPU memory failed in cuMemsetD8Async"):
        DeviceBlock((10,), np.float32, 0)
    gc.collect()
    driver.failing = "cuMemFree_v2"  # at the end of a process: not told
    del block
    assert (driver.depth, driver.retained) == (0, 0)
    monkeypatch.setattr(block_module, "load_cuda_driver", lambda: None)
    with pytest.raises(
        DeviceError, match=r"there is no CUDA driver to keep tensors on a GPU with \| fix: samrt doctor"
    ):
        DeviceBlock((1,), np.float32, 0)
