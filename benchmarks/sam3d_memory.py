"""How much memory do the decoders of 3D latents take beyond their weights, and does it grow with the voxels alone?

    python benchmarks/sam3d_memory.py --model sam3d-objects-toy --voxels 5000 10000 20000 40000
    python benchmarks/sam3d_memory.py --model sam3d-objects --voxels 27000

Random weights, and voxels of a spherical shell that is as thick as their number asks for. Each measurement is a process of its
own. It opens a graph on ONNX Runtime's CPU provider, runs it once on 64 voxels, and then once on all: the peak of resident
memory (VmHWM) during that run, less what was resident before it. Tensors that a graph hands to the next one count, and so do
results. The mesh is made by three graphs one after another, each closed before the next is opened; its peak is theirs.
Times are processor seconds of that run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DECODERS = {"gaussians": ("slat_gs",), "mesh": ("slat_mesh_trunk", "slat_mesh_up", "slat_mesh_attr")}
SURFACE_SHARE = 0.3
"""Of all cubes, how many a mesh asks attributes of, about: those at the surface and around it."""
MIB = 2**20


def main() -> None:
    """Export, measure, write."""
    options = parse_arguments()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory() as name:
        graphs = options.graphs or Path(name)
        grid = export(options.model, graphs)
        rows = []
        for decoder in options.decoders:
            for voxels in options.voxels:
                task = {"graphs": str(graphs), "grid": grid, "decoder": decoder, "voxels": voxels}
                command = [sys.executable, __file__, "--child", json.dumps(task)]
                made = subprocess.run(command, capture_output=True, text=True, check=False)
                if made.returncode:
                    sys.exit(made.stderr)
                rows.append({"model": options.model} | json.loads(made.stdout))
                print(json.dumps(rows[-1]), flush=True)
    if options.out is not None:
        write(options.out, rows)


def export(model: str, folder: Path) -> int:
    """Write the CPU forms of all decoders with random weights; returns the grid's side."""
    import torch
    from torch import nn

    from samrt_export.families.sam3d.config import CONFIGS
    from samrt_export.families.sam3d.sparse_specs import decoder_graphs, make_decoders, randomize_sparse
    from samrt_export.onnx_graph import onnx_from_spec
    from samrt_export.precision.narrow import choose
    from samrt_export.randomize import randomize_live

    config = CONFIGS[model]
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {graph for graphs in DECODERS.values() for graph in graphs}
    if all((folder / f"{graph}.onnx").exists() for graph in wanted):
        return config.grid
    decoders = nn.ModuleDict(make_decoders(config))
    randomize_live(decoders, 0)
    randomize_sparse(decoders, 1)
    for spec in decoder_graphs(config, decoders.eval()):
        if spec.name in wanted:
            with torch.inference_mode():
                content = onnx_from_spec(spec, choose(spec, "onnxruntime-cpu").module).SerializeToString()
            (folder / f"{spec.name}.onnx").write_bytes(content)
    return config.grid


def shell(voxels: int, grid: int) -> NDArray[np.int32]:
    """The voxels closest to a sphere: int32 (N, 3), lexicographic."""
    cells = np.indices((grid,) * 3).reshape(3, -1).T
    distance = np.abs(np.linalg.norm(cells + 0.5 - grid / 2, axis=1) - 0.42 * grid)
    return cells[np.sort(np.argsort(distance, kind="stable")[:voxels])].astype(np.int32)


def measure(graphs: str, grid: int, decoder: str, voxels: int) -> dict[str, Any]:
    """One decoder at one size, in this process."""
    from samrt.sparse import SparseMaps

    few, many = (SparseMaps.from_coords(shell(count, grid), grid=grid) for count in (64, voxels))
    for maps in (few, many):
        maps.feeds(("windows", "shifted_windows", "neighbours"))
    rng = np.random.default_rng(0)
    known = {count: {"latent": rng.normal(0, 2, (count, 8)).astype(np.float32)} for count in (64, voxels)}
    started, steps = resident_bytes("VmRSS"), []
    for graph in DECODERS[decoder]:
        ctypes.CDLL(None).malloc_trim(0)  # what a closed graph freed, the C library would keep
        before = resident_bytes("VmRSS")
        steps.append({"graph": graph} | run(Path(graphs) / f"{graph}.onnx", {64: few, voxels: many}, known, voxels))
        steps[-1]["peak_mib"] += round((before - started) / MIB)  # what earlier graphs left for this one
    return {
        "decoder": decoder,
        "voxels": voxels,
        "windows": [list(many.windows.shape), list(many.shifted_windows.shape)],
        "peak_mib": max(step["peak_mib"] for step in steps),
        "steps": steps,
    }


def run(path: Path, maps: dict[int, Any], known: dict[int, dict[str, Any]], voxels: int) -> dict[str, Any]:
    """Open a graph, run it small, then large; what comes out joins what is known."""
    from samrt_engines.executor import open_executor

    before = resident_bytes("VmRSS")
    with open_executor(path, backend="onnxruntime", device="cpu") as executor:
        for count in (64, voxels):
            names = [spec.name for spec in executor.inputs]
            feeds = {name: known[count][name] for name in names if name in known[count]} | maps[count].feeds(names)
            if count == voxels:
                loaded = resident_bytes("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
                seconds = time.process_time()
            made = executor.run(feeds)
            if count == voxels:
                seconds, peak = time.process_time() - seconds, resident_bytes("VmHWM")
            known[count] = {} if "cube_features" not in made else {"surface_features": surface(made["cube_features"])}
            known[count] |= {name: value for name, value in made.items() if name == "mesh_features"}
            del made, feeds
    return {
        "weights_mib": round((loaded - before) / MIB),
        "peak_mib": round((peak - loaded) / MIB),
        "processor_s": round(seconds, 2),
    }


def surface(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """A share of the rows, evenly."""
    return features[:: round(1 / SURFACE_SHARE)].copy()


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Join the rows of other models that the file has, and draw all where there is more than one size."""
    import onnxruntime

    from samrt.machine import cpu_name, usable_cores

    machine = {"cpu": cpu_name(), "cores": usable_cores(), "platform": platform.platform()}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(row["model"], row["decoder"], row["voxels"]) for row in rows}
    rows = [row for row in old if (row["model"], row["decoder"], row["voxels"]) not in done] + rows
    document = {"machine": machine | {"onnxruntime": onnxruntime.__version__}, "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")
    draw(path.with_suffix(".png"), rows)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Peak against voxels, one line for each model and decoder."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for model, decoder in dict.fromkeys((row["model"], row["decoder"]) for row in rows):
        points = sorted((r["voxels"], r["peak_mib"]) for r in rows if (r["model"], r["decoder"]) == (model, decoder))
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{model}, {decoder}")
    axes.set(xlabel="voxels", ylabel="peak beyond weights, MiB", xlim=(0, None), ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam3d-objects-toy")
    parser.add_argument("--decoders", nargs="+", default=list(DECODERS), choices=list(DECODERS))
    parser.add_argument("--voxels", nargs="+", type=int, default=[5000, 10000, 20000, 40000])
    parser.add_argument("--graphs", type=Path, help="keep the graphs here, and use those that are there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
