"""``samrt reconstruct``: a picture and a mask in, a mesh and Gaussians out."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from samrt.assets import write_glb, write_obj, write_ply, write_preview
from samrt.commands.output import print_json, progress_bar
from samrt.commands.segment import read_click
from samrt.commands.track import interrupts
from samrt.images import read_image
from samrt.media.frame_prompts import read_mask_file
from samrt.model import load
from samrt.prompts import Prompts
from samrt.reconstruct import Cancelled, Reconstruction, Reconstructor
from samrt.reconstruct.reconstructor import GaussianChoice
from samrt_engines.errors import InputError, PromptError

MESH_SUFFIXES = (".glb", ".obj", ".ply")
GAUSSIANS = (32, 4)
"""What --gaussians takes: as many for each voxel as the big decoder makes, or those of the small one."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reconstruct")(reconstruct)


def reconstruct(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP, ...")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="A bundle folder of a model that makes 3D.")],
    mask: Annotated[
        Path | None, typer.Argument(help="Where the object is: a picture, black outside, or .npy; or --segmenter.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The mesh: .glb or .obj (y-up), .ply (z-up).")] = None,
    ply: Annotated[Path | None, typer.Option(help="The Gaussians: .ply.")] = None,
    preview: Annotated[Path | None, typer.Option(help="A picture of the result from a few angles: .png.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="A bundle that makes the mask from --point.")] = None,
    point: Annotated[list[str] | None, typer.Option(help="X,Y or X,Y,LABEL in pixels, with --segmenter.")] = None,
    pointmap: Annotated[Path | None, typer.Option(help=".npy, float (H, W, 3), PyTorch3D axes.")] = None,
    depth: Annotated[
        Path | None, typer.Option(help="Without a pointmap: a MoGe bundle, or MoGe-2's ONNX file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Of both flows; the model's own where left out.")] = None,
    few_steps: Annotated[bool, typer.Option("--few-steps", help="4 steps of the structure, no guidance.")] = False,
    gaussians: Annotated[int, typer.Option(help="For each voxel: 32 (all that there are) or 4 (small decoder).")] = 32,
    no_mesh: Annotated[bool, typer.Option("--no-mesh", help="Make only Gaussians, also for the preview.")] = False,
    linearize: Annotated[bool, typer.Option("--linearize", help="Colours of a GLB as linear light.")] = False,
    memory: Annotated[str, typer.Option(help="staged (one graph at a time) or resident.")] = "staged",
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make 3D of one object of a picture: a mesh with colours, Gaussians, and where it stands.

    The object's mask comes from a file, or from points and a segmentation bundle. Outputs are written at the end, each
    whole. Ctrl-C stops at the next step and writes nothing.

    samrt reconstruct room.jpg chair.png -b bundles/sam3d-objects --depth bundles/moge -o chair.glb --ply chair.ply

    samrt reconstruct room.jpg -b bundles/sam3d-objects --segmenter bundles/sam2.1-tiny --point 320,200 -o chair.glb
    """
    wanted = Wanted(out, ply, preview, small=gaussians == 4, no_mesh=no_mesh, linearize=linearize)
    wanted.check(gaussians)
    picture = read_image(image)
    points = None if pointmap is None else read_pointmap(pointmap)
    try:
        with progress_bar("reconstruct") as progress, interrupts() as interrupt:
            inside = find_mask(picture, mask, segmenter, point or [], backend=backend, device=device, threads=threads)
            with Reconstructor(
                bundle, backend=backend, device=device, threads=threads, memory=memory, depth=depth
            ) as reconstructor:
                result = reconstructor.reconstruct(
                    picture,
                    inside,
                    pointmap=points,
                    seed=seed,
                    steps=steps,
                    few_steps=few_steps,
                    mesh=wanted.mesh,
                    gaussians=wanted.gaussians,
                    progress=progress,
                    cancelled=interrupt.came,
                )
            progress("writing", 0, 1)
            wanted.write(result)
    except Cancelled:
        raise typer.Exit(128 + interrupt.signal) from None
    except KeyboardInterrupt:  # the second one
        raise typer.Exit(128 + signal.SIGINT) from None
    _report(result, wanted, json_output)


@dataclass(frozen=True)
class Wanted:
    """Which files are to be written, and what has to be made for them."""

    out: Path | None
    ply: Path | None
    preview: Path | None
    small: bool
    no_mesh: bool
    linearize: bool

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
        """Refuse, before minutes of work, what could not be written. Raises InputError."""
        if not self.files:
            raise InputError(
                "nothing to write", got="no output", expected="-o OUT.glb, --ply OUT.ply or --preview OUT.png"
            )
        if gaussians not in GAUSSIANS:
            raise InputError("unknown --gaussians", got=str(gaussians), expected=" or ".join(map(str, GAUSSIANS)))
        if self.out is not None and self.no_mesh:
            raise InputError("-o is for the mesh", got="--no-mesh", expected="--ply OUT.ply, for the Gaussians")
        kinds = (
            ("-o", self.out, MESH_SUFFIXES),
            ("--ply", self.ply, (".ply",)),
            ("--preview", self.preview, (".png",)),
        )
        for option, path, suffixes in kinds:
            if path is not None and path.suffix.lower() not in suffixes:
                raise InputError(
                    f"unknown kind of file for {option}", got=repr(path.name), expected=", ".join(suffixes)
                )
            if path is not None and path.is_dir():
                raise InputError(f"cannot write {path}", got="a folder of that name", expected="a file")
            if path is not None and not path.absolute().parent.is_dir():
                raise InputError(
                    f"cannot write {path}", got=f"no folder {path.parent}", expected="a folder that exists"
                )
        if len(set(self.files)) < len(self.files):
            raise InputError(
                "one name for two outputs", got=", ".join(map(str, self.files)), expected="different files"
            )

    def write(self, result: Reconstruction) -> None:
        """Write the files, each whole. Raises InputError."""
        if self.out is not None and result.mesh is not None:
            if self.out.suffix.lower() == ".glb":
                write_glb(self.out, result.mesh, linearize=self.linearize)
            elif self.out.suffix.lower() == ".obj":
                write_obj(self.out, result.mesh)
            else:
                write_ply(self.out, result.mesh)
        if self.ply is not None and result.gaussians is not None:
            write_ply(self.ply, result.gaussians)
        shown = result.gaussians if result.mesh is None else result.mesh
        if self.preview is not None and shown is not None:
            write_preview(self.preview, shown)


def find_mask(
    picture: NDArray[np.uint8],
    mask: Path | None,
    segmenter: Path | None,
    points: list[str],
    *,
    backend: str,
    device: str,
    threads: int | None,
) -> NDArray[np.bool_]:
    """The object's mask, bool (H, W): from its file, or by a segmentation bundle from points. Raises PromptError."""
    if (mask is None) == (segmenter is None):
        raise PromptError(
            "it is not clear where the object is",
            got="neither a mask nor --segmenter" if mask is None else "a mask and --segmenter",
            expected="one of them",
            fix="samrt reconstruct IMAGE MASK ..., or --segmenter BUNDLE --point X,Y",
        )
    if segmenter is None and points:
        raise PromptError("--point without --segmenter", got=", ".join(points), fix="--segmenter BUNDLE")
    if mask is not None:
        return read_mask(mask)
    if not points:
        raise PromptError("--segmenter without --point", got="no point", expected="--point X,Y on the object")
    assert segmenter is not None
    clicks = [read_click(text) for text in points]
    with load(segmenter, backend=backend, device=device, threads=threads) as model:
        prompts = Prompts(points=[xy for xy, _ in clicks], labels=[label for _, label in clicks])
        best = model.decode(model.encode(picture), prompts).best()
    inside: NDArray[np.bool_] = best.masks[0, 0]
    return inside


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask file with one object in it. Raises PromptError."""
    objects = read_mask_file(path)
    if len(objects) > 1:
        raise PromptError(
            f"several objects in {path}",
            got=f"numbers {', '.join(map(str, objects))}",
            expected="a mask of one object",
            fix="one run for each: a bool .npy array, or a picture that is black outside",
        )
    return next(iter(objects.values()))


def read_pointmap(path: Path) -> NDArray[np.floating]:
    """A .npy file of floats. Raises InputError; whether it fits the picture the model says."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the pointmap {path}", got=got, expected="a .npy array (H, W, 3)") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"cannot read the pointmap {path}", got="an archive", expected="a .npy array (H, W, 3)")
    return array


def _report(result: Reconstruction, wanted: Wanted, json_output: bool) -> None:
    if json_output:
        print_json(describe(result, wanted))
        return
    counts = [f"{len(result.coords)} voxels"]
    if result.mesh is not None:
        counts.append(f"{len(result.mesh.vertices)} vertices and {len(result.mesh.faces)} faces")
    if result.gaussians is not None:
        counts.append(f"{len(result.gaussians)} Gaussians")
    print(f"{', '.join(counts)}; {sum(stage.seconds for stage in result.stages):.1f} s")
    if result.shrunk > 1:
        print(f"the object had too many voxels and was made at 1/{result.shrunk} of its size; its pose makes up for it")
    for path in wanted.files:
        print(f"written: {path}")


def describe(result: Reconstruction, wanted: Wanted) -> dict[str, Any]:
    """What was made, in plain JSON values."""
    pose = result.pose
    return {
        "files": [str(path) for path in wanted.files],
        "seed": result.seed,
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
