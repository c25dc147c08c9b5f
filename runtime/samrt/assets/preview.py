"""A picture of an asset from a few angles side by side, so that a person sees what it is. On the CPU, with numpy alone."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samrt.assets.camera import View, looking
from samrt.assets.files import FilePath, write_atomically
from samrt.assets.gaussians import Gaussians
from samrt.assets.mesh import Mesh
from samrt.assets.splatting import draw_gaussians, draw_points
from samrt.assets.triangles import draw_triangles
from samrt_engines.errors import InputError

AZIMUTHS = (30.0, 120.0, 210.0, 300.0)
"""Degrees about the z axis, counter-clockwise from above; at 0 the camera stands at -y."""

PAPER = (250, 250, 248)
_SMOOTH = 2  # drawn so many times too large, then reduced
_MAX_SIZE = 2048


def render_preview(
    asset: Mesh | Gaussians, *, size_px: int = 320, azimuths: Sequence[float] = AZIMUTHS, elevation: float = 20.0
) -> NDArray[np.uint8]:
    """Draw an asset from angles about it, all to one scale, without perspective.

    Faces are shaded by their smooth normals, points and Gaussians darkened where they lie behind their neighbours.

    size_px: width and height of one view; elevation: degrees of the camera above the horizon
    returns: uint8 (size_px, views * size_px, 3) RGB
    Raises InputError for an empty asset, no views, or a size out of range.
    """
    import PIL.Image

    if len(asset) == 0:
        raise InputError("nothing to draw", got="an empty asset", expected="at least one point")
    if not 16 <= size_px <= _MAX_SIZE or not azimuths:
        got = f"{len(azimuths)} views of {size_px} px"
        raise InputError("no such preview", got=got, expected=f"at least one view of 16..{_MAX_SIZE} px")
    views = []
    for azimuth in azimuths:
        positions = asset.vertices if isinstance(asset, Mesh) else asset.positions
        view = looking(positions, azimuth, elevation, size_px * _SMOOTH)
        rgb, seen = _draw(asset, view)
        canvas = np.where(seen[..., None], rgb * 255, np.array(PAPER, np.float32))
        large = PIL.Image.fromarray(np.rint(np.clip(canvas, 0, 255)).astype(np.uint8))
        views.append(np.asarray(large.resize((size_px, size_px), PIL.Image.Resampling.BOX)))
    return np.concatenate(views, axis=1)


def write_preview(
    path: FilePath,
    asset: Mesh | Gaussians,
    *,
    size_px: int = 320,
    azimuths: Sequence[float] = AZIMUTHS,
    elevation: float = 20.0,
) -> None:
    """Write `render_preview`'s picture as a PNG. Raises InputError."""
    import PIL.Image

    picture = render_preview(asset, size_px=size_px, azimuths=azimuths, elevation=elevation)
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, "PNG")
    write_atomically(path, [buffer.getvalue()])


def _draw(asset: Mesh | Gaussians, view: View) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Colours (S, S, 3) 0..1 and where there is something, (S, S)."""
    if isinstance(asset, Gaussians):
        return draw_gaussians(asset, view)
    return draw_triangles(asset, view) if len(asset.faces) else draw_points(asset, view)
