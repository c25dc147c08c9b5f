"""``samrt info``: what a bundle holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from samrt.bundle import Bundle, open_bundle
from samrt.commands.output import print_json
from samrt.manifest import Manifest
from samrt_engines.tensorrt import PlanKey


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("info")(info)


def info(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a bundle holds: source, licence, graphs, forms, parity, abilities."""
    document = describe(open_bundle(bundle))
    if json_output:
        print_json(document)
    else:
        _print(document)


def describe(bundle: Bundle) -> dict[str, Any]:
    """A bundle in plain JSON values."""
    manifest = bundle.manifest
    source = manifest.source
    return {
        "folder": str(bundle.folder),
        "digest": bundle.digest,
        "model": source.model,
        "checkpoint": {"kind": source.checkpoint_kind, "sha256": source.checkpoint_sha256, "seed": source.seed},
        "licence": source.licence,
        "licence_note": source.licence_note,
        "made_with": {"samrt": source.samrt, "opset": source.opset, **source.versions},
        "input_hw": _input_hw(manifest),
        "automatic": None if manifest.prompted is None else asdict(manifest.prompted.automatic),
        "reconstruction": None if manifest.reconstruction is None else asdict(manifest.reconstruction),
        "abilities": list(manifest.abilities),
        "graphs": {
            name: {
                "inputs": [str(spec) for spec in graph.inputs],
                "outputs": [str(spec) for spec in graph.outputs],
                "profiles": {symbol: [p.min, p.opt, p.max] for symbol, p in graph.profiles.items()},
                "forms": [
                    {
                        "file": form.file.file,
                        "bytes": form.file.size + sum(record.size for record in form.data),
                        "precision": form.precision,
                        "targets": list(form.targets) or ["any"],
                        "opset": form.opset,
                        "worst_relative_l2": max(
                            (m.get("relative_l2", 0.0) for m in form.parity.values()), default=None
                        ),
                        "gflop": None if form.flops is None else form.flops / 1e9,
                        "kept_fp32": [asdict(kept) for kept in form.kept_fp32],
                    }
                    for form in graph.forms
                ],
            }
            for name, graph in manifest.graphs.items()
        },
        "selftest": None if manifest.selftest is None else manifest.selftest.file,
        "plans": [
            {
                "graph": plan.graph,
                "file": plan.file.file,
                "bytes": plan.file.size,
                "key": PlanKey.from_json(dict(plan.key)).to_json(),
            }
            for plan in manifest.plans
        ],
    }


def _size(document: dict[str, Any]) -> str:
    """What the model works on, and a comma; nothing for a model that says neither."""
    if document["input_hw"] is not None:
        height, width = document["input_hw"]
        return f"{width} x {height}, "
    if document["reconstruction"] is not None:
        numbers = document["reconstruction"]
        return (
            f"views of {numbers['view_px']} px, {numbers['grid']}^3 voxels, mesh of {numbers['mesh']['resolution']}^3, "
        )
    return ""


def _input_hw(manifest: Manifest) -> list[int] | None:
    """Size of the pictures that the first graph takes; None where it takes any."""
    if manifest.proposals is not None:
        return list(manifest.proposals.size_hw)
    return None if manifest.prompted is None else list(manifest.prompted.image.size_hw)


def _print(document: dict[str, Any]) -> None:
    console = Console()
    checkpoint = document["checkpoint"]
    weights = (
        f"random, seed {checkpoint['seed']}" if checkpoint["kind"] == "random" else f"sha256 {checkpoint['sha256']}"
    )
    console.print(f"[bold]{document['model']}[/bold]  {_size(document)}{', '.join(document['abilities'])}")
    console.print(f"weights: {weights}", soft_wrap=True)
    console.print(f"licence: {document['licence']}")
    console.print("made with: " + ", ".join(f"{name} {version}" for name, version in document["made_with"].items()))
    if (own := document["automatic"]) is not None:
        console.print(
            f"automatic masks: expected IoU above {own['pred_iou_thresh']:g}, "
            f"stability from {own['stability_score_thresh']:g} on, {own['candidates']} candidates of a point"
        )
    for name, graph in document["graphs"].items():
        sizes = ", ".join(f"{symbol} {least}..{most}" for symbol, (least, _, most) in graph["profiles"].items())
        console.print(f"\n[bold]{name}[/bold]  {sizes}")
        for mark, tensors in (("in ", graph["inputs"]), ("out", graph["outputs"])):
            for tensor in tensors:
                console.print(Text(f"  {mark} {tensor}"), soft_wrap=True)
        for form in graph["forms"]:
            parity = form["worst_relative_l2"]
            console.print(
                f"  {form['precision']}, opset {form['opset']}, for {', '.join(form['targets'])}: "
                f"{form['file']}, {form['bytes'] / 2**20:.1f} MiB"
                + ("" if parity is None else f", relative error {parity:.1e}"),
                soft_wrap=True,
            )
            for kept in form["kept_fp32"]:
                console.print(
                    Text(f"    {kept['count']} {kept['op']} in fp32: {kept['reason']}", "dim"), soft_wrap=True
                )
    console.print()
    for plan in document["plans"]:
        key = plan["key"]
        made_by = f"{key['tensorrt']['flavour']} {key['tensorrt']['version']}"
        console.print(
            f"plan of {plan['graph']}: {made_by} for {key['gpu']}, {key['capability']}, {plan['bytes'] / 2**20:.1f} MiB",
            soft_wrap=True,
        )
    if not document["plans"]:
        console.print("no TensorRT plans: samrt build makes them")
