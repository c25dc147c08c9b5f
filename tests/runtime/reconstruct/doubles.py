"""A bundle small enough to predict every number of: a coloured ball, wherever the picture's object is.

Grid 16, structure latent 4 x 4 x 4 of 8 channels (the octants of each cell), mesh 64, views 28 px, pointmap 16 px. The
flows run straight to a target: velocity = (target - x) / (1 - t), so that the last step, which is not guided, lands on it
from any noise:

    shape       the ball's field 4.2 - |p|, in cells of an 8 x 8 x 8 grid, plus a hundredth of the condition's mean
    pose        (1, 0, 0, 0, 1, 0) / (0.1, 0.2, 0.3) / 0 / 0
    slat        of each voxel: its coarse voxel's x, y, z, children_inverse, numbers of neighbours, children, coarse
                neighbours, and the condition's mean, all times 0.01

The mesh decoder's field is a ball of radius 0.25, its colours say where a cube is.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from samrt.numbers import parse_reconstruction
from samrt.schema import Cursor

VIEW, POINTS, GRID, LATENT_GRID = 28, 16, 16, 4
RADIUS, CUBES = 0.25, 64
MEAN = [0.1 * i for i in range(8)]
STD = [1.0 + 0.1 * i for i in range(8)]
SHAPE_GAIN = 0.01

RECONSTRUCTION: dict[str, Any] = {
    "views": ["crop_rgb", "full_rgb", "crop_mask", "full_mask"],
    "view_px": VIEW,
    "crop_scale": 1.2,
    "point_px": POINTS,
    "grid": GRID,
    "latent_grid": LATENT_GRID,
    "max_voxels": 3000,
    "window": 8,
    "prune_interior": False,
    "structure": {
        "steps": 6, "rescale_t": 3.0, "guidance": 7.0, "guidance_interval": [0, 500], "time_scale": 1000.0, "shortcut": True,
    },
    "latent": {
        "steps": 4, "rescale_t": 1.0, "guidance": 1.0, "guidance_interval": [0, 500], "time_scale": 1000.0, "shortcut": False,
    },
    "latent_mean": MEAN,
    "latent_std": STD,
    "pose": {"rotation_mean": [0.0] * 6, "rotation_std": [1.0] * 6},
    "gaussians": {"scale_bias": 0.004, "min_kernel": 0.0009, "rotation_gain": 0.1, "opacity_bias": 0.1},
    "mesh": {"resolution": CUBES, "sdf_bias": 0.0},
}  # fmt: skip
NUMBERS = parse_reconstruction(Cursor(RECONSTRUCTION, "numbers.reconstruction"))

PROFILES = {
    "voxels": (8, 200, 2500),
    "coarse": (1, 100, 2000),
    "windows": (1, 8, 100),
    "window_length": (1, 64, 512),
    "shifted_windows": (1, 8, 100),
    "shifted_length": (1, 64, 512),
    "ss_tokens": (1, 6, 6),
    "slat_tokens": (1, 4, 4),
    "surface": (1, 500, 100000),
}

_WINDOWS = (
    "float[voxels,8] latent, int32[voxels,3] coords, int32[windows,window_length] windows, int32[voxels] window_slots, "
    "int32[shifted_windows,shifted_length] shifted_windows, int32[voxels] shifted_window_slots"
)
_POSE = {"rotation_6d": 6, "translation": 3, "scale": 3, "translation_scale": 1}

_TEXTS = {
    "dino": """(float[4,28,28,3] pixels) => (float[4,1,3] ss_features, float[4,1,3] slat_features) {
        mean = ReduceMean <keepdims=0> (pixels, hw)
        most = ReduceMax <keepdims=0> (pixels, hw)
        ss_features = Reshape (mean, rows)
        slat_features = Reshape (most, rows)
    }""",
    "ss_cond": """(float[4,1,3] ss_features, float[2,16,16,3] points, float[2,16,16] points_valid)
        => (float[1,6,3] ss_condition) {
        seen = Reshape (ss_features, one)
        valid = Unsqueeze (points_valid, last)
        known = Mul (points, valid)
        middle = ReduceMean <keepdims=0> (known, hw)
        placed = Reshape (middle, one)
        ss_condition = Concat <axis=1> (seen, placed)
    }""",
    "slat_cond": """(float[4,1,3] slat_features) => (float[1,4,3] slat_condition) {
        slat_condition = Reshape (slat_features, one)
    }""",
    "ss_flow": """(float[1,64,8] shape, float[1,1,6] rotation_6d, float[1,1,3] translation, float[1,1,3] scale,
        float[1,1,1] translation_scale, float[1] ss_time, float[1] ss_step, float[1,ss_tokens,3] ss_condition)
        => (float[1,64,8] shape_velocity, float[1,1,6] rotation_6d_velocity, float[1,1,3] translation_velocity,
        float[1,1,3] scale_velocity, float[1,1,1] translation_scale_velocity) {
        left = Sub (thousand, ss_time)
        speed = Div (thousand, left)
        mean = ReduceMean <keepdims=0> (ss_condition)
        shift = Mul (mean, shape_gain)
        lift = Mul (ss_step, step_gain)
        aim_0 = Add (shape_target, shift)
        aim = Add (aim_0, lift)
        way = Sub (aim, shape)
        shape_velocity = Mul (way, speed)
        way_r = Sub (rotation_6d_target, rotation_6d)
        rotation_6d_velocity = Mul (way_r, speed)
        way_t = Sub (translation_target, translation)
        translation_velocity = Mul (way_t, speed)
        way_s = Sub (scale_target, scale)
        scale_velocity = Mul (way_s, speed)
        way_u = Sub (translation_scale_target, translation_scale)
        translation_scale_velocity = Mul (way_u, speed)
    }""",
    "ss_decoder": """(float[1,64,8] shape) => (float[1,1,16,16,16] occupancy_logits) {
        octants = Reshape (shape, cells)
        cube = Transpose <perm=[0,3,1,4,2,5]> (octants)
        eight = Reshape (cube, eights)
        wide = Expand (eight, doubled)
        occupancy_logits = Reshape (wide, whole)
    }""",
    "slat_flow": """(float[voxels,8] slat, float[1] slat_time, float[1,slat_tokens,3] slat_condition,
        int32[voxels,27] neighbours, int32[coarse,27] coarse_neighbours, int32[coarse,8] children,
        float[coarse,1] children_inverse, int32[voxels] parents, int32[coarse,3] coarse_coords)
        => (float[voxels,8] slat_velocity) {
        place = Cast <to=1> (coarse_coords)
        has_children = Clip (children, none, once)
        child_floats = Cast <to=1> (has_children)
        child_count = ReduceSum <keepdims=1> (child_floats, columns)
        has_coarse = Clip (coarse_neighbours, none, once)
        coarse_floats = Cast <to=1> (has_coarse)
        coarse_count = ReduceSum <keepdims=1> (coarse_floats, columns)
        has_near = Clip (neighbours, none, once)
        near_floats = Cast <to=1> (has_near)
        near_count = ReduceSum <keepdims=1> (near_floats, columns)
        of_coarse = Concat <axis=1> (place, children_inverse, child_count, coarse_count)
        of_parent = Gather <axis=0> (of_coarse, parents)
        mean = ReduceMean <keepdims=0> (slat_condition)
        zeros = Mul (near_count, zero)
        means = Add (zeros, mean)
        aim_1 = Concat <axis=1> (of_parent, near_count, means)
        aim = Mul (aim_1, latent_gain)
        left = Sub (thousand, slat_time)
        speed = Div (thousand, left)
        way = Sub (aim, slat)
        slat_velocity = Mul (way, speed)
    }""",
    "slat_gs": f"""({_WINDOWS}) => (float[voxels,2,3] gaussian_offsets, float[voxels,2,3] gaussian_colors,
        float[voxels,2,3] gaussian_scales, float[voxels,2,4] gaussian_rotations, float[voxels,2,1] gaussian_opacities) {{
        all = MatMul (latent, mix)
        o, c, s, r, a = Split <axis=1> (all, parts)
        ot = Tanh (o)
        os = Mul (ot, offset_gain)
        gaussian_offsets = Reshape (os, by_3)
        gaussian_colors = Reshape (c, by_3)
        gaussian_scales = Reshape (s, by_3)
        gaussian_rotations = Reshape (r, by_4)
        gaussian_opacities = Reshape (a, by_1)
    }}""",
    "slat_mesh_trunk": f"""({_WINDOWS}) => (float[voxels,11] mesh_features) {{
        place = Cast <to=1> (coords)
        mesh_features = Concat <axis=1> (latent, place)
    }}""",
    "slat_mesh_up": """(float[voxels,11] mesh_features, int32[voxels,27] neighbours)
        => (float[cubes,4] cube_features, float[cubes,8] cube_sdf) {
        latent, place = Split <axis=1> (mesh_features, split_place)
        four = Mul (place, side)
        rowed = Unsqueeze (four, second)
        origins_3 = Add (rowed, origins)
        origins_2 = Reshape (origins_3, flat_3)
        corners_3 = Unsqueeze (origins_2, second)
        corner_places = Add (corners_3, corners)
        scaled = Div (corner_places, cubes_side)
        centred = Sub (scaled, half)
        squares = Mul (centred, centred)
        sums = ReduceSum <keepdims=0> (squares, last_axis)
        lengths = Sqrt (sums)
        cube_sdf = Sub (lengths, radius)
        at = Div (origins_2, cubes_side)
        first = Slice (at, start_0, end_1, second)
        ones = Mul (first, zero)
        cube_features = Concat <axis=1> (at, ones)
    }""",
    "slat_mesh_attr": """(float[surface,4] surface_features)
        => (float[surface,8,3] cube_deform, float[surface,21] cube_weights, float[surface,8,6] cube_colors) {
        d = MatMul (surface_features, deform_mix)
        cube_deform = Reshape (d, by_8_3)
        cube_weights = MatMul (surface_features, weight_mix)
        c = MatMul (surface_features, color_mix)
        cube_colors = Reshape (c, by_8_6)
    }""",
}


def shape_target() -> np.ndarray:
    """The ball in an 8 x 8 x 8 grid, as float32 (1, 64, 8): cell, octant."""
    place = np.indices((8, 8, 8)) - 3.5
    field = (4.2 - np.sqrt((place**2).sum(axis=0))).astype(np.float32)
    cells = field.reshape(4, 2, 4, 2, 4, 2).transpose(0, 2, 4, 1, 3, 5)
    return cells.reshape(1, 64, 8)


def color_mix() -> np.ndarray:
    """Colours of all corners: a steep ramp along each axis of the cube's place, so that sigmoid takes them far."""
    mix = np.zeros((4, 8, 6), np.float32)
    for axis in range(3):
        mix[axis, :, axis] = 4
    return mix.reshape(4, 48)


def _constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    children = np.array([(c >> 2 & 1, c >> 1 & 1, c & 1) for c in range(8)], np.float32)
    origins = (2 * children[:, None] + children[None]).reshape(1, 64, 3)
    corners = np.array([(i & 1, i >> 1 & 1, i >> 2) for i in range(8)], np.float32)[None]
    return {
        "hw": np.array([1, 2]), "rows": np.array([4, 1, 3]), "one": np.array([1, -1, 3]), "last": np.array([3]),
        "thousand": np.float32([1000]), "shape_gain": np.float32(SHAPE_GAIN), "step_gain": np.float32(1e-4),
        "shape_target": shape_target(), "rotation_6d_target": np.float32([[[1, 0, 0, 0, 1, 0]]]),
        "translation_target": np.float32([[[0.1, 0.2, 0.3]]]), "scale_target": np.zeros((1, 1, 3), np.float32),
        "translation_scale_target": np.zeros((1, 1, 1), np.float32),
        "cells": np.array([4, 4, 4, 2, 2, 2]), "eights": np.array([8, 1, 8, 1, 8, 1]),
        "doubled": np.array([8, 2, 8, 2, 8, 2]), "whole": np.array([1, 1, 16, 16, 16]),
        "none": np.int32(0), "once": np.int32(1), "columns": np.array([1]), "zero": np.float32(0),
        "latent_gain": np.float32(0.01),
        "mix": rng.normal(0, 0.3, (8, 28)).astype(np.float32), "parts": np.array([6, 6, 6, 8, 2]),
        "offset_gain": np.float32(0.01), "by_3": np.array([-1, 2, 3]), "by_4": np.array([-1, 2, 4]),
        "by_1": np.array([-1, 2, 1]),
        "split_place": np.array([8, 3]), "side": np.float32(4), "second": np.array([1]), "origins": origins,
        "flat_3": np.array([-1, 3]), "corners": corners, "cubes_side": np.float32(CUBES), "half": np.float32(0.5),
        "last_axis": np.array([2]), "radius": np.float32(RADIUS), "start_0": np.array([0]), "end_1": np.array([1]),
        "deform_mix": np.zeros((4, 24), np.float32), "weight_mix": np.zeros((4, 21), np.float32),
        "color_mix": color_mix(), "by_8_3": np.array([-1, 8, 3]), "by_8_6": np.array([-1, 8, 6]),
    }  # fmt: skip


def model(name: str, text: str) -> onnx.ModelProto:
    """A graph's ONNX model from its text, with the constants that it names."""
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {name} {text}')
    used = {value for node in made.graph.node for value in node.input}
    known = _constants()
    made.graph.initializer.extend(numpy_helper.from_array(known[key], key) for key in sorted(used & set(known)))
    onnx.checker.check_model(made, full_check=True)
    return made


def _tensors(values: Any) -> list[dict[str, Any]]:
    names = {1: "float32", 6: "int32"}
    return [
        {
            "name": value.name,
            "dtype": names[value.type.tensor_type.elem_type],
            "shape": [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        }
        for value in values
    ]


def write_bundle(
    folder: Path, *, without: tuple[str, ...] = (), texts: dict[str, str] | None = None, **numbers: Any
) -> Path:
    """Write the bundle. without: graphs to leave out; texts: other graphs; numbers: other values of the manifest's."""
    folder.mkdir()
    graphs = {}
    written = {name: text for name, text in (_TEXTS | (texts or {})).items() if name not in without}
    for name, text in written.items():
        made = model(name, text)
        content = made.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(content)
        inputs, outputs = _tensors(made.graph.input), _tensors(made.graph.output)
        symbols = {size for spec in inputs for size in spec["shape"] if isinstance(size, str)}
        profiles = {
            symbol: dict(zip(("min", "opt", "max"), PROFILES[symbol], strict=True)) for symbol in sorted(symbols)
        }
        form = {"file": f"{name}.onnx", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        form |= {"data": [], "precision": "fp32", "targets": [], "opset": 18, "parity": {}}
        graphs[name] = {"inputs": inputs, "outputs": outputs, "profiles": profiles, "forms": [form]}
    manifest = {
        "format": "samrt-bundle",
        "version": 1,
        "source": {
            "model": "ball",
            "checkpoint": {"kind": "random", "sha256": None, "seed": 0},
            "licence": {"name": "Apache-2.0", "note": ""},
            "samrt": "0.1.0",
            "opset": 18,
        },
        "graphs": graphs,
        "numbers": {"reconstruction": {**RECONSTRUCTION, **numbers}},
        "abilities": ["reconstruction"],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def scene(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, a mask and a pointmap: a disc before a wall."""
    y, x = np.mgrid[:height, :width]
    mask = (y - 30) ** 2 + (x - 35) ** 2 < 15**2
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[mask] = (200, 120, 40)
    depth = np.where(mask, 2.0, 4.0) + x / width
    points = np.stack([(40 - x) / 60 * depth, (30 - y) / 60 * depth, depth], axis=-1).astype(np.float32)
    return picture, mask, points
