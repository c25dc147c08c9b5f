"""``samrt segment``: a picture and prompts in, a picture with masks out."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from samrt.commands.output import print_json, progress_bar, write_whole
from samrt.draw import overlay
from samrt.images import read_image
from samrt.model import Model, load
from samrt.prompts import LABELS, Prompts
from samrt.result import Result
from samrt_engines.errors import InputError, PromptError

FORMATS = ("overlay", "mask", "cutout")
MASK_LOGIT = 10.0
"""Logit of a pixel inside a mask picture; outside it is the negative."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("segment")(segment)


def segment(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP, ...")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="A bundle folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes: .png, or .npy for bool masks.")],
    point: Annotated[list[str] | None, typer.Option(help="X,Y or X,Y,LABEL in pixels; label 1 (on it) or 0.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="X0,Y0,X1,Y1 in pixels.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask prompt: .npy of low-res logits, or a picture.")] = None,
    single: Annotated[bool, typer.Option("--single", help="One candidate instead of the best of several.")] = False,
    output_format: Annotated[str, typer.Option("--format", help="overlay, mask or cutout.")] = "overlay",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Segment a picture by points, boxes or a mask.

    Points belong together and make one prompt, with the box if there is one. Several boxes are several prompts.

    samrt segment dog.jpg -b bundles/nano --point 320,200 --point 10,10,0 -o dog.png
    """
    if output_format not in FORMATS:
        raise InputError("unknown --format", got=repr(output_format), expected=", ".join(FORMATS))
    if out.suffix not in (".png", ".npy"):
        raise InputError("unknown kind of output", got=repr(out.name), expected="a name ending in .png or .npy")
    picture = read_image(image)
    with progress_bar("segment") as progress:
        progress("loading", 0, 3)
        with load(bundle, threads=threads) as model:
            prompts = read_prompts(point or [], box or [], mask, model)
            progress("encoding", 1, 3)
            features = model.encode(picture)
            progress("decoding", 2, 3)
            result = model.decode(features, prompts, multimask=not single).best()
    write_whole(out, _rendered(out, output_format, picture, prompts, result))
    _report(result, out, json_output)


def read_prompts(points: list[str], boxes: list[str], mask: Path | None, model: Model) -> Prompts:
    """Prompts from command-line texts. Raises PromptError."""
    clicks = [read_click(text) for text in points]
    corners = [read_numbers(text, "--box", (4,), "X0,Y0,X1,Y1") for text in boxes]
    if clicks and len(corners) > 1:
        raise PromptError(
            "points with several boxes",
            got=f"{len(clicks)} points, {len(corners)} boxes",
            expected="points and one box at most",
        )
    return Prompts(
        points=[xy for xy, _ in clicks] or None,
        labels=[label for _, label in clicks] or None,
        boxes=(corners[0] if len(corners) == 1 else corners) if corners else None,
        masks=_mask_logits(mask, model) if mask else None,
    )


def read_click(text: str) -> tuple[list[float], int]:
    """A point and its label, which is 1 where none is given. Raises PromptError."""
    numbers, label = text, "1"
    if text.count(",") == 2:
        numbers, _, label = text.rpartition(",")
    xy = read_numbers(numbers, "--point", (2,), "X,Y or X,Y,LABEL")
    if not re.fullmatch(r"\s*[+-]?\d{1,9}\s*", label):
        known = ", ".join(f"{number} {name.replace('_', ' ')}" for number, name in LABELS.items())
        raise PromptError(
            "the label of --point is not a whole number", got=repr(text), expected=known, fix="--point X,Y,1"
        )
    return xy, int(label)


def read_numbers(text: str, option: str, counts: tuple[int, ...], expected: str) -> list[float]:
    """Numbers with commas between them. Raises PromptError, which names the option and what it takes."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise PromptError(f"cannot read {option}", got=repr(text), expected=expected, fix=f"{option} {expected}")
    return values


def _mask_logits(path: Path, model: Model) -> NDArray[np.float32]:
    """A mask prompt: logits as they are, or a picture whose non-black pixels are inside, brought to the model's size."""
    if path.suffix == ".npy":
        try:
            logits = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PromptError(
                f"cannot read the mask {path}", got=str(error), expected="a .npy array of logits"
            ) from error
        return np.asarray(logits, np.float32)
    import PIL.Image

    inside = read_image(path).any(axis=2)
    height, width = model.manifest.numbers.prompts.mask_size_hw
    small = PIL.Image.fromarray(inside.astype(np.float32)).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return (np.asarray(small) * 2 - 1) * np.float32(MASK_LOGIT)


def _rendered(out: Path, kind: str, picture: NDArray[np.uint8], prompts: Prompts, result: Result) -> bytes:
    """The content of the output file."""
    import PIL.Image

    masks = result.masks[:, 0]  # (P, H, W)
    buffer = io.BytesIO()
    if out.suffix == ".npy":
        np.save(buffer, masks)
        return buffer.getvalue()
    if kind == "overlay":
        array = overlay(picture, masks, points=prompts.points, labels=prompts.labels, boxes=prompts.boxes)
    elif kind == "mask":  # prompt k is written as grey value k for several, as white for one
        order = np.arange(1, len(masks) + 1, dtype=np.uint8)[:, None, None] if len(masks) > 1 else np.uint8(255)
        array = (masks * order).max(axis=0)
    else:
        array = np.dstack((picture, masks.any(axis=0).astype(np.uint8) * 255))
    PIL.Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _report(result: Result, out: Path, json_output: bool) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": index, "score": float(result.scores[index, 0]), "area_px": int(result.masks[index, 0].sum())}
        for index in range(len(result))
    ]
    if json_output:
        print_json({"out": str(out), "provider": result.provider, "precision": result.precision, "prompts": rows})
        return
    for row in rows:
        print(f"prompt {row['prompt']}: expected IoU {row['score']:.3f}, {row['area_px']} pixels")
    print(f"written: {out}")
