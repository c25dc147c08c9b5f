"""What the export tests share: one export of the shipped model."""

from __future__ import annotations

from pathlib import Path

import pytest

from samrt_export.export import ExportReport, export_model


@pytest.fixture(scope="session")
def nano_export(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The shipped nano, exported once. Read only."""
    return export_model("nano", tmp_path_factory.mktemp("nano") / "bundle")


@pytest.fixture(scope="session")
def nano_bundle(nano_export: ExportReport) -> Path:
    """The folder of that export."""
    return nano_export.path
