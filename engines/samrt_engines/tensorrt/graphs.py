"""CUDA graphs: the kernels of one run, noted down once per shape and launched together from then on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from samrt_engines.tensorrt.cuda import Cuda

MOST_GRAPHS = 16
"""Of one executor. The one that was not used for longest goes first."""


class CapturedGraphs:
    """The graphs of one executor. Not safe for threads: the executor holds its lock.

    A key has to name everything that a graph has noted down: shapes and addresses. The first run with a key is an
    ordinary one, since what TensorRT sets up on a first run may not be captured; the second is captured.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.create_stream()
        self._graphs: OrderedDict[Hashable, int | None] = OrderedDict()  # None: ran once

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, key: Hashable, stream: int, enqueue: Callable[[int], None]) -> None:
        """Do what `enqueue(stream)` does, from a graph where there is one."""
        if key not in self._graphs:
            enqueue(stream)
            self._keep(key, None)
            return
        graph = self._graphs[key]
        if graph is None:
            graph = self._capture(enqueue)
            self._graphs[key] = graph
        self._graphs.move_to_end(key)
        self._cuda.launch_graph(graph, stream)

    def close(self) -> None:
        while self._graphs:
            self._forget()
        self._cuda.destroy_stream(self._stream)

    def _capture(self, enqueue: Callable[[int], None]) -> int:
        """On a stream of its own: the default stream cannot be captured, and a graph may be launched on any."""
        self._cuda.begin_capture(self._stream)
        try:
            enqueue(self._stream)
        except BaseException:
            self._cuda.drop_capture(self._stream)
            raise
        return self._cuda.end_capture(self._stream)

    def _keep(self, key: Hashable, graph: int | None) -> None:
        while len(self._graphs) >= MOST_GRAPHS:
            self._forget()
        self._graphs[key] = graph

    def _forget(self) -> None:
        """A graph that still runs is destroyed by CUDA when it is done."""
        _, graph = self._graphs.popitem(last=False)
        if graph is not None:
            self._cuda.destroy_graph(graph)
