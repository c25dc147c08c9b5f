"""One picture and one mask to a mesh, Gaussians and a pose."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samrt.bundle import open_bundle
from samrt.manifest import Manifest
from samrt.numbers import ReconstructionNumbers
from samrt.reconstruct.depth import DepthModel, open_depth
from samrt.reconstruct.flow_sampling import Schedule, plan_schedule
from samrt.reconstruct.pipeline import (
    MESH_GRAPHS,
    SAMPLING_GRAPHS,
    SHAPE,
    SLAT,
    SLAT_CONDITION,
    SLAT_GS,
    SLAT_GS_4,
    SS_CONDITION,
    SS_FLOW,
    Job,
    Noise,
    find_voxels,
    make_conditions,
    make_gaussians,
    make_mesh,
    modalities,
    sample_latent,
    sample_structure,
)
from samrt.reconstruct.pointmap import AXES, PointViews, check_pointmap, make_point_views
from samrt.reconstruct.pose import Pose, decode_pose
from samrt.reconstruct.preprocess import BoolArray, Float32Array, Window, check_picture, crop_window, make_views
from samrt.reconstruct.result import Reconstruction
from samrt.reconstruct.stages import Memory, Progress, Shelf, Stages, check_memory
from samrt.sparse import SparseMaps
from samrt_engines.closing import ClosesItself
from samrt_engines.errors import BundleError, InputError, ManifestError

Steps = int | tuple[int, int]
GaussianChoice = bool | Literal[4]


class Reconstructor(ClosesItself):
    """A model that makes 3D of a picture and a mask.

    Every call stands alone. Close it, or use it in a ``with`` statement.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        memory: str = "staged",
        depth: str | os.PathLike[str] | None = None,
        allow_unverified: bool = False,
    ) -> None:
        """Open a bundle.

        bundle: the folder that ``samrt export`` wrote
        backend: "onnxruntime" (what "auto" is here), "openvino" or "tensorrt"; device, threads: as in `samrt.load`
        memory: "staged" opens each graph when its stage begins and closes it at the end, so that one is in memory at a
            time; "resident" keeps all of them, for many objects
        depth: where pointmaps come from if the caller brings none: a bundle folder of MoGe, or an official MoGe-2 ONNX file
        allow_unverified: as in `samrt.load`. Plans opened one at a time rely on the self-test of ``samrt build``

        Raises BundleError (ManifestError, ChecksumError, UnsafePathError) for a folder that is no sound bundle of such a
        model, BackendError, InputError.
        """
        opened = open_bundle(bundle)
        self._numbers = check_reconstruction(opened.manifest)
        self._memory: Memory = check_memory(memory)
        self._shelf = Shelf(
            opened,
            backend=backend,
            device=device,
            threads=threads,
            memory=self._memory,
            allow_unverified=allow_unverified,
        )
        self._shelf.check(tuple(opened.manifest.graphs))
        self._depth: DepthModel | None = None
        if depth is not None:
            self._depth = open_depth(depth, backend=backend, device=device, threads=threads)
        if self._memory == "resident":
            self._shelf.open_all(tuple(opened.manifest.graphs))

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about the model."""
        return self._shelf.bundle.manifest

    def reconstruct(
        self,
        image: Any,
        mask: Any,
        *,
        pointmap: NDArray[np.floating] | None = None,
        seed: int = 0,
        noise: Noise | None = None,
        steps: Steps | None = None,
        few_steps: bool = False,
        mesh: bool = True,
        gaussians: GaussianChoice = True,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        exact_memory: bool = False,
    ) -> Reconstruction:
        """Make 3D of one object.

        image: uint8 (H, W, 3) RGB; also whatever else `samrt.as_rgb_uint8` takes
        mask: bool (H, W), True on the object
        pointmap: float (H, W, 3), the surface behind each pixel in PyTorch3D's camera axes (x left, y up, z into the
            picture); NaN or infinity where unknown. None: from the source of depth, where the model takes one
        seed: of the noise; the same seed, bundle, backend and machine make the same object
        noise: modality -> noise instead of what `seed` draws: shape, rotation_6d, translation, scale, translation_scale of the
            shapes that the graph ss_flow has, and slat (N, channels) for the N voxels that come out
        steps: of both flows, or (structure, latent); None is the model's own
        few_steps: no guidance, and 4 steps of the structure; for models that were trained for it
        mesh: whether to make a mesh
        gaussians: True: as many per voxel as the model has; 4: by the small decoder; False: none
        progress: called with (stage, steps done, steps of the stage)
        cancelled: asked at every step; where it says True the work stops with `Cancelled`
        exact_memory: reset the process's peak of resident memory at each stage, so that their records are exact

        Raises ImageError, PromptError, InputError for what does not fit; Cancelled; BackendError.
        """
        picture, inside = check_picture(image, mask)
        crop = crop_window(inside, self._numbers.crop_scale)  # a mask too small is refused before anything runs
        structure, latent = self._schedules(steps, few_steps)
        gaussian_graph = self._gaussian_graph(gaussians)
        self._check_request(noise, mesh)
        stages = Stages(progress, cancelled, exact_memory=exact_memory)
        job = Job(self._shelf, stages, self._numbers)
        points = self._pointmap(picture, pointmap, stages)
        with stages.stage("views"):
            feeds: dict[str, NDArray[Any]] = {"pixels": make_views(picture, inside, self._numbers)}
            seen = self._see_points(points, inside, crop)
            if seen is not None:
                feeds |= {"points": seen.points, "points_valid": seen.valid}
        del points
        generator = np.random.default_rng(seed)
        structure_condition, latent_condition = make_conditions(job, feeds)
        tokens = sample_structure(job, structure_condition, structure, generator, noise)
        coords, shrunk = find_voxels(job, tokens[SHAPE], generator)
        maps = SparseMaps.from_coords(coords, grid=self._numbers.grid, window=self._numbers.window)
        slat = sample_latent(job, latent_condition, maps, latent, generator, noise)
        return Reconstruction(
            gaussians=None if gaussian_graph is None else make_gaussians(job, gaussian_graph, slat, maps),
            mesh=make_mesh(job, slat, maps) if mesh else None,
            pose=self._pose(tokens, seen, shrunk),
            coords=coords,
            latent=slat,
            seed=seed,
            shrunk=shrunk,
            stages=tuple(stages.records),
        )

    def close(self) -> None:
        """Free the graphs' memory. Closing twice is fine."""
        self._shelf.close()

    def _schedules(self, steps: Steps | None, few_steps: bool) -> tuple[Schedule, Schedule]:
        structure, latent = steps if isinstance(steps, tuple) else (steps, steps)
        if few_steps and not self._numbers.structure.shortcut:
            raise InputError(
                f"{self.manifest.source.model} was not trained for few steps",
                got="few_steps=True",
                expected="a model whose manifest says structure.shortcut",
                fix="steps=10, for a quicker and rougher object",
            )
        return (
            plan_schedule(self._numbers.structure, steps=structure, few_steps=few_steps),
            plan_schedule(self._numbers.latent, steps=latent, few_steps=few_steps),
        )

    def _gaussian_graph(self, gaussians: GaussianChoice) -> str | None:
        """The graph that makes the Gaussians that are asked for."""
        if gaussians is False:
            return None
        if gaussians is not True and gaussians != 4:
            raise InputError("unknown number of Gaussians", got=f"gaussians={gaussians!r}", expected="True, 4 or False")
        wanted = SLAT_GS if gaussians is True else SLAT_GS_4
        if wanted not in self._shelf:
            have = [name for name in (SLAT_GS, SLAT_GS_4) if name in self._shelf]
            raise InputError(
                f"{self.manifest.source.model} has no {wanted}",
                got=f"gaussians={gaussians!r}",
                expected=f"graph {' or '.join(have)}" if have else "gaussians=False",
            )
        return wanted

    def _check_request(self, noise: Noise | None, mesh: bool) -> None:
        missing = [name for name in MESH_GRAPHS if name not in self._shelf]
        if mesh and missing:
            raise InputError(
                f"{self.manifest.source.model} makes no mesh", got=f"no {', '.join(missing)}", expected="mesh=False"
            )
        known = {*modalities(self.manifest.graphs[SS_FLOW]), SLAT}
        unknown = sorted(set(noise or ()) - known)
        if unknown:
            raise InputError("noise of unknown modalities", got=", ".join(unknown), expected=", ".join(sorted(known)))

    def _pointmap(
        self, picture: NDArray[np.uint8], pointmap: NDArray[np.floating] | None, stages: Stages
    ) -> Float32Array | None:
        """The caller's pointmap, or one from the source of depth; None for a model that takes none."""
        hw = picture.shape[0], picture.shape[1]
        if self._numbers.point_px is None:
            return None
        if pointmap is not None:
            return check_pointmap(pointmap, hw)
        if self._depth is None:
            raise InputError(
                f"{self.manifest.source.model} needs to know how far away things are",
                got="no pointmap and no source of depth",
                expected=f"one of three: pointmap=float32 (H, W, 3) in {AXES}; depth=a MoGe bundle; depth=a MoGe-2 ONNX file",
                fix="samrt export moge-vitl -o moge, then samrt.Reconstructor(bundle, depth='moge')",
            )
        with stages.stage("depth") as stage:
            points = check_pointmap(self._depth.estimate(picture), hw)
            stage.step()
        return points

    def _see_points(self, points: Float32Array | None, mask: BoolArray, crop: Window) -> PointViews | None:
        if points is None or self._numbers.point_px is None:
            return None
        return make_point_views(points, mask, crop, self._numbers.view_px, self._numbers.point_px)

    def _pose(self, tokens: dict[str, Float32Array], seen: PointViews | None, shrunk: int) -> Pose | None:
        if self._numbers.pose is None:
            return None
        return decode_pose(
            tokens,
            self._numbers.pose,
            scene_scale=1.0 if seen is None else seen.scale,
            scene_shift=np.zeros(3, np.float32) if seen is None else seen.shift,
            shrunk=shrunk,
        )


def check_reconstruction(manifest: Manifest) -> ReconstructionNumbers:
    """The numbers of a model that makes 3D. Raises BundleError for another one, ManifestError where graphs are missing."""
    if manifest.reconstruction is None:
        raise BundleError(
            f"{manifest.source.model} makes no 3D",
            got=f"a bundle whose abilities are {', '.join(manifest.abilities)}",
            expected="a bundle with the ability reconstruction",
            fix="samrt export sam3d-objects -o FOLDER",
        )
    missing = [name for name in SAMPLING_GRAPHS if name not in manifest.graphs]
    made = {spec.name for graph in manifest.graphs.values() for spec in graph.outputs}
    missing += [name for name in (SS_CONDITION, SLAT_CONDITION) if name not in made]
    if missing:
        raise ManifestError(
            "manifest.json: graphs", got=f"no {', '.join(missing)}", expected="those too", fix="samrt export, once more"
        )
    return manifest.reconstruction
