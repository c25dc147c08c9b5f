"""The steps of a reconstruction, each with the graph that does its work.

dino, ss_cond, slat_cond                      views          -> conditions
ss_flow, ss_decoder                           a condition    -> voxels and pose
slat_flow                                     voxels         -> a latent for each
slat_gs or slat_gs_4                          latents        -> Gaussians
slat_mesh_trunk, slat_mesh_up, slat_mesh_attr latents        -> a mesh
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samrt.assets import Gaussians, Mesh
from samrt.graphs import largest
from samrt.manifest import Graph
from samrt.numbers import ReconstructionNumbers
from samrt.reconstruct.flow_sampling import Schedule, State, draw_noise, sample_flow
from samrt.reconstruct.gaussian_decoding import decode_gaussians
from samrt.reconstruct.occupancy import Coords, cap_voxels, occupied_voxels, prune_interior
from samrt.reconstruct.stages import Shelf, Stage, Stages
from samrt.sparse import SparseMaps
from samrt.surface import CubeField
from samrt_engines.errors import InputError
from samrt_engines.tensors import Array

Float32Array = NDArray[np.float32]
Noise = Mapping[str, NDArray[np.floating]]

DINO, SS_COND, SLAT_COND = "dino", "ss_cond", "slat_cond"
SS_FLOW, SS_DECODER, SLAT_FLOW = "ss_flow", "ss_decoder", "slat_flow"
SLAT_GS, SLAT_GS_4 = "slat_gs", "slat_gs_4"
MESH_TRUNK, MESH_UP, MESH_ATTR = MESH_GRAPHS = ("slat_mesh_trunk", "slat_mesh_up", "slat_mesh_attr")
SAMPLING_GRAPHS = (DINO, SS_FLOW, SS_DECODER, SLAT_FLOW)
"""Graphs that every model has; conditions may come straight from `dino`."""

SS_CONDITION, SLAT_CONDITION = "ss_condition", "slat_condition"
SHAPE, SLAT = "shape", "slat"
_VELOCITY = "_velocity"


@dataclass(frozen=True)
class Job:
    """What all steps of one reconstruction work with."""

    shelf: Shelf
    stages: Stages
    numbers: ReconstructionNumbers

    def graph(self, name: str) -> Graph:
        """A graph's table."""
        return self.shelf.bundle.manifest.graphs[name]


def make_conditions(job: Job, feeds: Mapping[str, Array]) -> tuple[Float32Array, Float32Array]:
    """Run the image features once and make both conditions of them.

    feeds: pixels (views, px, px, 3), and where the model takes a pointmap points and points_valid
    returns: of the structure (1, tokens, channels), of the latents (1, tokens, channels)
    """
    known = dict(feeds)
    for name, title in ((DINO, "image features"), (SS_COND, "structure condition"), (SLAT_COND, "latent condition")):
        if name in job.shelf:
            with job.stages.stage(title, shelf=job.shelf, graph=name) as stage:
                known |= stage.run({spec.name: known[spec.name] for spec in job.graph(name).inputs})
    return known[SS_CONDITION], known[SLAT_CONDITION]


NOTHING = 2
"""Tokens of zeros that stand for no condition. One would do, but after a run with a single key OpenVINO 2026.4 computes
attention over a dynamic number of keys wrongly."""


@dataclass(frozen=True)
class GraphVelocity:
    """Asks a flow's graph which way to go. See `samrt.reconstruct.flow_sampling.Velocity`."""

    stage: Stage
    prefix: str  # of the inputs that say when: "ss" or "slat"
    condition: Float32Array
    fixed: Mapping[str, Array]  # index maps

    def __call__(self, state: State, *, time: float, step: float, conditioned: bool) -> dict[str, Float32Array]:
        condition = self.condition if conditioned else np.zeros((1, NOTHING, self.condition.shape[2]), np.float32)
        times = {f"{self.prefix}_time": time, f"{self.prefix}_step": step}
        made = self.stage.run(
            {
                **self.fixed,
                **state,
                **{name: np.array([value], np.float32) for name, value in times.items()},
                f"{self.prefix}_condition": condition,
            }
        )
        return {name: made[name + _VELOCITY] for name in state}


def modalities(graph: Graph, sizes: Mapping[str, int] | None = None) -> dict[str, tuple[int, ...]]:
    """What a flow's graph moves: the inputs that have a velocity, with their shapes. sizes: of symbols."""
    moved = {spec.name.removesuffix(_VELOCITY) for spec in graph.outputs if spec.name.endswith(_VELOCITY)}
    return {
        spec.name: tuple(size if isinstance(size, int) else (sizes or {})[size] for size in spec.shape)
        for spec in graph.inputs
        if spec.name in moved
    }


def sample_structure(
    job: Job, condition: Float32Array, schedule: Schedule, generator: np.random.Generator, noise: Noise | None
) -> dict[str, Float32Array]:
    """Sample the structure latent and the pose tokens: modality -> sample."""
    start = draw_noise(modalities(job.graph(SS_FLOW)), generator, noise)
    with job.stages.stage("structure", schedule.runs, shelf=job.shelf, graph=SS_FLOW) as stage:
        return sample_flow(GraphVelocity(stage, "ss", condition, {}), start, schedule)


def find_voxels(job: Job, shape: Float32Array, generator: np.random.Generator) -> tuple[Coords, int]:
    """Decode the structure latent: the voxels that later steps work on, and by how much the object was shrunk for them."""
    with job.stages.stage("occupancy", shelf=job.shelf, graph=SS_DECODER) as stage:
        coords = occupied_voxels(stage.run({SHAPE: shape})["occupancy_logits"])
        if job.numbers.prune_interior:
            coords = prune_interior(coords, job.numbers.grid)
        most = min(job.numbers.max_voxels, largest(job.graph(SLAT_FLOW), SLAT, axis=0))
        return cap_voxels(coords, most, generator)


def sample_latent(
    job: Job,
    condition: Float32Array,
    maps: SparseMaps,
    schedule: Schedule,
    generator: np.random.Generator,
    noise: Noise | None,
) -> Float32Array:
    """Sample a latent for every voxel, de-normalised: float32 (N, C)."""
    graph = job.graph(SLAT_FLOW)
    channels = len(job.numbers.latent_mean)
    start = draw_noise({SLAT: (len(maps.coords), channels)}, generator, noise)
    with job.stages.stage("latent", schedule.runs, shelf=job.shelf, graph=SLAT_FLOW) as stage:
        fixed = index_maps(maps, graph, stage)
        check_sizes(graph, SLAT_FLOW, {**fixed, **start})
        latent = sample_flow(GraphVelocity(stage, SLAT, condition, fixed), start, schedule)[SLAT]
    return latent * np.array(job.numbers.latent_std, np.float32) + np.array(job.numbers.latent_mean, np.float32)


def make_gaussians(job: Job, name: str, latent: Float32Array, maps: SparseMaps) -> Gaussians:
    """Decode latents into the Gaussians of graph `name`, G for every voxel."""
    graph = job.graph(name)
    with job.stages.stage("gaussians", shelf=job.shelf, graph=name) as stage:
        feeds = {"latent": latent, **index_maps(maps, graph, stage)}
        check_sizes(graph, name, feeds)
        made = stage.run(feeds)
        raw = {output.rpartition("_")[2]: array for output, array in made.items()}
        return decode_gaussians(raw, maps.coords, job.numbers.grid, job.numbers.gaussians)


def make_mesh(job: Job, latent: Float32Array, maps: SparseMaps) -> Mesh:
    """Decode latents into cubes around the surface, and those into a mesh. Raises InputError where there is no surface.

    The signed distances of all cubes say where the surface runs; only the cubes there get their other channels.
    """
    trunk, up = job.graph(MESH_TRUNK), job.graph(MESH_UP)
    with job.stages.stage("mesh features", shelf=job.shelf, graph=MESH_TRUNK) as stage:
        feeds = {"latent": latent, **index_maps(maps, trunk, stage)}
        check_sizes(trunk, MESH_TRUNK, feeds)
        features = stage.run(feeds)
    with job.stages.stage("mesh cubes", shelf=job.shelf, graph=MESH_UP) as stage:
        cubes = stage.run({**features, **index_maps(maps, up, stage)})
        del features
    with job.stages.stage("surface"):
        field = CubeField(
            maps.coords, cubes["cube_sdf"], resolution=job.numbers.mesh.resolution, sdf_bias=job.numbers.mesh.sdf_bias
        )
    rows = field.rows
    if not len(rows):
        raise InputError(
            "the decoded object has no surface",
            got=f"signed distances of one sign in all {len(cubes['cube_sdf'])} cubes",
            expected="a field that changes its sign",
            fix="another seed, or mesh=False",
        )
    attributes = _attributes(job, cubes["cube_features"], rows)
    del cubes
    with job.stages.stage("mesh"):
        return field.extract(*attributes)


def _attributes(
    job: Job, features: Float32Array, rows: NDArray[np.int64]
) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Deformations, weights and colours of the cubes in `rows`, a part at a time: gathering all would double the memory."""
    graph = job.graph(MESH_ATTR)
    part = next((profile.opt for profile in graph.profiles.values()), len(rows))
    starts = range(0, len(rows), part)
    parts: dict[str, list[Float32Array]] = {"cube_deform": [], "cube_weights": [], "cube_colors": []}
    with job.stages.stage("mesh attributes", len(starts), shelf=job.shelf, graph=MESH_ATTR) as stage:
        for start in starts:
            made = stage.run({"surface_features": features[rows[start : start + part]]})
            for name, arrays in parts.items():
                arrays.append(made[name])
    deform, weights, colors = (np.concatenate(arrays) for arrays in parts.values())
    return deform, weights, colors


def index_maps(maps: SparseMaps, graph: Graph, stage: Stage) -> dict[str, Array]:
    """The index maps that a graph takes; their size goes on the stage's record."""
    feeds = maps.feeds(_names(graph))
    stage.index_map_bytes = sum(array.nbytes for array in feeds.values())
    return feeds


def _names(graph: Graph) -> Iterable[str]:
    return [spec.name for spec in graph.inputs]


def check_sizes(graph: Graph, name: str, feeds: Mapping[str, Array]) -> None:
    """See that the object fits the sizes the graph was made for. Raises InputError."""
    for spec in graph.inputs:
        if spec.name not in feeds:
            continue
        for symbol, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if not isinstance(symbol, str) or symbol not in graph.profiles:
                continue
            profile = graph.profiles[symbol]
            if not profile.min <= size <= profile.max:
                raise InputError(
                    f"the object is too {'small' if size < profile.min else 'large'} for {name}",
                    got=f"{size} {symbol.replace('_', ' ')}",
                    expected=f"{profile.min} to {profile.max}",
                    fix="another seed, or a mask of the whole object",
                )
