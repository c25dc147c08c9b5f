"""SAM 3D Objects at full size, graph by graph, on a machine without a GPU: parity in fp32, an fp16 build, a card's memory.

    python benchmarks/sam3d_full_size.py --out benchmarks/results/sam3d_full_size.json [--graphs slat_gs slat_mesh_up]

Live random weights. Every fp32 form is compared with its PyTorch module at both sets of sizes that an export uses. The form for
GPUs is written in fp16 with nothing kept in fp32 but what has no narrow form, and built through TensorRT for RTX with the
profiles of the manifest; memory is counted from that form for an object of 27,000 voxels (`samrt_export.budget`). A whole
export with the search for fp32 nodes does all this too, and takes hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from samrt.bench.reconstruct import shell
from samrt.machine import cpu_name, usable_cores
from samrt.sparse import MAP_NAMES, SparseMaps
from samrt_engines import BuildError
from samrt_engines.tensorrt import BuildOptions, build_plan, load_tensorrt
from samrt_export.budget import budget
from samrt_export.external import openable, store
from samrt_export.families.sam3d import CONFIGS
from samrt_export.forms import checked_parity
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.narrow import choose
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec, find
from samrt_export.source import load_weights

MODEL = "sam3d-objects"
ORDER = (
    *("slat_mesh_attr", "slat_mesh_up", "slat_gs_4", "slat_gs", "slat_mesh_trunk"),
    *("slat_cond", "ss_decoder", "slat_flow", "ss_cond", "ss_flow", "dino"),
)
"""The quick ones first."""


def main() -> None:
    """Work through the graphs, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="rows of graphs that are there already are kept")
    parser.add_argument("--graphs", nargs="+", choices=ORDER, default=list(ORDER))
    parser.add_argument("--sm", default="86")
    parser.add_argument("--voxels", type=int, default=27000)
    options = parser.parse_args()
    machine = {"cpu": cpu_name(), "cores": usable_cores(), "platform": platform.platform()}
    document: dict[str, Any] = {"model": MODEL, "machine": machine, "tensorrt": str(load_tensorrt("rtx")), "rows": []}
    if options.out.exists():
        document["rows"] = json.loads(options.out.read_text())["rows"]
    family = find(MODEL)
    specs = {spec.name: spec for spec in family.graphs(load_weights(family, MODEL, random_seed=0).module, MODEL)}
    for name in options.graphs:
        row = measure(specs[name], object_sizes(options.voxels), options.sm)
        document["rows"] = [one for one in document["rows"] if one["graph"] != name] + [row]
        options.out.write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps(row), flush=True)


def object_sizes(voxels: int) -> dict[str, int]:
    """What an object of so many voxels makes of the graphs' symbols."""
    config = CONFIGS[MODEL]
    maps = SparseMaps.from_coords(shell(config.grid, voxels), grid=config.grid, window=config.decoder.window).feeds(
        MAP_NAMES
    )
    windows, length = maps["windows"].shape
    shifted, shifted_length = maps["shifted_windows"].shape
    return {
        "voxels": voxels,
        "coarse": len(maps["coarse_coords"]),
        "windows": windows,
        "window_length": length,
        "shifted_windows": shifted,
        "shifted_length": shifted_length,
        "ss_tokens": config.ss_tokens,
        "slat_tokens": config.slat_tokens,
        "surface": 100_000,
    }


def measure(spec: GraphSpec, sizes: dict[str, int], sm: str) -> dict[str, Any]:
    """One graph's row."""
    started = time.perf_counter()
    runs = reference_runs(spec)
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, form in enumerate(spec.forms):
            constants = folder / f"{index}.data"
            model = onnx_from_spec(spec, form.module, constants)
            with openable(model) as content:
                rows = checked_parity(spec, content, "fp32", form.targets, runs)
            errors[", ".join(form.targets) or "any"] = max(row.relative_l2 for row in rows)
            if form is not choose(spec, "tensorrt"):
                del model
                constants.unlink(missing_ok=True)
        typed = typed_graph(model, "fp16", {})
        cost = budget(typed, {symbol: sizes[symbol] for symbol in spec.profiles})
        built = build(store(typed, folder / f"{spec.name}.onnx"), spec, sm)
    return {
        "graph": spec.name,
        "relative_l2": errors,
        "memory_bytes": {
            "weights": cost.weights_bytes,
            "inputs_outputs": cost.inputs_bytes + cost.outputs_bytes,
            "activations": cost.activations_bytes,
            "all": cost.total_bytes,
        },
        "rtx": built | {"sm": sm},
        "seconds": round(time.perf_counter() - started),
    }


def build(model: bytes | Path, spec: GraphSpec, sm: str) -> dict[str, Any]:
    """What TensorRT for RTX makes of the fp16 form."""
    try:
        plan = build_plan(
            model,
            profiles=dict(spec.profiles),
            precision="fp16",
            options=BuildOptions(flavour="rtx", sm=sm),
            onnx_sha256="0" * 64,  # the plan is looked at and thrown away
            name=spec.name,
        )
    except BuildError as error:
        return {"failed": str(error)}
    assert plan.facts is not None
    return {
        "plan_bytes": len(plan.data),
        "build_s": round(plan.facts.build_seconds, 1),
        "attentions": plan.facts.attentions,
        "may_split": plan.facts.decomposable,
    }


if __name__ == "__main__":
    main()
