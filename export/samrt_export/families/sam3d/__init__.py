"""SAM 3D Objects (SAM License): one picture, one mask and a pointmap to voxels, Gaussians and a mesh.

Written from a description of the released model; no code of its authors is part of it. Graphs at the official sizes; N voxels,
Nc cells of the grid at half its fineness that hold one, W windows of at most L voxels:

| graph           | inputs                                                     | outputs                                         |
|-----------------|------------------------------------------------------------|-------------------------------------------------|
| dino            | pixels (4, 518, 518, 3), RGB 0..1: views of the manifest   | ss_features (4, 1370, 1024),                    |
|                 |                                                            | slat_features (4, 1374, 1024)                   |
| ss_cond         | ss_features, points (2, 256, 256, 3) cropped and whole,    | ss_condition (1, 7528, 1024)                    |
|                 | points_valid (2, 256, 256), 1 or 0                         |                                                 |
| slat_cond       | slat_features                                              | slat_condition (1, 5496, 1024)                  |
| ss_flow         | shape (1, 4096, 8), rotation_6d (1, 1, 6), translation     | the velocity of each latent: shape_velocity,    |
|                 | (1, 1, 3), scale (1, 1, 3), translation_scale (1, 1, 1),   | rotation_6d_velocity, ...                       |
|                 | ss_time (1,), ss_step (1,), ss_condition                   |                                                 |
| ss_decoder      | shape                                                      | occupancy_logits (1, 1, 64, 64, 64)             |
| slat_flow       | slat (N, 8), slat_time (1,), slat_condition, neighbours    | slat_velocity (N, 8)                            |
|                 | (N, 27), coarse_neighbours (Nc, 27), children (Nc, 8),     |                                                 |
|                 | children_inverse (Nc, 1), parents (N,), coarse_coords      |                                                 |
| slat_gs,        | latent (N, 8), coords (N, 3), windows (W, L), window_slots | gaussian_offsets (N, G, 3), gaussian_colors,    |
| slat_gs_4       | (N,), shifted_windows, shifted_window_slots                | _scales, _rotations (N, G, 4), _opacities       |
| slat_mesh_trunk | the same                                                   | mesh_features (N, 768)                          |
| slat_mesh_up    | mesh_features, neighbours                                  | cube_features (64 N, 96), cube_sdf (64 N, 8)    |
| slat_mesh_attr  | surface_features (M, 96): the rows that are needed         | cube_deform (M, 8, 3), cube_weights (M, 21),    |
|                 |                                                            | cube_colors (M, 8, 6)                           |

Times are 1000 t, from noise (0) to data (1000); ``ss_step`` is the length of a step in the same unit where few long ones are
taken, else 0. A condition may be any number of tokens: of a condition of zeros one token gives what all of them give. Index
maps that may miss are one-based, 0 standing for nothing; ``parents`` and the slots count from 0. Gaussians and cubes are raw:
the runtime activates them.
"""

from __future__ import annotations

from torch import nn

from samrt_export.families.sam3d.condition import condition_graphs
from samrt_export.families.sam3d.config import CONFIGS, NANO_3D_CHECKPOINT, Sam3dConfig
from samrt_export.families.sam3d.folder import read_state
from samrt_export.families.sam3d.model import Sam3d, build, fit, randomize
from samrt_export.families.sam3d.numbers import reconstruction_numbers
from samrt_export.families.sam3d.sparse_specs import sparse_graphs
from samrt_export.families.sam3d.structure import StructureFlow, structure_graphs
from samrt_export.registry import Family, GraphSpec

__all__ = ["CONFIGS", "FAMILY", "Sam3d", "Sam3dConfig", "build", "fit", "graphs", "randomize", "read_state"]

LICENCE_NOTE = (
    "SAM License of 19 November 2025: these graphs are derivatives of SAM 3D Objects and may be passed on only under the same "
    "agreement, with a copy of it attached; publications must acknowledge it; military, nuclear and weapons use and use "
    "against sanctions are excluded."
)


def graphs(module: nn.Module, model: str) -> tuple[GraphSpec, ...]:
    """All graphs of a loaded model, in the order in which a self-test runs them."""
    assert isinstance(module, Sam3d)
    config, ss, slat = module.config, module.ss_generator, module.slat_generator
    assert isinstance(ss.backbone, StructureFlow)
    return (
        *condition_graphs(config, ss.condition_embedder, slat.condition_embedder),
        *structure_graphs(config, ss.backbone, module.ss_decoder),
        *sparse_graphs(module),
    )


def _licence(model: str) -> tuple[str, str]:
    """nano-3d was trained by this project on solids that it made up itself."""
    return ("Apache-2.0", "") if model == "nano-3d" else ("SAM License", LICENCE_NOTE)


FAMILY = Family(
    name="sam3d",
    models=tuple(CONFIGS),
    build=build,
    graphs=graphs,
    numbers=lambda model: reconstruction_numbers(CONFIGS[model]),
    abilities=lambda model: ("reconstruction",),
    official_from_hf=dict,
    randomize=randomize,
    licence=_licence,
    hub_id=lambda model: None,
    shipped_checkpoint=lambda model: NANO_3D_CHECKPOINT if model == "nano-3d" else None,
    read_state=read_state,
    fit=fit,
)
