"""What a narrow precision costs in masks, on nano and held-out pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from precision_cases import nano_specs, trained_case

from samrt import BundleError
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.masks import BARS, MaskAgreement, compare_masks, open_forms
from samrt_export.precision.narrow import narrow_form, planned_forms
from samrt_export.precision.typed import typed_graph


@pytest.fixture(scope="module")
def narrow_graphs(nano_bundle: Path) -> dict[str, dict[str, bytes]]:
    """Precision -> graph -> file."""
    files: dict[str, dict[str, bytes]] = {}
    for precision in ("fp16", "bf16"):
        for graph in ("image_encoder", "prompt_encoder", "mask_decoder"):
            case = trained_case(nano_bundle, graph)
            form = narrow_form(case.model, case.spec, precision, case.runs)
            files.setdefault(precision, {})[graph] = form.model.SerializeToString()
    encoder = nano_specs()["image_encoder"]
    (form, _), *_ = planned_forms(encoder, "int8")
    model = onnx_from_spec(encoder, form.module)
    quantised = narrow_form(model, encoder, "int8", reference_runs(encoder))
    files["int8"] = {"image_encoder": quantised.model.SerializeToString()}
    return files


def agreement(bundle: Path, files: dict[str, dict[str, bytes]], pictures: int) -> dict[str, MaskAgreement]:
    with (
        open_forms(bundle, "fp32") as reference,
        open_forms(bundle, "fp16", files["fp16"]) as fp16,
        open_forms(bundle, "bf16", files["bf16"]) as bf16,
        open_forms(bundle, "int8", files["int8"]) as int8,
    ):
        others = {"fp16": fp16, "bf16": bf16, "int8": int8}
        return {one.precision: one for one in compare_masks(reference, others, pictures)}


def check(found: dict[str, MaskAgreement]) -> None:
    print(*found.values(), sep="\n")
    assert BARS == {"fp16": (0.998, 0.98), "int8": (0.99, 0.0)}
    assert all(one.ok for one in found.values())
    assert found["fp16"].mean >= 0.9995
    assert found["bf16"].mean >= 0.997
    assert found["int8"].mean >= 0.997
    assert found["fp16"].smallest >= 0.98
    assert found["fp16"].changed <= found["bf16"].changed <= found["bf16"].prompts / 50
    # Narrow graphs did run: nothing is exactly fp32.
    assert all(one.mean < 1 for one in found.values())


def test_masks_of_narrow_graphs(nano_bundle: Path, narrow_graphs: dict[str, dict[str, bytes]]) -> None:
    found = agreement(nano_bundle, narrow_graphs, 12)
    assert found["fp16"].prompts > 70
    check(found)


@pytest.mark.slow
def test_masks_of_narrow_graphs_on_500_pictures(nano_bundle: Path, narrow_graphs: dict[str, dict[str, bytes]]) -> None:
    check(agreement(nano_bundle, narrow_graphs, 500))


def test_a_graph_that_answers_otherwise_misses_the_bars(nano_bundle: Path) -> None:
    case = trained_case(nano_bundle, "prompt_encoder")
    other = case.copy()
    for node in other.graph.node:  # every click a little off
        if node.op_type == "Sin":
            node.op_type = "Cos"
    files = {"prompt_encoder": typed_graph(other, "fp16", {}).SerializeToString()}
    with open_forms(nano_bundle, "fp32") as reference, open_forms(nano_bundle, "fp16", files) as broken:
        (found,) = compare_masks(reference, {"fp16": broken}, 3)
    assert not found.ok
    assert found.mean < 0.9
    assert found.to_json()["ok"] is False


def test_a_precision_that_the_bundle_lacks(nano_bundle: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"no graph of this precision \| got: fp16 \| expected: fp32"),
        open_forms(nano_bundle, "fp16"),
    ):
        pass
