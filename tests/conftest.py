"""What tests of several floors share: exports of the shipped model, one demo, and a cache folder that is nobody's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samrt_export.demo import DemoReport, run_demo
from samrt_export.export import ExportReport, export_model


def pytest_configure(config: pytest.Config) -> None:
    """One core for each of pytest-xdist's workers and what they start: on shared cores their thread pools wait for each other."""
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what samrt remembers about this machine out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def nano_export(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The shipped nano, exported once. Read only."""
    return export_model("nano", tmp_path_factory.mktemp("nano") / "bundle")


@pytest.fixture(scope="session")
def nano_bundle(nano_export: ExportReport) -> Path:
    """The folder of that export."""
    return nano_export.path


@pytest.fixture(scope="session")
def nano_fp16_export(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The shipped nano in fp16, exported once. Read only."""
    return export_model("nano", tmp_path_factory.mktemp("nano-fp16") / "bundle", precision="fp16")


@pytest.fixture(scope="session")
def nano_fp16_bundle(nano_fp16_export: ExportReport) -> Path:
    """The folder of that export."""
    return nano_fp16_export.path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    """What ``samrt demo`` did, once; nobody changes its folder."""
    return run_demo(tmp_path_factory.mktemp("demo") / "demo-out")
