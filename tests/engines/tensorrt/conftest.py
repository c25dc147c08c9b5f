"""What the TensorRT tests share: the loaded TensorRT for RTX, which builds without a GPU."""

from __future__ import annotations

import importlib.util

import pytest

from samrt_engines.tensorrt import TensorRT, load_tensorrt


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    """TensorRT for RTX. Skips where its wheels are not installed."""
    for package in ("tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return load_tensorrt("rtx")
