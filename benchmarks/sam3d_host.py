"""What numpy does between the graphs of a 3D model: index maps of voxels, and the mesh out of signed distances.

    python benchmarks/sam3d_host.py --out benchmarks/results/sam3d_host.json

Voxels are a shell around a bumpy sphere, as occupancies of objects are. Times are of one thread, as processor time, which
leaves out waiting and so can be compared on a machine that other work shares. Memory is the peak of what numpy allocated
(tracemalloc, in a run of its own), without what was passed in.

Bars, on four cores: all maps of 27,000 voxels in 100 ms; a mesh out of 500,000 cubes on the surface in 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samrt.assets import Mesh
from samrt.machine import cpu_name, usable_cores
from samrt.sparse import MAP_NAMES, SparseMaps
from samrt.surface import ROWS_PER_VOXEL, CubeField

GRID = 64
MAPS_AT_MS, MAPS_BAR_MS = 27_000, 100.0
MESH_AT_CUBES, MESH_BAR_S = 500_000, 10.0

Array = np.ndarray


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    maps = [measure_maps(count, options.rounds) for count in options.voxels]
    meshes = [measure_mesh(count, options.mesh_rounds) for count in options.cubes]
    for row in maps + meshes:
        print(json.dumps(row))
    if options.out is not None:
        record = {"machine": machine(), "index_maps": maps, "surface": meshes}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def distance(points: Array, radius: float) -> Array:
    """How far points (..., 3) lie from a bumpy sphere, about."""
    x, y, z = np.moveaxis(points, -1, 0)
    bumps = 0.01 * np.sin(19 * x) * np.sin(23 * y + 1) * np.sin(17 * z + 2)
    found: Array = np.linalg.norm(points, axis=-1) - radius + bumps
    return found


def shell(radius: float, thickness: float) -> Array:
    """The voxels within so many voxels of the bumpy sphere, int32 (N, 3)."""
    coords = np.indices((GRID,) * 3).reshape(3, -1).T.astype(np.int32)
    return coords[np.abs(distance((coords + 0.5) / GRID - 0.5, radius)) < thickness / GRID]


def measure_maps(count: int, rounds: int) -> dict[str, Any]:
    """A row for a shell of about `count` voxels, thickness growing where the grid gives no larger sphere."""
    thickness = 1.0
    radius = min(0.46, (count / (8 * np.pi * thickness)) ** 0.5 / GRID)
    coords = shell(radius, thickness)
    while len(coords) < count:
        thickness += 0.02
        coords = shell(radius, thickness)
    coords = coords[:count]

    def all_maps() -> None:
        SparseMaps.from_coords(coords, grid=GRID).feeds(MAP_NAMES)

    feeds = SparseMaps.from_coords(coords, grid=GRID).feeds(MAP_NAMES)
    taken = [processor_seconds(all_maps) * 1e3 for _ in range(rounds)]
    median = float(np.median(taken))
    return {
        "voxels": count,
        "coarse": len(feeds["coarse_coords"]),
        "windows": list(feeds["windows"].shape),
        "shifted_windows": list(feeds["shifted_windows"].shape),
        "cpu_ms": round(median, 2),
        "cpu_ms_worst": round(max(taken), 2),
        "rounds": rounds,
        "maps_mb": round(sum(array.nbytes for array in feeds.values()) / 1e6, 2),
        "peak_mb": round(peak_bytes(all_maps) / 1e6, 1),
        **({"ok": median <= MAPS_BAR_MS} if count == MAPS_AT_MS else {}),
    }


def measure_mesh(target: int, rounds: int) -> dict[str, Any]:
    """A row for a surface through about `target` cubes; a shell has one on either side."""
    radius = (target / (2 * 1.43 * 4 * np.pi)) ** 0.5 / (4 * GRID)
    coords = shell(radius, 1.1)
    sdf = corner_distances(coords, radius)
    field = CubeField(coords, sdf, resolution=4 * GRID)
    generator = np.random.default_rng(0)
    attributes = [
        generator.standard_normal((len(field.rows), *shape), np.float32) * np.float32(0.3)
        for shape in ((8, 3), (21,), (8, 6))
    ]

    def find() -> CubeField:
        return CubeField(coords, sdf, resolution=4 * GRID)

    def extract() -> Mesh:
        return field.extract(*attributes)

    mesh = extract()
    finding = float(np.median([processor_seconds(find) for _ in range(rounds)]))
    extracting = float(np.median([processor_seconds(extract) for _ in range(rounds)]))
    return {
        "voxels": len(coords),
        "surface_cubes": field.surface_cubes,
        "rows": len(coords) * ROWS_PER_VOXEL,
        "rows_needed": len(field.rows),
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "field_cpu_s": round(finding, 3),
        "extract_cpu_s": round(extracting, 3),
        "rounds": rounds,
        "field_peak_mb": round(peak_bytes(find) / 1e6, 1),
        "extract_peak_mb": round(peak_bytes(extract) / 1e6, 1),
        "passed_in_mb": round((sdf.nbytes + sum(array.nbytes for array in attributes)) / 1e6, 1),
        **({"ok": finding + extracting <= MESH_BAR_S} if target == MESH_AT_CUBES else {}),
    }


def corner_distances(coords: Array, radius: float) -> Array:
    """The distance at the corners of every cube, float32 (64 N, 8), in cubes."""
    child = np.indices((2, 2, 2)).reshape(3, 8).T
    within = (2 * child[:, None] + child).reshape(ROWS_PER_VOXEL, 3)
    cubes = (4 * coords[:, None] + within).reshape(-1, 3)
    columns = [distance((cubes + step[::-1]) / (4 * GRID) - 0.5, radius) for step in child]
    return (np.stack(columns, axis=1) * 4 * GRID).astype(np.float32)


def processor_seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that was allocated during a call, over what was before it."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {"cpu": cpu_name(), "cores": usable_cores(), "threads": 1, "load_average": load, "numpy": np.__version__}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, nargs="*", default=[5_000, 10_000, 20_000, 27_000, 42_000])
    parser.add_argument("--cubes", type=int, nargs="*", default=[100_000, 250_000, 500_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mesh-rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
