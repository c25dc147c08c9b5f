"""Tensors between graphs, on a simulated GPU: the fake bundle's graphs are TensorRT plans there, and every copy is noted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samrt import Features, Model, Prompts
from samrt.bundle import Bundle, open_bundle
from samrt.flow import DeviceTensors, Flow, place_of, readable, rows
from samrt.opening import OpenGraph
from samrt_engines.errors import BackendError, TensorError
from samrt_engines.executor import Executor, open_executor
from samrt_engines.tensorrt import (
    BuildOptions,
    Cuda,
    CudaArray,
    Flavour,
    Plan,
    PlanKey,
    Scratch,
    TensorRT,
    TensorRTExecutor,
)
from samrt_engines.tensorrt import executor as executor_module

from ..engines.tensorrt.doubles import CudaDouble, DataType, Graph, TensorRTDouble

GRAPHS = ("image_encoder", "prompt_encoder", "mask_decoder")
TYPES = {"float32": DataType.FLOAT, "int32": DataType.INT32}
CLICK = Prompts(points=[[32, 24]], labels=[1])
EMBED_BYTES, MAP_BYTES = 4 * 3 * 16, 4 * 3 * 256  # of one picture's two tensors


class Machine:
    """A simulated GPU with TensorRT, and the fake bundle's plans on it."""

    def __init__(self, bundle: Bundle, executors: dict[str, Executor], monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = CudaDouble()
        self.bundle = bundle
        self.on_cpu = executors
        TensorRTDouble(self.gpu, {name.encode(): self._graph(name) for name in GRAPHS})
        double = TensorRTDouble.current
        self.cuda = Cuda(self.gpu)  # type: ignore[arg-type]
        tensorrt = TensorRT(double, Flavour.TENSORRT, double.__version__)  # type: ignore[arg-type]
        monkeypatch.setattr(executor_module, "open_cuda", lambda device: self.cuda)
        monkeypatch.setattr(executor_module, "load_tensorrt", lambda flavour: tensorrt)
        self.scratch = Scratch(self.cuda)

    def open(self, name: str) -> TensorRTExecutor:
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

    def model(self, on_gpu: tuple[str, ...] = GRAPHS) -> Model:
        executors = {name: self.open(name) if name in on_gpu else self.on_cpu[name] for name in GRAPHS}
        forms = {name: self.bundle.manifest.graphs[name].forms[0] for name in GRAPHS}
        return Model(self.bundle, {name: OpenGraph(executors[name], forms[name], None) for name in GRAPHS})

    def copies(self, source: str, to: str) -> list[int]:
        """Sizes of the copies that were made since the last question between "host" and "gpu", in order."""
        return [size for places, size in self.gpu.copies if places == (source, to)]

    def forget(self) -> None:
        self.gpu.copies.clear()

    def _graph(self, name: str) -> Graph:
        graph = self.bundle.manifest.graphs[name]
        return Graph(
            inputs={spec.name: (TYPES[spec.dtype], spec.shape) for spec in graph.inputs},
            outputs={spec.name: (TYPES[spec.dtype], spec.shape) for spec in graph.outputs},
            profile={symbol: (one.min, one.opt, one.max) for symbol, one in graph.profiles.items()},
            compute=lambda **feeds: self.on_cpu[name].run({key: array.copy() for key, array in feeds.items()}),
        )


@pytest.fixture
def machine(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    bundle = open_bundle(bundle_path)
    with ExitStack() as stack:
        files = {name: bundle.read_model(bundle.manifest.graphs[name].forms[0]) for name in GRAPHS}
        executors = {
            name: stack.enter_context(open_executor(file, backend="onnxruntime", device="cpu", threads=1))
            for name, file in files.items()
        }
        machine = Machine(bundle, executors, monkeypatch)
        yield stack.enter_context(closing(machine.scratch)) and machine


# Encode and decode


def test_nothing_comes_to_the_host_between_encode_and_decode(
    machine: Machine, model: Model, picture: np.ndarray
) -> None:
    with machine.model() as on_gpu:
        features = on_gpu.encode(picture)
        assert machine.copies("gpu", "host") == []
        assert machine.copies("host", "gpu") == [32 * 32 * 3 * 4]  # the picture
        assert features.device == "cuda:0"
        machine.forget()
        result = on_gpu.decode(features, CLICK)
        assert machine.copies("gpu", "host") == [4 * 4 * 256, 4 * 4, 4]  # masks, scores, object score
        assert sum(machine.copies("host", "gpu")) == 4 * (2 * 2 + 2 + 256 + 1)  # two points, labels, mask and its flag
        assert machine.copies("gpu", "gpu") == []
    expected = model.decode(model.encode(picture), CLICK)
    np.testing.assert_array_equal(result.mask_logits, expected.mask_logits)
    np.testing.assert_array_equal(result.scores, expected.scores)
    np.testing.assert_array_equal(result.object_scores, expected.object_scores)
    assert (result.provider, features.provider) == ("TensorRT", "TensorRT")


@pytest.mark.parametrize("count", [1, 3, 9])
def test_prompts_in_parts_copy_features_never(machine: Machine, model: Model, picture: np.ndarray, count: int) -> None:
    prompts = Prompts(points=np.linspace([2, 2], [60, 40], count)[:, None], labels=np.ones((count, 1)))
    with machine.model() as on_gpu:
        features = on_gpu.encode(picture)
        machine.forget()
        result = on_gpu.decode(features, prompts)
        assert sum(machine.copies("host", "gpu")) == count * 4 * (2 * 2 + 2 + 256 + 1)  # the prompts
        assert sum(machine.copies("gpu", "host")) == count * 4 * (4 * 256 + 4 + 1)  # the answers
    np.testing.assert_array_equal(result.masks, model.decode(model.encode(picture), prompts).masks)


def test_each_picture_of_a_batch_is_a_view(machine: Machine, model: Model, picture: np.ndarray) -> None:
    pictures = [picture, 255 - picture]
    prompts = Prompts(points=[[[8, 8]], [[40, 30]]], labels=[[1], [1]])
    single = [Prompts(points=prompts.points[index], labels=[1]) for index in range(2)]
    with machine.model() as on_gpu:
        features = on_gpu.encode(pictures)
        machine.forget()
        parts = list(features)
        assert machine.copies("gpu", "gpu") + machine.copies("gpu", "host") == []
        assert [part.nbytes for part in parts] == [EMBED_BYTES + MAP_BYTES] * 2
        base, second = (one.feeds("cuda:0")["high_res_feats_0"] for one in (features, parts[1]))
        assert isinstance(base, CudaArray)
        assert isinstance(second, CudaArray)
        assert second.address == base.address + MAP_BYTES
        del base
        together = on_gpu.decode(features, prompts)
        one_by_one = [on_gpu.decode(features, single[index], image_index=index) for index in range(2)]
        del features  # the parts hold the memory
        again = on_gpu.decode(parts[1], single[1])
        # Image 1 starts at a multiple of 192 bytes, which TensorRT does not take: it is moved, on the GPU.
        assert set(machine.copies("gpu", "gpu")) == {EMBED_BYTES}
    for index in range(2):
        alone = model.decode(model.encode(pictures[index]), single[index])
        np.testing.assert_array_equal(together[index].masks, alone.masks)
        np.testing.assert_array_equal(one_by_one[index].masks, alone.masks)
    np.testing.assert_array_equal(again.masks, together[1].masks)


def test_more_pictures_than_one_run_takes_are_joined_on_the_host(
    machine: Machine, model: Model, picture: np.ndarray
) -> None:
    pictures = [picture, 255 - picture, picture[::2, ::2]]
    with machine.model() as on_gpu:
        features = on_gpu.encode(pictures)
        assert (features.device, type(features.tensors)) == ("cpu", dict)
        result = on_gpu.decode(features[1], CLICK)
    with pytest.raises(ValueError, match="read-only"):
        features.tensors["image_embed"][:] = 0
    np.testing.assert_array_equal(result.masks, model.decode(model.encode(pictures[1]), CLICK).masks)


@pytest.mark.parametrize("on_gpu", [("image_encoder",), ("mask_decoder",), ("image_encoder", "mask_decoder"), ()])
def test_graphs_in_different_places(
    machine: Machine, model: Model, picture: np.ndarray, on_gpu: tuple[str, ...]
) -> None:
    with machine.model(on_gpu) as mixed:
        features = mixed.encode(picture)
        assert features.device == ("cuda:0" if len(on_gpu) == 2 else "cpu")
        result = mixed.decode(features, CLICK)
    np.testing.assert_array_equal(result.masks, model.decode(model.encode(picture), CLICK).masks)


# Features as data


def test_features_on_a_gpu_read_like_arrays(machine: Machine, model: Model, picture: np.ndarray) -> None:
    with machine.model() as on_gpu:
        features = on_gpu.encode(picture)
        expected = model.encode(picture)
        assert features.nbytes == expected.nbytes == EMBED_BYTES + MAP_BYTES
        assert list(features.tensors) == list(expected.tensors)
        assert len(features.tensors) == 2
        assert "image_embed" in features.tensors
        assert "masks" not in features.tensors
        assert machine.copies("gpu", "host") == []
        for _ in range(2):  # each is copied once
            for name, tensor in features.tensors.items():
                np.testing.assert_array_equal(tensor, expected.tensors[name])
        assert sorted(machine.copies("gpu", "host")) == [EMBED_BYTES, MAP_BYTES]
        with pytest.raises(ValueError, match="read-only"):
            features.tensors["image_embed"][:] = 0
        with pytest.raises(KeyError, match="masks"):
            features.tensors["masks"]


@pytest.mark.parametrize(
    "travel",
    [
        lambda features: pickle.loads(pickle.dumps(features)),
        copy.deepcopy,
        Features.to_host,
        lambda features: pickle.loads(pickle.dumps(features[0])),
    ],
)
def test_features_that_travel_are_on_the_host(
    machine: Machine, model: Model, picture: np.ndarray, travel: Callable[[Features], Features]
) -> None:
    with machine.model() as on_gpu:
        there = on_gpu.encode(picture)
        here = travel(there)
        assert (here.device, type(here.tensors), here.image_hw) == ("cpu", dict, there.image_hw)
        assert here.to_host() is here
        del there
        machine.forget()
        expected = model.decode(model.encode(picture), CLICK).masks
        np.testing.assert_array_equal(on_gpu.decode(here, CLICK).masks, expected)  # uploaded
        assert MAP_BYTES in machine.copies("host", "gpu")
        np.testing.assert_array_equal(model.decode(here, CLICK).masks, expected)


def test_a_model_on_the_cpu_takes_features_of_one_on_a_gpu(machine: Machine, model: Model, picture: np.ndarray) -> None:
    with machine.model() as on_gpu:
        features = on_gpu.encode(picture)
        machine.forget()
        for _ in range(2):
            result = model.decode(features, CLICK)
        assert sorted(machine.copies("gpu", "host")) == [EMBED_BYTES, MAP_BYTES]
    np.testing.assert_array_equal(result.masks, model.decode(model.encode(picture), CLICK).masks)


def test_features_outlive_a_model_on_a_gpu_and_then_free_its_memory(
    machine: Machine, model: Model, picture: np.ndarray
) -> None:
    with machine.model() as on_gpu:
        features = on_gpu.encode(picture)
        part = features[0]
    with pytest.raises(BackendError, match="closed"):
        on_gpu.decode(features, CLICK)
    expected = model.encode(picture).tensors["image_embed"]
    np.testing.assert_array_equal(features.tensors["image_embed"], expected)
    machine.scratch.close()
    del features
    np.testing.assert_array_equal(part.tensors["image_embed"], expected)
    assert machine.gpu.live_bytes() == rounded(EMBED_BYTES) + rounded(MAP_BYTES)
    del part
    machine.cuda.synchronize(0)
    assert machine.gpu.live_bytes() == 0


def rounded(size: int) -> int:
    return -(-size // 256) * 256


def test_many_threads_read_and_decode_the_same_features(machine: Machine, model: Model, picture: np.ndarray) -> None:
    expected = model.encode(picture)
    masks = model.decode(expected, CLICK).masks
    with machine.model() as on_gpu, ThreadPoolExecutor(4) as pool:
        features = on_gpu.encode(picture)
        machine.forget()

        def work(_: int) -> None:
            np.testing.assert_array_equal(features.tensors["image_embed"], expected.tensors["image_embed"])
            np.testing.assert_array_equal(on_gpu.decode(features, CLICK).masks, masks)

        list(pool.map(work, range(16)))
        assert machine.copies("gpu", "host").count(EMBED_BYTES) == 1


# The piece itself


def test_a_chain_of_graphs_by_hand(machine: Machine) -> None:
    """What feeds a graph may be on the host, on its GPU, or on another one."""
    encoder, decoder = machine.open("image_encoder"), machine.open("mask_decoder")
    flow = Flow({"encoder": encoder, "decoder": decoder, "cpu": machine.on_cpu["mask_decoder"]})
    assert [flow.place(name) for name in ("encoder", "decoder", "cpu")] == ["cuda:0", "cuda:0", "cpu"]
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    embeddings = {
        "sparse_embeddings": np.ones((1, 2, 3), np.float32),
        "dense_embeddings": np.zeros((1, 1, 16, 16), np.float32),
    }
    there = flow.run_device("encoder", {"image": image}, ["high_res_feats_0", "image_embed"])
    assert [(name, place_of(tensor)) for name, tensor in there.items()] == [
        ("high_res_feats_0", "cuda:0"),
        ("image_embed", "cuda:0"),
    ]
    elsewhere = {name: Elsewhere(tensor) for name, tensor in there.items()}
    expected = machine.on_cpu["mask_decoder"].run(
        {**machine.on_cpu["image_encoder"].run({"image": image}), **embeddings}
    )
    for graph in ("decoder", "cpu"):
        for images in (there, elsewhere, flow.run("encoder", {"image": image})):
            result = flow.run(graph, {**images, **embeddings}, ["low_res_masks"])
            assert list(result) == ["low_res_masks"]
            np.testing.assert_array_equal(result["low_res_masks"], expected["low_res_masks"])
    on_cpu = flow.run_device("cpu", {**there, **embeddings})
    assert all(isinstance(tensor, np.ndarray) for tensor in on_cpu.values())
    with pytest.raises(TensorError, match="the inputs are not the graph's"):
        flow.run_device("decoder", there)
    for executor in (encoder, decoder):
        executor.close()


class Elsewhere:
    """A tensor as it is on a second GPU, which the first does not read."""

    def __init__(self, tensor: Any) -> None:
        self.shape, self.dtype, self.numpy = tensor.shape, tensor.dtype, tensor.numpy

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1


def test_on_the_host_results_are_arrays_that_cannot_be_written_to() -> None:
    tensors = readable({"a": np.arange(6).reshape(3, 2)})
    assert isinstance(tensors, dict)
    assert not tensors["a"].flags.writeable
    assert rows(tensors["a"], 1, 2).tolist() == [[2, 3]]  # type: ignore[union-attr]
    assert np.shares_memory(rows(tensors["a"], 1, 2), tensors["a"])  # type: ignore[arg-type]


def test_parts_of_parts(machine: Machine) -> None:
    encoder = machine.open("image_encoder")
    image = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    tensors = readable(Flow({"encoder": encoder}).run_device("encoder", {"image": image}))
    assert isinstance(tensors, DeviceTensors)
    last = tensors.rows(0, 2).rows(1, 9).rows(0, 1)
    np.testing.assert_array_equal(last["image_embed"], tensors["image_embed"][1:])
    assert last.nbytes == tensors.nbytes / 2
    encoder.close()
