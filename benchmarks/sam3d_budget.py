"""How much memory of a card does a 3D object take? Counted from the graphs of a bundle, without running them.

    samrt export sam3d-objects --random-weights 0 --precision fp16 -o D
    python benchmarks/sam3d_budget.py D --voxels 27000 --precision fp16 --out benchmarks/results/sam3d_budget.json

One row for each stage: the weights, the index maps, the other inputs and the outputs, and the most that intermediate tensors
take together at any node (`samrt_export.budget` says what is counted; attention is counted as fused, and a GPU's context and
its kernels' workspaces come on top). Voxels are a spherical shell, whose maps give the number of coarse voxels and of windows;
conditions are as long as the model makes them. The form that counts is the one made for GPUs.

Stages run one after another, so the staged pipeline takes as much as its largest stage. With all graphs resident it takes all
weights, and the rest of the largest stage. --depth adds the stage that sees depth, of a bundle of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samrt.bench.reconstruct import shell
from samrt.bundle import Bundle, open_bundle
from samrt.manifest import Form, Graph
from samrt.reconstruct.reconstructor import check_reconstruction
from samrt.sparse import MAP_NAMES, SparseMaps
from samrt_engines.errors import BackendError
from samrt_engines.tensors import Array
from samrt_export.budget import budget

BAR_BYTES = 6e9
"""Of the staged pipeline at 27,000 voxels in fp16."""
GPU_TARGETS = ("tensorrt", "onnxruntime-cuda")
STAGES = {
    "dino": "image features",
    "ss_cond": "structure condition",
    "slat_cond": "latent condition",
    "ss_flow": "structure",
    "ss_decoder": "occupancy",
    "slat_flow": "latent",
    "slat_gs": "gaussians",
    "slat_gs_4": "gaussians, few",
    "slat_mesh_trunk": "mesh features",
    "slat_mesh_up": "mesh cubes",
    "slat_mesh_attr": "mesh attributes",
}


@dataclass(frozen=True)
class Row:
    """One stage; sizes in bytes. inputs_outputs: without the index maps."""

    stage: str
    graph: str
    form: str
    weights: int
    index_maps: int
    inputs_outputs: int
    activations: int
    peak_node: str

    @property
    def sum(self) -> int:
        """What the stage takes."""
        return self.weights + self.running

    @property
    def running(self) -> int:
        """What it takes beside its weights."""
        return self.index_maps + self.inputs_outputs + self.activations


def main() -> None:
    """Count, print, write."""
    options = parse_arguments()
    bundle = open_bundle(options.bundle)
    numbers = check_reconstruction(bundle.manifest)
    maps = SparseMaps.from_coords(shell(numbers.grid, options.voxels), grid=numbers.grid, window=numbers.window)
    feeds = maps.feeds(MAP_NAMES)
    rows = [] if options.depth is None else count(open_bundle(options.depth), options.precision, {}, "depth")
    rows += count(bundle, options.precision, feeds)
    document = {
        "model": bundle.manifest.source.model,
        "precision": options.precision,
        "voxels": options.voxels,
        "coarse": len(feeds["coarse_coords"]),
        "windows": list(feeds["windows"].shape),
        "shifted_windows": list(feeds["shifted_windows"].shape),
    } | summarize(rows)
    print(to_text(document, rows))
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def count(bundle: Bundle, precision: str, maps: Mapping[str, Array], stage: str | None = None) -> list[Row]:
    """The rows of a bundle's graphs. maps: those of the object. stage: of all of them, None: by the graph's name."""
    rows = []
    for name, graph in bundle.manifest.graphs.items():
        form = gpu_form(graph, name, precision)
        cost = budget(bundle.read_model(form), symbol_sizes(graph, maps))
        index_maps = sum(maps[spec.name].nbytes for spec in graph.inputs if spec.name in maps)
        rows.append(
            Row(
                stage=stage or STAGES.get(name, name),
                graph=name,
                form=form.file.file,
                weights=cost.weights_bytes,
                index_maps=index_maps,
                inputs_outputs=cost.inputs_bytes + cost.outputs_bytes - index_maps,
                activations=cost.activations_bytes,
                peak_node=cost.peak_node,
            )
        )
    return rows


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows, and what they take one at a time and together."""
    return {
        "rows": [asdict(row) | {"sum": row.sum} for row in rows],
        "staged_bytes": max(row.sum for row in rows),
        "resident_bytes": sum(row.weights for row in rows) + max(row.running for row in rows),
        "bar_bytes": BAR_BYTES,
    }


def gpu_form(graph: Graph, name: str, precision: str) -> Form:
    """The form that runs on a GPU. Raises BackendError when there is none in this precision."""
    for form in graph.forms:
        if form.precision == precision and (not form.targets or set(form.targets) & set(GPU_TARGETS)):
            return form
    raise BackendError(
        f"{name}: the bundle has no form of this graph for GPUs in {precision}",
        got=", ".join(f"{form.precision} for {' '.join(form.targets) or 'any'}" for form in graph.forms),
        expected=precision,
        fix=f"samrt export MODEL --precision {precision} -o DIR",
    )


def symbol_sizes(graph: Graph, maps: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of a graph's symbols: those of the maps, and else the usual ones."""
    sizes = {symbol: profile.opt for symbol, profile in graph.profiles.items()}
    if "coords" in maps and "voxels" in sizes:
        sizes["voxels"] = len(maps["coords"])
    for spec in graph.inputs:
        if spec.name in maps:
            found = zip(spec.shape, maps[spec.name].shape, strict=True)
            sizes |= {symbol: size for symbol, size in found if isinstance(symbol, str)}
    return sizes


def to_text(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A page of Markdown; sizes in MB (1,000,000 bytes)."""
    head = ["stage", "graph", "weights", "index maps", "inputs, outputs", "intermediates", "sum"]
    cells = [
        [one.stage, f"`{one.graph}`"]
        + [megabytes(size) for size in (one.weights, one.index_maps, one.inputs_outputs, one.activations, one.sum)]
        for one in rows
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---", "---"] + ["---:"] * 5, *cells)]
    largest = max(rows, key=lambda row: row.sum)
    staged, resident = (document[key] / 1e9 for key in ("staged_bytes", "resident_bytes"))
    return "\n".join(
        [
            f"{document['model']}, {document['precision']}, {document['voxels']:,} voxels "
            f"({document['coarse']:,} coarse, windows {' x '.join(map(str, document['windows']))}), sizes in MB:",
            "",
            *lines,
            "",
            f"One stage at a time: {staged:.2f} GB ({largest.stage}; bar {document['bar_bytes'] / 1e9:.0f} GB). "
            f"All graphs resident: {resident:.2f} GB.",
        ]
    )


def megabytes(size: int) -> str:
    """Three digits, or whole megabytes."""
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.3g}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--voxels", type=int, default=27_000)
    parser.add_argument("--precision", default="fp16", choices=("fp16", "fp32"))
    parser.add_argument("--depth", type=Path, help="a bundle of MoGe")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
