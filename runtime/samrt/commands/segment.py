"""``samrt segment``: a picture and prompts in, a picture with masks out; or a detector's boxes, for whole folders."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from samrt.commands.everything import load_any, run_and_print
from samrt.commands.output import print_json, progress_bar, write_whole
from samrt.detections import read_boxes
from samrt.draw import overlay
from samrt.folder import JobReport, segment_boxes
from samrt.images import read_image
from samrt.model import Model
from samrt.prompts import Prompts
from samrt.result import Result
from samrt_engines.errors import InputError, PromptError

if TYPE_CHECKING:
    from samrt.proposals import ProposalModel

FORMATS = ("overlay", "mask", "cutout")
CLICK_LABELS = "0 (not on it) or 1 (on it)"
MASK_LOGIT = 10.0
"""Logit of a pixel inside a mask picture; outside it is the negative."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("segment")(segment)


def segment(
    image: Annotated[Path, typer.Argument(help="A picture: JPEG, PNG, WebP, ... With --boxes also a folder of them.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="A bundle folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The result: .png, or .npy of bool. With --boxes a folder.")],
    point: Annotated[list[str] | None, typer.Option(help="X,Y or X,Y,LABEL in pixels; label 1 (on it) or 0.")] = None,
    box: Annotated[list[str] | None, typer.Option(help="X0,Y0,X1,Y1 in pixels.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask prompt: .npy of low-res logits, or a picture.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="A detector's boxes, as samrt.detections describes them.")] = None,
    single: Annotated[bool, typer.Option("--single", help="One candidate instead of the best of several.")] = False,
    hq_token_only: Annotated[
        bool, typer.Option("--hq-token-only", help="Of SAM-HQ: the HQ mask alone, not added to SAM's.")
    ] = False,
    output_format: Annotated[
        list[str] | None, typer.Option("--format", help="overlay, mask or cutout. With --boxes coco, png, masks.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --boxes: pictures encoded together.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --boxes: begin anew where a job is.")] = False,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Segment a picture by points, boxes or a mask; or a folder of pictures by a detector's boxes.

    Points belong together and make one prompt, with the box if there is one. Several boxes are several prompts.
    With --boxes, OUT is a folder as `samrt everything` writes it, and a job that goes on where it was stopped.

    samrt segment dog.jpg -b bundles/nano --point 320,200 --point 10,10,0 -o dog.png
    samrt segment photos -b bundles/nano --boxes boxes.json -o out
    """
    open_model = partial(load_any, bundle, {}, backend=backend, device=device, threads=threads)
    if boxes is not None:
        if point or box or mask:
            raise PromptError("--boxes with other prompts", got="--point, --box or --mask", expected="--boxes alone")
        if hq_token_only:
            raise InputError("--boxes with --hq-token-only", got="both", expected="--box, of one picture")
        formats = tuple(output_format or ("coco", "png"))

        def run(report: Callable[[str, int, int], None]) -> JobReport:
            known = read_boxes(boxes)
            report("loading", 0, 1)
            with open_model() as model:
                return segment_boxes(
                    model, image, known, out, formats=formats, batch=batch, overwrite=overwrite, progress=report
                )

        run_and_print("segment", run, json_output)
        return
    kind = _read_format(output_format or [FORMATS[0]])
    if image.is_dir():
        raise InputError("a folder needs boxes", got=str(image), expected="a picture", fix="--boxes boxes.json")
    if out.suffix not in (".png", ".npy"):
        raise InputError("unknown kind of output", got=repr(out.name), expected="a name ending in .png or .npy")
    picture = read_image(image)
    with progress_bar("segment") as progress:
        progress("loading", 0, 3)
        with open_model() as model:
            prompts = read_prompts(point or [], box or [], mask, model)
            if isinstance(model, Model):
                progress("encoding", 1, 3)
                features = model.encode(picture)
                progress("decoding", 2, 3)
                result = model.decode(features, prompts, multimask=not single, hq_token_only=hq_token_only)
                answer = _decoded(result.best())
            else:
                if hq_token_only:
                    raise InputError("this model proposes masks", got="--hq-token-only", expected="a model of SAM-HQ")
                progress("proposing", 1, 3)
                answer = _chosen(model, picture, prompts)
    write_whole(out, _rendered(out, kind, picture, prompts, answer.masks))
    _report(answer, out, json_output)


class _Answer(NamedTuple):
    """Masks bool (P, H, W), their scores where there are any, and what made them."""

    masks: NDArray[np.bool_]
    scores: list[float | None]
    provider: str
    precision: str


def _decoded(result: Result) -> _Answer:
    return _Answer(result.masks[:, 0], result.scores[:, 0].tolist(), result.provider, result.precision)


def _chosen(model: ProposalModel, picture: NDArray[np.uint8], prompts: Prompts) -> _Answer:
    """From a model that proposes masks: one for all points, or one for each box."""
    from samrt.proposals import select_boxes, select_points

    if prompts.points is not None and prompts.boxes is not None:
        raise PromptError("this model proposes masks", got="points and a box", expected="points, or boxes")
    found = model.propose(picture)
    provider, precision = next(iter(model.providers.values())), next(iter(model.precisions.values()))
    if prompts.points is not None:
        mask = select_points(found, prompts.points[0], prompts.labels[0])
        return _Answer(mask[None], [None], provider, precision)
    chosen = [select_boxes(found, box) for box in prompts.boxes]
    masks = [one.mask(0) if len(one) else np.zeros(picture.shape[:2], np.bool_) for one in chosen]
    return _Answer(np.stack(masks), [float(one.scores[0]) if len(one) else None for one in chosen], provider, precision)


def _read_format(kinds: list[str]) -> str:
    """The one format of a picture's result. Raises InputError."""
    got, expected = ", ".join(map(repr, kinds)), f"one of {', '.join(FORMATS)}"
    if any(kind not in FORMATS for kind in kinds):
        raise InputError("unknown --format", got=got, expected=expected)
    if len(kinds) > 1:
        raise InputError("one picture's result has one format", got=got, expected=expected)
    return kinds[0]


def read_prompts(points: list[str], boxes: list[str], mask: Path | None, model: Model | ProposalModel) -> Prompts:
    """Prompts from command-line texts. Raises PromptError."""
    if not (points or boxes or mask):
        raise PromptError("there is no prompt", expected="--point X,Y[,LABEL], --box X0,Y0,X1,Y1 or --mask FILE")
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
        raise PromptError(
            "the label of --point is not a whole number", got=repr(text), expected=CLICK_LABELS, fix="--point X,Y,1"
        )
    if int(label) not in (0, 1):
        raise PromptError("unknown label of --point", got=label, expected=CLICK_LABELS, fix="for a box: --box")
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


def _mask_logits(path: Path, model: Model | ProposalModel) -> NDArray[np.float32]:
    """A mask prompt: logits as they are, or a picture whose non-black pixels are inside, brought to the model's size."""
    mask_size_hw = model.manifest.numbers.prompts.mask_size_hw if isinstance(model, Model) else None
    if mask_size_hw is None:
        raise PromptError("this model takes no masks", got=f"--mask {path}", expected="--point or --box")
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
    height, width = mask_size_hw
    small = PIL.Image.fromarray(inside.astype(np.float32)).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return (np.asarray(small) * 2 - 1) * np.float32(MASK_LOGIT)


def _rendered(out: Path, kind: str, picture: NDArray[np.uint8], prompts: Prompts, masks: NDArray[np.bool_]) -> bytes:
    """The content of the output file. masks: (P, H, W)."""
    import PIL.Image

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


def _report(answer: _Answer, out: Path, json_output: bool) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": index, "score": score, "area_px": int(np.count_nonzero(mask))}
        for index, (score, mask) in enumerate(zip(answer.scores, answer.masks, strict=True))
    ]
    if json_output:
        print_json({"out": str(out), "provider": answer.provider, "precision": answer.precision, "prompts": rows})
        return
    for row in rows:
        score = "" if row["score"] is None else f"expected IoU {row['score']:.3f}, "
        print(f"prompt {row['prompt']}: {score}{row['area_px']} pixels")
    print(f"written: {out}")
