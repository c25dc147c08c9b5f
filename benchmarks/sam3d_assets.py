"""Files of 3D assets at the size that real reconstructions have: seconds of the processor, beside trimesh and plyfile.

    pip install trimesh plyfile fast-simplification
    python benchmarks/sam3d_assets.py --out benchmarks/results/sam3d_assets.json

A torus of a million triangles with vertex colours, and 862,720 Gaussians, which is what 26,960 voxels give. Contenders take
turns; the fastest of some runs counts, as processor time of one thread, writing included, which leaves out waiting.
Bar: a GLB of a million triangles is written in at most 3 s.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from samrt.assets import (
    Gaussians,
    Mesh,
    decimate,
    downsample_voxel,
    read_glb,
    read_ply,
    render_preview,
    write_glb,
    write_obj,
    write_ply,
)
from samrt.machine import cpu_name

Task = Callable[[], object]


def torus(around: int, across: int) -> Mesh:
    """A closed torus of 2 * around * across triangles, in [-0.5, 0.5]^3, coloured by place."""
    turn, tube = np.meshgrid(*(np.arange(n) * 2 * np.pi / n for n in (around, across)), indexing="ij")
    reach = 0.35 + 0.14 * np.cos(tube)
    points = np.stack([reach * np.cos(turn), reach * np.sin(turn), 0.14 * np.sin(tube)], axis=-1).reshape(-1, 3)
    rows = np.arange(around * across).reshape(around, across)
    a, b = rows, np.roll(rows, -1, axis=0)
    c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
    faces = np.concatenate([np.stack([a, b, c], axis=-1).reshape(-1, 3), np.stack([a, c, d], axis=-1).reshape(-1, 3)])
    return Mesh(points, faces, points + 0.5)


def splats(count: int) -> Gaussians:
    """Gaussians on a torus, of the sizes and opacities that decoders give."""
    random = np.random.default_rng(0)
    turn, tube = random.uniform(0, 2 * np.pi, (2, count))
    reach = 0.35 + 0.14 * np.cos(tube)
    points = np.stack([reach * np.cos(turn), reach * np.sin(turn), 0.14 * np.sin(tube)], axis=1)
    return Gaussians(
        points,
        points * 3,
        random.beta(1, 3, count),
        np.exp(random.normal(-5.8, 0.4, (count, 3))),
        random.normal(size=(count, 4)) * 0.1 + (1, 0, 0, 0),
    )


def tasks(folder: Path) -> dict[str, dict[str, Task]]:
    """What to time: contenders by task."""
    import plyfile
    import trimesh

    mesh, gaussians = torus(1000, 500), splats(862_720)
    other = trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_colors=np.rint(mesh.colors * 255).astype(np.uint8), process=False
    )
    glb, ply = folder / "mesh.glb", folder / "gaussians.ply"
    write_glb(glb, mesh)
    write_ply(ply, gaussians)
    table = plyfile.PlyData.read(ply)["vertex"].data.copy()
    element = plyfile.PlyElement.describe(table, "vertex")
    return {
        "write a GLB, 1,000,000 triangles": {
            "samrt": lambda: write_glb(folder / "a.glb", mesh),
            "trimesh": lambda: (folder / "b.glb").write_bytes(other.export(file_type="glb")),
        },
        "read a GLB, 1,000,000 triangles": {
            "samrt": lambda: read_glb(glb),
            "trimesh": lambda: trimesh.load_scene(glb, process=False),
        },
        "write an OBJ, 1,000,000 triangles": {
            "samrt": lambda: write_obj(folder / "a.obj", mesh),
            "trimesh": lambda: other.export(folder / "b.obj"),
        },
        "write a PLY, 862,720 Gaussians": {
            "samrt": lambda: write_ply(folder / "a.ply", gaussians),
            "plyfile, without the logits and logarithms": lambda: plyfile.PlyData([element]).write(folder / "b.ply"),
        },
        "read a PLY, 862,720 Gaussians": {
            "samrt": lambda: read_ply(ply),
            "plyfile, without exp and checks": lambda: plyfile.PlyData.read(ply)["vertex"].data.copy(),
        },
        "voxel 0.02, 862,720 Gaussians": {"samrt": lambda: downsample_voxel(gaussians, 0.02)},
        "voxel 0.02, 500,000 points": {"samrt": lambda: downsample_voxel(mesh, 0.02)},
        "decimate to 50,000 of 1,000,000 triangles": {"samrt": lambda: decimate(mesh, faces=50_000)},
        "preview of 1,000,000 triangles, 4 views": {"samrt": lambda: render_preview(mesh)},
        "preview of 862,720 Gaussians, 4 views": {"samrt": lambda: render_preview(gaussians)},
    }


def measure(contenders: dict[str, Task], runs: int) -> dict[str, dict[str, float]]:
    """Fastest processor and wall seconds of each, taking turns."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, task in contenders.items():
            wall, processor = time.perf_counter(), time.process_time()
            task()
            seconds[name].append((time.process_time() - processor, time.perf_counter() - wall))
    return {
        name: {
            "processor_s": round(min(row[0] for row in rows), 3),
            "wall_s": round(min(row[1] for row in rows), 3),
        }
        for name, rows in seconds.items()
    }


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, contenders in tasks(Path(folder)).items():
            row: dict[str, Any] = measure(contenders, arguments.runs if len(contenders) > 1 else 2)
            peers = [name for name in contenders if name != "samrt"]
            if peers:
                row["ratio"] = round(row[peers[0]]["processor_s"] / row["samrt"]["processor_s"], 2)
            results[title] = row
            print(title, json.dumps(row))
        sizes = {name: (Path(folder) / name).stat().st_size for name in ("a.glb", "b.glb", "a.ply")}
    packages = {name: version(name) for name in ("numpy", "trimesh", "plyfile", "fast-simplification")}
    document = {"cpu": cpu_name(), "packages": packages, "bytes": sizes, "tasks": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
