"""``samrt reconstruct``: a picture and masks in, meshes and Gaussians out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape

from samrt.assets import decimate
from samrt.bundle import open_bundle
from samrt.commands.output import progress_bar
from samrt.commands.scene_output import Made, Wanted, report
from samrt.commands.track import interrupts, read_prompts
from samrt.images import read_image
from samrt.media.frame_prompts import FramePrompt, read_mask_file
from samrt.model import load
from samrt.prompts import Prompts
from samrt.reconstruct import Cancelled, Reconstruction, Reconstructor
from samrt.reconstruct.depth import open_depth
from samrt.reconstruct.preprocess import check_picture, crop_window
from samrt.reconstruct.reconstructor import check_reconstruction
from samrt.reconstruct.stages import MEMORY, Progress, Stages
from samrt_engines.errors import InputError, PromptError

POINT = "X,Y[,LABEL][:OBJECT]"

MEMORY_CHOICES = ("auto", *MEMORY)

Masks = Mapping[str, NDArray[np.bool_]]
"""Name of an object -> bool (H, W), True on it."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reconstruct")(reconstruct)


def reconstruct(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP, ...")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="A bundle folder of a model that makes 3D.")],
    mask: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Where an object is: a picture, black outside, or .npy. Several, or an indexed picture, make a scene. "
            "Or --segmenter."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The mesh: .glb or .obj (y-up), .ply (z-up).")] = None,
    ply: Annotated[Path | None, typer.Option(help="The Gaussians: .ply.")] = None,
    preview: Annotated[Path | None, typer.Option(help="A picture of the result from a few angles: .png.")] = None,
    segmenter: Annotated[Path | None, typer.Option(help="A bundle that makes the masks from --point.")] = None,
    point: Annotated[
        list[str] | None, typer.Option(help=escape(f"{POINT} in pixels, with --segmenter; label 1 (on it) or 0."))
    ] = None,
    pointmap: Annotated[Path | None, typer.Option(help=".npy, float (H, W, 3), PyTorch3D axes.")] = None,
    depth: Annotated[
        Path | None, typer.Option(help="Without a pointmap: a MoGe bundle, or MoGe-2's ONNX file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise; every object has the same.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Of both flows; the model's own where left out.")] = None,
    few_steps: Annotated[bool, typer.Option("--few-steps", help="4 steps of the structure, no guidance.")] = False,
    gaussians: Annotated[int, typer.Option(help="For each voxel: 32 (all that there are) or 4 (small decoder).")] = 32,
    no_mesh: Annotated[bool, typer.Option("--no-mesh", help="Make only Gaussians, also for the preview.")] = False,
    faces: Annotated[int | None, typer.Option(min=4, help="Decimate each mesh to at most about so many.")] = None,
    linearize: Annotated[bool, typer.Option("--linearize", help="Colours of a GLB as linear light.")] = False,
    memory: Annotated[
        str,
        typer.Option(
            help="staged: one graph at a time; resident: all of them, read once; auto: staged for one object, resident "
            "for several."
        ),
    ] = "auto",
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make 3D of objects of a picture: meshes with colours, Gaussians, and where they stand.

    Masks come from files, or from points and a segmentation bundle. One object is written in its own frame. Several
    are placed as the picture shows them, the camera at the origin: a GLB has a node for each, named as its mask's file;
    OBJ and PLY files hold all of them as one. Outputs are written at the end, each whole. Ctrl-C stops at the next step
    and writes nothing.

    samrt reconstruct room.jpg chair.png -b bundles/sam3d-objects --depth bundles/moge -o chair.glb --ply chair.ply

    samrt reconstruct room.jpg chair.png table.png -b bundles/sam3d-objects --depth bundles/moge -o room.glb

    samrt reconstruct room.jpg -b bundles/sam3d-objects --segmenter bundles/sam2.1-tiny --point 320,200 -o chair.glb
    """
    wanted = Wanted(out, ply, preview, small=gaussians == 4, no_mesh=no_mesh, linearize=linearize, faces=faces)
    wanted.check(gaussians)
    if memory not in MEMORY_CHOICES:
        raise InputError("unknown memory", got=repr(memory), expected=", ".join(MEMORY_CHOICES))
    picture = read_image(image)
    points = None if pointmap is None else read_pointmap(pointmap)
    task = Task(wanted, bundle, backend, device, threads, memory, depth, points, seed, steps, few_steps)
    try:
        with progress_bar("reconstruct") as progress, interrupts() as interrupt:
            masks = find_masks(
                picture, mask or [], segmenter, point or [], backend=backend, device=device, threads=threads
            )
            made = task.make(picture, masks, progress, interrupt.came)
            Stages(progress, interrupt.came).report("writing", 0, 1)
            wanted.write(made)
    except Cancelled:
        raise typer.Exit(128 + interrupt.signal) from None
    except KeyboardInterrupt:  # the second one
        raise typer.Exit(128 + signal.SIGINT) from None
    report(made, wanted, seed, json_output)


@dataclass(frozen=True, eq=False)
class Task:
    """How objects are to be made. memory: one of MEMORY_CHOICES; points: a pointmap; all else as the command takes it."""

    wanted: Wanted
    bundle: Path
    backend: str
    device: str
    threads: int | None
    memory: str
    depth: Path | None
    points: NDArray[np.floating] | None
    seed: int
    steps: int | None
    few_steps: bool

    def make(self, picture: NDArray[np.uint8], masks: Masks, progress: Progress, cancelled: Callable[[], bool]) -> Made:
        """Make every object. What all of them share, how far away things are, is found once.

        Errors: see `Reconstructor`; of several objects, the message says which one it is about.
        """
        several = len(masks) > 1
        memory = self.memory
        if memory == "auto":
            memory = "resident" if several else "staged"
        shared = Stages(progress, cancelled)
        points = self._prepare_scene(picture, masks, shared) if several else self.points
        objects = {}
        shared.report("loading", 0, 1)
        with Reconstructor(
            self.bundle,
            backend=self.backend,
            device=self.device,
            threads=self.threads,
            memory=memory,
            depth=self.depth,
        ) as reconstructor:
            for index, (name, mask) in enumerate(masks.items(), start=1):
                label = f"{name} ({index} of {len(masks)})" if several else None
                with errors_about(label):
                    objects[name] = self._make_one(
                        reconstructor, picture, mask, points, labelled(progress, label), cancelled
                    )
        return Made(objects, memory, tuple(shared.records))

    def _prepare_scene(self, picture: NDArray[np.uint8], masks: Masks, stages: Stages) -> NDArray[np.floating] | None:
        """Refuse, before minutes of work, what cannot become a scene; then see how far away things are, for all objects.

        returns: a pointmap, or None for a model that takes none
        Raises PromptError, InputError, and what a source of depth raises.
        """
        manifest = open_bundle(self.bundle).manifest
        numbers = check_reconstruction(manifest)
        if numbers.pose is None:
            raise PromptError(
                f"{manifest.source.model} does not say where objects stand, so they cannot be placed in a scene",
                got=f"{len(masks)} objects: {', '.join(masks)}",
                expected="one object, or a model with poses",
                fix="one run for each object, with a mask file of its own",
            )
        for index, (name, mask) in enumerate(masks.items(), start=1):
            with errors_about(f"{name} ({index} of {len(masks)})"):
                crop_window(check_picture(picture, mask)[1], numbers.crop_scale)
        if self.points is not None or numbers.point_px is None:
            return self.points
        if self.depth is None:
            raise InputError(
                f"{manifest.source.model} needs to know how far away things are",
                got="neither --pointmap nor --depth",
                expected="one of them",
                fix="samrt export moge-vitl -o moge, then --depth moge",
            )
        depth = open_depth(self.depth, backend=self.backend, device=self.device, threads=self.threads)
        with stages.stage("depth") as stage:
            points = depth.estimate(picture)
            stage.step()
        return points

    def _make_one(
        self,
        reconstructor: Reconstructor,
        picture: NDArray[np.uint8],
        mask: NDArray[np.bool_],
        points: NDArray[np.floating] | None,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> Reconstruction:
        """One object, its mesh decimated."""
        result = reconstructor.reconstruct(
            picture,
            mask,
            pointmap=points,
            seed=self.seed,
            steps=self.steps,
            few_steps=self.few_steps,
            mesh=self.wanted.mesh,
            gaussians=self.wanted.gaussians,
            progress=progress,
            cancelled=cancelled,
        )
        if result.mesh is None or self.wanted.faces is None:
            return result
        stages = Stages(progress, cancelled)
        with stages.stage("decimation") as stage:
            mesh = decimate(result.mesh, faces=self.wanted.faces)
            stage.step()
        return replace(result, mesh=mesh, stages=(*result.stages, *stages.records))


def labelled(progress: Progress, label: str | None) -> Progress:
    """The same progress, with an object's name before its stages."""
    if label is None:
        return progress
    shown = escape(label)  # a file may be called a[b].png, and a progress bar reads markup
    return lambda stage, done, total: progress(f"{shown}: {stage}", done, total)


@contextmanager
def errors_about(label: str | None) -> Iterator[None]:
    """Put an object's name before what is wrong with it."""
    try:
        yield
    except InputError as error:
        if label is None:
            raise
        raise type(error)(f"{label}: {error.what}", got=error.got, expected=error.expected, fix=error.fix) from error


def find_masks(
    picture: NDArray[np.uint8],
    files: Sequence[Path],
    segmenter: Path | None,
    points: list[str],
    *,
    backend: str,
    device: str,
    threads: int | None,
) -> dict[str, NDArray[np.bool_]]:
    """The objects' masks, bool (H, W), by name: from files, or by a segmentation bundle from points. Raises PromptError."""
    if bool(files) == (segmenter is not None):
        raise PromptError(
            "it is not clear where the object is",
            got="a mask and --segmenter" if files else "neither a mask nor --segmenter",
            expected="one of them",
            fix="samrt reconstruct IMAGE MASK ..., or --segmenter BUNDLE --point X,Y",
        )
    if segmenter is None:
        if points:
            raise PromptError("--point without --segmenter", got=", ".join(points), fix="--segmenter BUNDLE")
        return read_masks(files)
    clicks = read_clicks(points)
    with load(segmenter, backend=backend, device=device, threads=threads) as model:
        features = model.encode(picture)
        masks = {}
        for click in clicks:
            best = model.decode(features, Prompts(points=click.points, labels=click.labels)).best()
            masks[f"object_{click.obj_id}"] = best.masks[0, 0]
    return masks


def read_clicks(points: list[str]) -> list[FramePrompt]:
    """The points of each object. Raises PromptError."""
    if not points:
        raise PromptError("--segmenter without --point", got="no point", expected="--point X,Y on the object")
    clicks = read_prompts(points, [], [])
    if any(click.frame is not None for click in clicks):
        raise PromptError("a picture has no frames", got=", ".join(points), expected=f"--point {POINT}")
    return clicks


def read_masks(files: Sequence[Path]) -> dict[str, NDArray[np.bool_]]:
    """Mask files: an object is named as its file, and one of several in a file has its number too. Raises PromptError."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for path in files:
        objects = read_mask_file(path)
        for number, mask in objects.items():
            name = path.stem if len(objects) == 1 else f"{path.stem}_{number}"
            again = (f"{name}_{count}" for count in range(2, len(masks) + 2))
            masks[name if name not in masks else next(one for one in again if one not in masks)] = mask
    return masks


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
