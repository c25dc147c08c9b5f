"""What ``samrt reconstruct`` writes and says: one object in its own frame, or several placed in a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from samrt.assets import Gaussians, Mesh, place, write_glb, write_obj, write_ply, write_preview, write_scene
from samrt.commands.output import print_json
from samrt.reconstruct import Reconstruction, StageRecord
from samrt.reconstruct.reconstructor import GaussianChoice
from samrt_engines.errors import InputError, MissingExtraError

MESH_SUFFIXES = (".glb", ".obj", ".ply")
GAUSSIANS = (32, 4)
"""What --gaussians takes: as many for each voxel as the big decoder makes, or those of the small one."""

SCENE_AZIMUTHS = (0.0, 45.0, 180.0, 315.0)
"""Of a scene's preview: from the camera's side, from right of it, from behind, from left of it."""

SCENE_VIEW_PX = 480  # larger than for one object: there is space between several

Asset = TypeVar("Asset", bound=Mesh | Gaussians)


@dataclass(frozen=True)
class Made:
    """The objects of a picture.

    objects: name -> object, in the order they were asked for; a mesh has the faces that were asked for
    memory: "staged" or "resident"
    stages: what was done once for all of them
    """

    objects: dict[str, Reconstruction]
    memory: str
    stages: tuple[StageRecord, ...] = ()

    @property
    def is_scene(self) -> bool:
        """Whether there are several, which poses place; one stays in its own frame."""
        return len(self.objects) > 1

    @property
    def matrices(self) -> list[NDArray[np.float64]]:
        """From each object's z-up frame to the camera."""
        poses = [one.pose for one in self.objects.values()]
        known = [pose.matrix_z_up for pose in poses if pose is not None]
        assert len(known) == len(poses)  # a model without poses is refused several objects
        return known

    @property
    def meshes(self) -> list[Mesh]:
        """One for each object, or none at all."""
        return [one.mesh for one in self.objects.values() if one.mesh is not None]

    @property
    def gaussians(self) -> list[Gaussians]:
        """One set for each object, or none at all."""
        return [one.gaussians for one in self.objects.values() if one.gaussians is not None]


@dataclass(frozen=True)
class Wanted:
    """Which files are to be written, and what has to be made for them."""

    out: Path | None
    ply: Path | None
    preview: Path | None
    small: bool = False
    no_mesh: bool = False
    linearize: bool = False
    faces: int | None = None

    @property
    def mesh(self) -> bool:
        """Whether a mesh is needed: for its file, or for a preview of nothing else."""
        return self.out is not None or (not self.no_mesh and self.ply is None)

    @property
    def gaussians(self) -> GaussianChoice:
        """Which Gaussians are needed: for their file, or for a preview without a mesh."""
        if self.ply is None and self.mesh:
            return False
        return 4 if self.small else True

    @property
    def files(self) -> list[Path]:
        """All that will be written."""
        return [path for path in (self.out, self.ply, self.preview) if path is not None]

    def check(self, gaussians: int) -> None:
        """Refuse, before minutes of work, what could not be written. Raises InputError, MissingExtraError."""
        if not self.files:
            raise InputError(
                "nothing to write", got="no output", expected="-o OUT.glb, --ply OUT.ply or --preview OUT.png"
            )
        if gaussians not in GAUSSIANS:
            raise InputError("unknown --gaussians", got=str(gaussians), expected=" or ".join(map(str, GAUSSIANS)))
        if self.out is not None and self.no_mesh:
            raise InputError("-o is for the mesh", got="--no-mesh", expected="--ply OUT.ply, for the Gaussians")
        self._check_faces()
        self._check_files()

    def write(self, made: Made) -> None:
        """Write the files, each whole. Raises InputError."""
        meshes, splats = made.meshes, made.gaussians
        scene = joined(meshes, made) if self._joins_meshes(made) else None
        if self.out is not None and meshes:
            self._write_meshes(self.out, meshes, made, scene)
        cloud = joined(splats, made)
        if self.ply is not None and cloud is not None:
            write_ply(self.ply, cloud)
        shown = cloud if scene is None else scene
        if self.preview is not None and shown is not None:
            if made.is_scene:
                write_preview(self.preview, shown, azimuths=SCENE_AZIMUTHS, size_px=SCENE_VIEW_PX)
            else:
                write_preview(self.preview, shown)

    def _check_faces(self) -> None:
        if self.faces is None:
            return
        if not self.mesh:
            got = "--no-mesh" if self.no_mesh else "--ply without -o, for which no mesh is made"
            raise InputError("--faces is for the mesh", got=got, expected="-o OUT.glb too")
        if find_spec("fast_simplification") is None:
            raise MissingExtraError.for_package("fast-simplification", extra="mesh", purpose="for --faces")

    def _check_files(self) -> None:
        kinds = (
            ("-o", self.out, MESH_SUFFIXES),
            ("--ply", self.ply, (".ply",)),
            ("--preview", self.preview, (".png",)),
        )
        for option, path, suffixes in kinds:
            if path is None:
                continue
            if path.suffix.lower() not in suffixes:
                raise InputError(
                    f"unknown kind of file for {option}", got=repr(path.name), expected=", ".join(suffixes)
                )
            if path.is_dir():
                raise InputError(f"cannot write {path}", got="a folder of that name", expected="a file")
            if not path.absolute().parent.is_dir():
                raise InputError(
                    f"cannot write {path}", got=f"no folder {path.parent}", expected="a folder that exists"
                )
        if len(set(self.files)) < len(self.files):
            raise InputError(
                "one name for two outputs", got=", ".join(map(str, self.files)), expected="different files"
            )

    def _joins_meshes(self, made: Made) -> bool:
        """Whether the meshes are needed as one: a GLB keeps several apart."""
        return bool(made.meshes) and (self.preview is not None or not made.is_scene or not self._is_glb)

    @property
    def _is_glb(self) -> bool:
        return self.out is not None and self.out.suffix.lower() == ".glb"

    def _write_meshes(self, out: Path, meshes: Sequence[Mesh], made: Made, scene: Mesh | None) -> None:
        if self._is_glb and made.is_scene:
            write_scene(out, meshes, made.matrices, names=list(made.objects), linearize=self.linearize)
            return
        assert scene is not None
        if self._is_glb:
            write_glb(out, scene, linearize=self.linearize)
        elif out.suffix.lower() == ".obj":
            write_obj(out, scene)
        else:
            write_ply(out, scene)


def joined(assets: Sequence[Asset], made: Made) -> Asset | None:
    """One object's asset as it is, several placed in the scene, None for none."""
    if not assets:
        return None
    return place(assets, made.matrices) if made.is_scene else assets[0]


def report(made: Made, wanted: Wanted, seed: int, json_output: bool) -> None:
    """Say what was made, on stdout."""
    if json_output:
        print_json(describe(made, wanted, seed))
        return
    for name, one in made.objects.items():
        print(f"{f'{name}: ' if made.is_scene else ''}{_counts(one)}; {_seconds(one.stages):.1f} s")
        if one.shrunk > 1:
            what = name if made.is_scene else "the object"
            mended = "" if one.pose is None else "; its pose makes up for it"
            print(f"{what} had too many voxels and was made at 1/{one.shrunk} of its size{mended}")
    if made.is_scene:
        total = _seconds(made.stages) + sum(_seconds(one.stages) for one in made.objects.values())
        print(f"{len(made.objects)} objects; {total:.1f} s")
    for path in wanted.files:
        print(f"written: {path}")


def describe(made: Made, wanted: Wanted, seed: int) -> dict[str, Any]:
    """What was made, in plain JSON values: one object's own, or a list of several."""
    head: dict[str, Any] = {"files": [str(path) for path in wanted.files], "seed": seed}
    if not made.is_scene:
        return head | describe_object(next(iter(made.objects.values())))
    objects = [{"name": name} | describe_object(one) for name, one in made.objects.items()]
    return head | {"memory": made.memory, "stages": [asdict(stage) for stage in made.stages], "objects": objects}


def describe_object(result: Reconstruction) -> dict[str, Any]:
    """One object, in plain JSON values. Its pose leads to the camera, also where it was placed in a scene."""
    pose = result.pose
    return {
        "voxels": len(result.coords),
        "shrunk": result.shrunk,
        "vertices": None if result.mesh is None else len(result.mesh.vertices),
        "faces": None if result.mesh is None else len(result.mesh.faces),
        "gaussians": None if result.gaussians is None else len(result.gaussians),
        "pose": None
        if pose is None
        else {
            "rotation_wxyz": pose.rotation.tolist(),
            "translation": pose.translation.tolist(),
            "scale": pose.scale.tolist(),
            "matrix_z_up": pose.matrix_z_up.tolist(),
            "matrix_y_up": pose.matrix_y_up.tolist(),
        },
        "stages": [asdict(stage) for stage in result.stages],
    }


def _counts(result: Reconstruction) -> str:
    counts = [f"{len(result.coords)} voxels"]
    if result.mesh is not None:
        counts.append(f"{len(result.mesh.vertices)} vertices and {len(result.mesh.faces)} faces")
    if result.gaussians is not None:
        counts.append(f"{len(result.gaussians)} Gaussians")
    return ", ".join(counts)


def _seconds(stages: Sequence[StageRecord]) -> float:
    return sum(stage.seconds for stage in stages)
