"""Masks, points and boxes drawn on pictures, and contact sheets of them: for people, not for measuring.

Everything scales with the picture, so that a thumbnail and a 4K frame look alike. Shapes are drawn four times too large
and reduced, which makes their edges smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samrt.bilinear import threshold_planes
from samrt.images import Image, as_rgb_uint8
from samrt.prompts import Prompts
from samrt_engines.errors import ImageError, PromptError

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw

Uint8Array = NDArray[np.uint8]
Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (30, 136, 255),  # azure
    (255, 138, 0),  # orange
    (0, 200, 150),  # jade
    (233, 54, 130),  # raspberry
    (140, 92, 255),  # violet
    (255, 205, 0),  # sun
    (0, 190, 222),  # cyan
    (244, 81, 60),  # coral
    (124, 197, 24),  # lime
    (214, 100, 230),  # orchid
)
"""The colour of the first mask, the second, and so on; repeated after the tenth."""

_POSITIVE, _NEGATIVE, _CORNER = (22, 190, 74), (235, 44, 56), (255, 205, 0)
WHITE, _PAPER, INK = (255, 255, 255), (250, 250, 248), (38, 40, 46)
_SMOOTH = 4  # how many times too large shapes are drawn
_MAX_SHEET_PIXELS = 200_000_000


class Pen(NamedTuple):
    """Sizes for a picture, in pixels."""

    line: float
    marker: float
    text: float


def overlay(
    image: Image,
    masks: ArrayLike | None = None,
    *,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    boxes: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    alpha: float = 0.5,
    zoom: int = 1,
) -> Uint8Array:
    """Draw masks with smooth outlines, and the prompts they answer, on a copy of a picture.

    image: whatever `samrt.as_rgb_uint8` takes
    masks: bool (H, W), (M, H, W) or (P, C, H, W); each gets a colour of `PALETTE`, small ones lie on top
    points, labels, boxes: as `samrt.Prompts` takes them; points without labels are positive. A green star is on the
        object, a red disc with a bar is not; boxes have the colour of the mask with their number
    scores: one for each mask, written on it
    alpha: how much of the mask's colour its inside takes, 0..1
    zoom: enlarge the picture so many times first, which keeps drawings on small pictures sharp
    returns: uint8 (H * zoom, W * zoom, 3) RGB
    Raises ImageError for masks of another size than the picture, PromptError for points or boxes.
    """
    import PIL.Image

    picture = as_rgb_uint8(image)
    planes = _read_masks(masks, picture.shape[:2])
    if zoom < 1 or not 0 <= alpha <= 1:
        raise ImageError("cannot draw", got=f"zoom={zoom}, alpha={alpha}", expected="zoom >= 1 and alpha in 0..1")
    if zoom > 1:
        height, width = picture.shape[0] * zoom, picture.shape[1] * zoom
        enlarged = PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.BICUBIC)
        picture, planes = np.asarray(enlarged), threshold_planes(planes.astype(np.float32), (height, width), 0.5)
    pen = pen_for(picture.shape[:2])
    canvas = picture.astype(np.float32)
    for index in sorted(range(len(planes)), key=lambda index: -np.count_nonzero(planes[index])):
        blend_mask(canvas, planes[index], PALETTE[index % len(PALETTE)], alpha, pen)
    drawing = PIL.Image.fromarray(np.rint(canvas).astype(np.uint8))
    _draw_boxes(drawing, boxes, zoom, pen)
    _draw_points(drawing, points, labels, zoom, pen)
    _draw_scores(drawing, planes, scores, pen)
    return np.array(drawing)


def grid(
    images: Sequence[Image], columns: int = 3, captions: Sequence[str] | None = None, *, cell_px: int = 480
) -> Uint8Array:
    """Lay pictures out on a contact sheet, in rows, each fitted into its cell with its aspect kept.

    images: whatever `samrt.as_rgb_uint8` takes, of any sizes
    captions: one for each picture, written below it; a second line after a newline is set smaller
    cell_px: width of a cell; a row is as high as its tallest picture, at most 1.5 times the width
    returns: uint8 (height, width, 3) RGB
    Raises ImageError for no picture, or captions that do not match.
    """
    import PIL.Image

    pictures = [as_rgb_uint8(image) for image in images]
    if not pictures or (captions is not None and len(captions) != len(pictures)) or columns < 1 or cell_px < 8:
        got = f"{len(pictures)} pictures, {len(captions or ())} captions, {columns} columns, cells of {cell_px} px"
        raise ImageError("cannot lay out a contact sheet", got=got, expected="pictures, each with a caption or none")
    columns = min(columns, len(pictures))
    gap, text = max(4, cell_px // 24), max(11, cell_px // 24)
    lines = max(caption.count("\n") + 1 for caption in captions) if captions else 0
    caption_h = round(text * (1.5 * lines + 0.5)) if lines else 0
    sizes = [_fit(picture.shape, cell_px) for picture in pictures]
    row_h = [max(height for _, height in sizes[k : k + columns]) for k in range(0, len(sizes), columns)]
    width = columns * (cell_px + gap) + gap
    height = sum(row_h) + len(row_h) * (caption_h + gap) + gap
    if width * height > _MAX_SHEET_PIXELS:
        raise ImageError("the contact sheet is too large", got=f"{width} x {height} pixels", fix="lower cell_px")
    sheet = PIL.Image.new("RGB", (width, height), _PAPER)
    for index, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        row, column = divmod(index, columns)
        left = gap + column * (cell_px + gap)
        bottom = sum(row_h[: row + 1]) + row * (caption_h + gap) + gap
        fitted = PIL.Image.fromarray(picture).resize(size, PIL.Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (cell_px - size[0]) // 2, bottom - size[1]))
        if captions:
            _write_caption(sheet, captions[index], (left, bottom), cell_px, text)
    return np.array(sheet)


def _fit(shape: tuple[int, ...], cell_px: int) -> tuple[int, int]:
    """Width and height of a picture in its cell."""
    scale = min(cell_px / shape[1], 1.5 * cell_px / shape[0])
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def pen_for(hw: tuple[int, ...]) -> Pen:
    diagonal = float(np.hypot(hw[0], hw[1]))
    return Pen(
        line=float(np.clip(diagonal / 500, 1.0, 8.0)),
        marker=float(np.clip(diagonal / 60, 4.0, 60.0)),
        text=float(np.clip(diagonal / 45, 10.0, 64.0)),
    )


def _read_masks(masks: ArrayLike | None, hw: tuple[int, ...]) -> NDArray[np.bool_]:
    """Masks as bool (M, H, W)."""
    if masks is None:
        return np.zeros((0, *hw), np.bool_)
    array = np.asarray(masks)
    if array.ndim not in (2, 3, 4) or array.shape[-2:] != hw or array.dtype.kind not in "bui":
        raise ImageError(
            "the masks do not lie on the picture",
            got=f"{array.dtype} array of shape {array.shape}",
            expected=f"bool (M, {hw[0]}, {hw[1]})",
            fix="result.masks of this picture",
        )
    return array.reshape(-1, *hw).astype(np.bool_, copy=False)


def blend_mask(canvas: NDArray[np.float32], mask: NDArray[np.bool_], colour: Colour, alpha: float, pen: Pen) -> None:
    """Tint the inside, and draw the outline: where the blurred mask is half way, it is brightest."""
    import PIL.Image
    import PIL.ImageFilter

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    reach = int(3 * pen.line) + 2
    window = (
        slice(max(0, rows[0] - reach), rows[-1] + reach + 1),
        slice(max(0, columns[0] - reach), columns[-1] + reach + 1),
    )
    inside = PIL.Image.fromarray(mask[window].astype(np.uint8) * np.uint8(255))
    fill, soft = (
        np.asarray(inside.filter(PIL.ImageFilter.GaussianBlur(radius)), np.float32)[..., None] / 255
        for radius in (0.6, 0.75 * pen.line)
    )
    target = canvas[window]
    target += (np.array(colour, np.float32) - target) * (alpha * fill)
    outline = np.clip(6.0 * soft * (1 - soft) - 0.25, 0, 1)
    bright = np.array(colour, np.float32) * 0.75 + 255 * 0.25
    target += (bright - target) * outline


def _draw_boxes(drawing: PIL.Image.Image, boxes: ArrayLike | None, zoom: int, pen: Pen) -> None:
    """Draw frames in whole pixels, each between two white lines."""
    import PIL.ImageDraw

    if boxes is None:
        return
    pencil = PIL.ImageDraw.Draw(drawing)
    thick, rim = max(2, round(1.4 * pen.line)), max(1, round(0.6 * pen.line))
    for index, box in enumerate(np.rint(Prompts(boxes=boxes).boxes * zoom).astype(int).tolist()):
        x0, y0, x1, y1 = box
        out = thick // 2 + rim
        frame = (x0 - out, y0 - out, x1 + out, y1 + out)
        pencil.rectangle(frame, outline=WHITE, width=thick + 2 * rim)
        frame = (x0 - out + rim, y0 - out + rim, x1 + out - rim, y1 + out - rim)
        pencil.rectangle(frame, outline=PALETTE[index % len(PALETTE)], width=thick)


def _draw_points(
    drawing: PIL.Image.Image, points: ArrayLike | None, labels: ArrayLike | None, zoom: int, pen: Pen
) -> None:
    if points is None:
        return
    radius = pen.marker
    if labels is None:
        labels = np.ones(np.shape(points)[:-1], np.int32)
    prompts = Prompts(points=points, labels=labels)
    for (x, y), label in zip(prompts.points.reshape(-1, 2) * zoom, prompts.labels.reshape(-1), strict=True):
        if label == -1:
            continue

        def draw(pencil: PIL.ImageDraw.ImageDraw, scale: float, label: int = int(label)) -> None:
            middle, size = radius * scale, radius * scale
            if label == 1:
                pencil.polygon(_star(middle, 0.97 * size), fill=(*WHITE, 255))
                pencil.polygon(_star(middle, 0.72 * size), fill=(*_POSITIVE, 255))
                return
            colour = _NEGATIVE if label == 0 else _CORNER
            for share, fill in ((0.72, WHITE), (0.56, colour)):
                pencil.ellipse((*(2 * [middle - share * size]), *(2 * [middle + share * size])), fill=(*fill, 255))
            if label == 0:
                bar = (middle - 0.3 * size, middle - 0.1 * size, middle + 0.3 * size, middle + 0.1 * size)
                pencil.rectangle(bar, fill=(*WHITE, 255))

        stamp(drawing, draw, (x - radius, y - radius), (2 * radius, 2 * radius))


def _draw_scores(drawing: PIL.Image.Image, masks: NDArray[np.bool_], scores: ArrayLike | None, pen: Pen) -> None:
    """Write each mask's score on a chip in its colour, at the top of the mask."""
    if scores is None:
        return
    values = np.asarray(scores, np.float64).reshape(-1)
    if len(values) != len(masks):
        raise PromptError("scores and masks do not match", got=f"{len(values)} scores", expected=f"{len(masks)}")
    for index, (mask, value) in enumerate(zip(masks, values, strict=True)):
        rows = np.flatnonzero(mask.any(axis=1))
        if not len(rows):
            continue
        x = float(np.flatnonzero(mask[rows[0]]).mean())
        text, colour = f"{value:.2f}", PALETTE[index % len(PALETTE)]
        width, height = 2.6 * pen.text, 1.35 * pen.text
        left = float(np.clip(x - width / 2, 0, max(0, drawing.width - width)))
        top = float(np.clip(rows[0] - height - pen.line, 0, max(0, drawing.height - height)))

        def draw(
            pencil: PIL.ImageDraw.ImageDraw,
            scale: float,
            text: str = text,
            colour: Colour = colour,
            size: tuple[float, float] = (width, height),
        ) -> None:
            import PIL.ImageFont

            box = (0, 0, size[0] * scale - 1, size[1] * scale - 1)
            pencil.rounded_rectangle(box, radius=size[1] * scale / 3, fill=(*colour, 235))
            font = PIL.ImageFont.load_default(pen.text * scale)
            middle = (size[0] * scale / 2, size[1] * scale / 2)
            ink = INK if sum(np.multiply(colour, (0.3, 0.59, 0.11))) > 150 else WHITE
            pencil.text(middle, text, font=font, anchor="mm", fill=(*ink, 255))

        stamp(drawing, draw, (left, top), (width, height))


def stamp(drawing: PIL.Image.Image, draw: Any, corner: tuple[float, float], size: tuple[float, float]) -> None:
    """Lay a small transparent picture, drawn by ``draw(pencil, scale)`` with its corner at (0, 0), onto the drawing."""
    import PIL.Image
    import PIL.ImageDraw

    width, height = int(np.ceil(size[0])) + 1, int(np.ceil(size[1])) + 1
    tile = PIL.Image.new("RGBA", (width * _SMOOTH, height * _SMOOTH), (*WHITE, 0))
    draw(PIL.ImageDraw.Draw(tile), float(_SMOOTH))
    tile = tile.resize((width, height), PIL.Image.Resampling.BOX)
    drawing.paste(tile, (round(corner[0]), round(corner[1])), tile)


def _star(middle: float, radius: float) -> list[tuple[float, float]]:
    """A star of five points, one up, around (middle, middle)."""
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, radius, radius * 0.48)
    return [(middle + r * np.sin(t), middle - r * np.cos(t)) for r, t in zip(radii, turns, strict=True)]


def _write_caption(sheet: PIL.Image.Image, caption: str, corner: tuple[int, int], width: int, text: int) -> None:
    import PIL.ImageDraw
    import PIL.ImageFont

    pencil = PIL.ImageDraw.Draw(sheet)
    y = corner[1] + 0.45 * text
    for index, line in enumerate(caption.split("\n")):
        font = PIL.ImageFont.load_default(text if index == 0 else 0.82 * text)
        while pencil.textlength(line, font=font) > width and len(line) > 1:
            line = line.rstrip("…")[:-1] + "…"
        fill = INK if index == 0 else (112, 116, 124)
        pencil.text((corner[0] + width / 2, y), line, font=font, anchor="ma", fill=fill)
        y += 1.5 * text if index == 0 else 1.3 * text
