"""Tensors on their way from graph to graph: on one GPU they stay there, everywhere else they pass as numpy arrays.

    flow = Flow(executors)
    embeddings = flow.run_device("prompt_encoder", prompts)               # stays where it was computed
    outputs = flow.run("mask_decoder", {**image, **embeddings}, wanted)   # comes to the host

Nobody has to ask where anything lies: a graph is given what it can read, and a copy is made only where it cannot read the
original.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from samrt_engines.device import DeviceArray
from samrt_engines.executor import DeviceExecutor, Executor
from samrt_engines.tensors import Array

Tensor = Array | DeviceArray
"""A numpy array, or an array that an executor left on its GPU."""

_DLPACK_CPU = 1  # of DLPack's device types


class Flow:
    """Graphs that feed each other. Holds nothing but their executors, so any number of threads may use it at once."""

    def __init__(self, executors: Mapping[str, Executor]) -> None:
        self._executors = executors
        # Asked once: a check against a protocol looks up every one of its members.
        self._on_gpu: dict[str, DeviceExecutor] = {
            name: executor
            for name, executor in executors.items()
            if executor.device.startswith("cuda") and isinstance(executor, DeviceExecutor)
        }

    def place(self, graph: str) -> str:
        """Where a graph leaves its results and finds its feeds without a copy: "cuda:N", or "cpu"."""
        return self._on_gpu[graph].device if graph in self._on_gpu else "cpu"

    def run(self, graph: str, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run a graph; the results come to the host. Feeds may lie anywhere. Otherwise as `Executor.run`."""
        if graph in self._on_gpu and not all(isinstance(feed, np.ndarray) for feed in feeds.values()):
            return {name: to_host(result) for name, result in self.run_device(graph, feeds, outputs).items()}
        return self._executors[graph].run({name: to_host(feed) for name, feed in feeds.items()}, outputs)

    def run_device(
        self, graph: str, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Run a graph and leave the results where they were computed: in numpy arrays unless that is a GPU.

        They are computed by the time this returns. Errors: see `Executor.run`.
        """
        executor = self._on_gpu.get(graph)
        if executor is None:
            return dict(self.run(graph, feeds, outputs))
        near = {name: feed if place_of(feed) == executor.device else to_host(feed) for name, feed in feeds.items()}
        return dict(executor.run_device(near, outputs))


class DeviceTensors(Mapping[str, Array]):
    """Tensors on a GPU that read like a mapping of numpy arrays: each is copied to the host when it is first read.

    Safe for threads. Pickled and deep-copied as what they read like: a dict of arrays on the host.
    """

    def __init__(self, arrays: Mapping[str, DeviceArray]) -> None:
        """arrays: on one GPU; they are held, so that their memory stays"""
        self.arrays = dict(arrays)
        """The tensors themselves, where they are."""
        self.device = place_of(next(iter(self.arrays.values())))
        self._host: dict[str, Array] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Array:
        array = self.arrays[name]
        with self._lock:
            if name not in self._host:
                copy = array.numpy()
                copy.flags.writeable = False
                self._host[name] = copy
            return self._host[name]

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __reduce__(self) -> tuple[type[dict[str, Array]], tuple[dict[str, Array]]]:
        return dict, (dict(self),)

    @property
    def nbytes(self) -> int:
        """Memory on the GPU, in bytes."""
        return sum(nbytes_of(array) for array in self.arrays.values())

    def rows(self, start: int, stop: int) -> DeviceTensors:
        """Items `start` to `stop` of every tensor's first axis: the same memory."""
        return DeviceTensors({name: array.rows(start, stop) for name, array in self.arrays.items()})


def readable(tensors: Mapping[str, Tensor]) -> Mapping[str, Array]:
    """A graph's results, all in one place, as read-only arrays: `DeviceTensors` where they are on a GPU."""
    arrays = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
    if len(arrays) < len(tensors):
        return DeviceTensors({name: tensor for name, tensor in tensors.items() if not isinstance(tensor, np.ndarray)})
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def place_of(tensor: Tensor) -> str:
    """Where a tensor's memory is: "cpu" or "cuda:N"."""
    if isinstance(tensor, np.ndarray):
        return "cpu"
    kind, index = tensor.__dlpack_device__()
    return "cpu" if kind == _DLPACK_CPU else f"cuda:{index}"


def to_host(tensor: Tensor) -> Array:
    """The tensor itself if it is a numpy array; else a copy on the host."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Items `start` to `stop` of a tensor's first axis; no copy."""
    return tensor[start:stop] if isinstance(tensor, np.ndarray) else tensor.rows(start, stop)


def nbytes_of(tensor: Tensor) -> int:
    """Memory a tensor takes, in bytes, read without a copy."""
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
