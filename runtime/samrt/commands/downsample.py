"""``samrt downsample``: fewer points of a GLB or PLY file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samrt.assets import (
    Gaussians,
    Mesh,
    downsample_random,
    downsample_uniform,
    downsample_voxel,
    read_glb,
    read_ply,
    read_ply_header,
    write_glb,
    write_ply,
)
from samrt.commands.output import print_json
from samrt_engines.errors import InputError

SUFFIXES = (".ply", ".glb")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("downsample")(downsample)


def downsample(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .glb or .ply: a mesh, points or Gaussians.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the points go: .ply, or .glb for points.")],
    voxel: Annotated[float | None, typer.Option(help="Edge of a voxel; each keeps one point.")] = None,
    uniform: Annotated[int | None, typer.Option(help="Keep every so many-th point.")] = None,
    random: Annotated[float | None, typer.Option(help="Part of the points to keep at random, 0..1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of --random, 0 without.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Keep fewer points of a GLB or PLY file: one for each voxel, every k-th, or a random part.

    A mesh gives its vertices. A voxel's point is the mean of its points, in place and colour; of Gaussians the most opaque
    stays as it is. A GLB is y-up and is turned to z-up, as PLY files are; a PLY keeps its frame, and a .glb as OUT is y-up.

    samrt downsample out.ply --voxel 0.02 -o small.ply
    """
    modes = {"--voxel": voxel, "--uniform": uniform, "--random": random}
    given = [name for name, value in modes.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise InputError("which points to keep is not clear", got=got, expected="one of --voxel, --uniform, --random")
    if seed is not None and random is None:
        raise InputError("--seed without --random", got=f"{given[0]}", fix="leave --seed out")
    for path in (source, out):
        if path.suffix.lower() not in SUFFIXES:
            raise InputError("unknown kind of file", got=repr(path.name), expected="a name ending in .ply or .glb")
    asset, dropped = _read(source)
    if isinstance(asset, Gaussians) and out.suffix.lower() == ".glb":
        raise InputError(
            "a GLB holds no Gaussians", got=str(source), expected="a name ending in .ply", fix="-o OUT.ply"
        )
    fewer: Mesh | Gaussians
    if voxel is not None:
        fewer = downsample_voxel(asset, voxel)
    elif uniform is not None:
        fewer = downsample_uniform(asset, uniform)
    else:
        assert random is not None
        fewer = downsample_random(asset, random, seed=seed or 0)
    _write(out, fewer)
    kind = "gaussians" if isinstance(asset, Gaussians) else "points"
    if json_output:
        print_json({"out": str(out), "kind": kind, "before": len(asset), "after": len(fewer), "dropped": list(dropped)})
        return
    if dropped:
        print(f"left out: {_shortened(dropped)}")
    print(f"{kind}: {len(asset)} to {len(fewer)}")
    print(f"written: {out}")


def _read(path: Path) -> tuple[Mesh | Gaussians, tuple[str, ...]]:
    """The asset and the names of properties that it cannot hold."""
    if path.suffix.lower() == ".glb":
        return read_glb(path), ()
    return read_ply(path, faces=False), read_ply_header(path).dropped


def _write(path: Path, asset: Mesh | Gaussians) -> None:
    if isinstance(asset, Mesh) and path.suffix.lower() == ".glb":
        write_glb(path, asset)
    else:
        write_ply(path, asset)


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) <= 6 else (*names[:3], f"... {names[-1]} ({len(names)} properties)"))
