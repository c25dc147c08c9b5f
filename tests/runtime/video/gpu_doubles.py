"""The model of `doubles`, with its graphs on a simulated GPU: TensorRT plans, or sessions as ONNX Runtime has them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from samrt.features import Features
from samrt.flow import readable
from samrt.images import as_rgb_uint8
from samrt.transforms import image_to_input
from samrt_engines import device as device_module
from samrt_engines import device_block as block_module
from samrt_engines.device import memory_of, wait_for_stream
from samrt_engines.tensorrt import (
    BuildOptions,
    Cuda,
    Flavour,
    Plan,
    PlanKey,
    Scratch,
    TensorRT,
    TensorRTExecutor,
)
from samrt_engines.tensorrt import executor as executor_module
from samrt_engines.tensors import Array, TensorSpec

from ...engines.driver_double import DriverDouble
from ...engines.tensorrt.doubles import POISON, CudaDouble, DataType, Graph, TensorRTDouble
from . import doubles

TYPES = {"float32": DataType.FLOAT, "int32": DataType.INT32}
IMAGE = TensorSpec("image", "float32", ("images", doubles.SIZE, doubles.SIZE, 3))


def image_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return doubles.image_tensors(feeds["image"])


class Machine:
    """A simulated GPU, and what is copied there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        self.gpu = CudaDouble()
        self.driver = DriverDouble(self.gpu)
        self.backend = backend
        self.trt = TensorRTDouble(self.gpu, {})
        self.cuda = Cuda(self.gpu)
        tensorrt = TensorRT(self.trt, Flavour.TENSORRT, self.trt.__version__)
        monkeypatch.setattr(executor_module, "open_cuda", lambda device: self.cuda)
        monkeypatch.setattr(executor_module, "load_tensorrt", lambda flavour: tensorrt)
        for module in (device_module, block_module):
            monkeypatch.setattr(module, "load_cuda_driver", lambda: self.driver)
        self.scratch = Scratch(self.cuda)
        self.downloads: list[int] = []
        """Bytes of each copy to the host that a session made."""

    def model(self, **options: Any) -> GpuModel:
        return GpuModel(self, **options)

    def open(self, name: str, graph: Any, run: Callable[[Mapping[str, Array]], dict[str, Array]]) -> Any:
        inputs = (IMAGE,) if name == "image_encoder" else graph.inputs
        if self.backend == "onnxruntime":
            return Session(self, name, inputs, graph.outputs, run)
        self.trt.graphs[name.encode()] = Graph(
            inputs={spec.name: (TYPES[spec.dtype], spec.shape) for spec in inputs},
            outputs={spec.name: (TYPES[spec.dtype], spec.shape) for spec in graph.outputs},
            profile={symbol: (one.min, one.opt, one.max) for symbol, one in graph.profiles.items()}
            or {"images": (1, 1, 1)},
            compute=lambda **feeds: run({key: array.copy() for key, array in feeds.items()}),
        )
        key = PlanKey.of(
            onnx_sha256="ab" * 32,
            flavour=Flavour.TENSORRT,
            version="11.4.0.106",
            gpu="Double 4090",
            capability="8.9",
            precision="fp32",
            profiles={},
            options=BuildOptions(),
        )
        return TensorRTExecutor(Plan(name.encode(), key), scratch=self.scratch, name=name)

    def copies(self, source: str, to: str) -> list[int]:
        """Sizes of the copies since `forget` between "host" and "gpu"."""
        found = [size for places, size in self.gpu.copies if places == (source, to)]
        name = {"hostgpu": "cuMemcpyHtoDAsync_v2", "gpuhost": "cuMemcpyDtoHAsync_v2", "gpugpu": "cuMemcpyDtoDAsync_v2"}
        found += self.driver.sizes.get(name[source + to], [])
        return found + (self.downloads if (source, to) == ("gpu", "host") else [])

    def forget(self) -> None:
        """Count copies anew."""
        self.driver.forget()
        self.downloads.clear()
        self.gpu.copies.clear()


class GpuModel(doubles.Model):
    """`doubles.Model` with all graphs on a GPU."""

    device = "cuda:0"

    def __init__(self, machine: Machine, **options: Any) -> None:
        super().__init__(**options)
        self.executors = {}
        for name, graph in self.manifest.graphs.items():
            compute = image_encoder if name == "image_encoder" else doubles.RUNS[name]
            self.executors[name] = machine.open(name, graph, self._counted(name, compute))

    def encode(self, image: Any) -> Features:
        image = as_rgb_uint8(image)
        small = image_to_input(image, self.manifest.numbers.image)[None]
        assert small.dtype == np.float32
        tensors = readable(self.executors["image_encoder"].run_device({"image": small}))
        return Features(tensors, (image.shape[:2],), self.digest, "double", "fp32")

    def _counted(self, name: str, compute: Callable[..., dict[str, Array]]) -> Callable[..., dict[str, Array]]:
        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            self.calls[name] += 1
            return compute(feeds)

        return run


class Session:
    """A `DeviceExecutor` as ONNX Runtime makes them: its results' memory is used again as soon as nobody holds them."""

    device, provider, precision = "cuda:0", "CUDAExecutionProvider", None

    def __init__(
        self,
        machine: Machine,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        run: Callable[[Mapping[str, Array]], dict[str, Array]],
    ) -> None:
        self.machine, self.name, self.inputs, self.outputs, self._run = machine, name, inputs, outputs, run

    def run_device(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, stream: int | None = None
    ) -> dict[str, Result]:
        return {name: Result(self.machine, array) for name, array in self.run(feeds, outputs).items()}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Reads what lies in memory right now, as a session's own stream does."""
        assert feeds.keys() == {spec.name for spec in self.inputs}
        memories = {name: memory_of(feed, name, self.name) for name, feed in feeds.items()}
        arrays = {}
        for name, memory in memories.items():
            if memory.on_gpu:
                size = math.prod(memory.shape) * memory.dtype.itemsize
                content = self.machine.gpu.at(memory.pointer, size, kinds=("device",))
                arrays[name] = content.view(memory.dtype).reshape(memory.shape).copy()
            else:
                arrays[name] = memory.owner
        if any(memory.on_gpu for memory in memories.values()):
            wait_for_stream(0, 0)
        made = self._run(arrays)
        return {name: np.ascontiguousarray(made[name], np.float32) for name in outputs or made}

    def close(self) -> None: ...

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None: ...


class Result:
    """An `OrtArray`, on the simulated GPU."""

    def __init__(self, machine: Machine, array: Array) -> None:
        self._machine, self._owner, self._offset = machine, Owner(machine.gpu, array), 0
        self.shape, self.dtype = array.shape, array.dtype

    def numpy(self) -> Array:
        size = math.prod(self.shape) * self.dtype.itemsize
        self._machine.downloads.append(size)
        found = self._machine.gpu.at(self._owner.block.address + self._offset, size)
        return np.array(found.view(self.dtype).reshape(self.shape))

    def rows(self, start: int, stop: int) -> Result:
        part = object.__new__(Result)
        part.__dict__ |= self.__dict__
        part.shape = (max(0, min(stop, self.shape[0]) - start), *self.shape[1:])
        part._offset += start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return part

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self._owner.block.address + self._offset, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 3, "strides": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        raise NotImplementedError


class Owner:
    """Memory that is overwritten when nobody holds it."""

    def __init__(self, gpu: CudaDouble, array: Array) -> None:
        self.block = gpu.new(array.nbytes)
        self.block.content[:] = np.frombuffer(array.tobytes(), np.uint8)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.block.content[:] = POISON
            self.block.live = False
