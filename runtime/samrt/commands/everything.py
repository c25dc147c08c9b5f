"""``samrt everything``: a picture or a folder in, all masks out."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from samrt.bundle import open_bundle
from samrt.commands.output import print_json, progress_bar
from samrt.folder import JobReport, segment_everything
from samrt.model import Model, load
from samrt_engines.errors import InputError

if TYPE_CHECKING:
    from samrt.proposals import ProposalModel


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("everything")(everything)


def everything(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|FOLDER", help="A picture, or a folder of pictures.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="A bundle folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; a job begun there goes on.")],
    points_per_side: Annotated[int | None, typer.Option(help="Points along each side; 32.")] = None,
    points_per_batch: Annotated[int | None, typer.Option(help="Points decoded together; 64.")] = None,
    pred_iou_thresh: Annotated[float | None, typer.Option(help="Least expected IoU; the model's own.")] = None,
    stability_score_thresh: Annotated[float | None, typer.Option(help="Least stability; the model's own.")] = None,
    stability_score_offset: Annotated[float | None, typer.Option(help="Shift that measures stability; 1.0.")] = None,
    box_nms_thresh: Annotated[float | None, typer.Option(help="Box IoU of duplicates; 0.7.")] = None,
    crop_n_layers: Annotated[int | None, typer.Option(help="Layers of crops, 4^i crops each; 0.")] = None,
    crop_nms_thresh: Annotated[float | None, typer.Option(help="Box IoU of duplicates between crops; 0.7.")] = None,
    crop_overlap_ratio: Annotated[float | None, typer.Option(help="How much crops overlap; 0.341.")] = None,
    crop_n_points_downscale_factor: Annotated[
        int | None, typer.Option(help="Fewer points on each layer of crops; 1.")
    ] = None,
    min_mask_region_area: Annotated[int | None, typer.Option(help="Smallest hole and island, in pixels; 0.")] = None,
    single: Annotated[bool, typer.Option("--single", help="One candidate at each point, not three.")] = False,
    use_m2m: Annotated[bool, typer.Option("--use-m2m", help="Refine each mask with itself as a prompt.")] = False,
    confidence: Annotated[float | None, typer.Option(help="Models that propose masks: least confidence.")] = None,
    iou: Annotated[float | None, typer.Option(help="Models that propose masks: box IoU of duplicates.")] = None,
    output_format: Annotated[
        list[str] | None, typer.Option("--format", help="coco, png, masks; repeatable. coco is always written.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures encoded together; not with crops.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where another job is in OUT.")] = False,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime, openvino or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find all masks of a picture, or of every picture in a folder and the folders below it.

    OUT gets NAME.json (COCO, masks as RLE) and NAME.png (the masks drawn) for each picture, NAME/0000.png with --format masks;
    for a folder annotations.json too, one COCO file of all. Killed at any moment, the same command goes on. Exit code 1:
    some pictures could not be done; they are listed, also in failures.json.

    samrt everything photos -b bundles/nano -o out --points-per-side 16
    """
    asked = {
        "points_per_side": points_per_side,
        "points_per_batch": points_per_batch,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "stability_score_offset": stability_score_offset,
        "box_nms_thresh": box_nms_thresh,
        "crop_n_layers": crop_n_layers,
        "crop_nms_thresh": crop_nms_thresh,
        "crop_overlap_ratio": crop_overlap_ratio,
        "crop_n_points_downscale_factor": crop_n_points_downscale_factor,
        "min_mask_region_area": min_mask_region_area,
        "multimask_output": False if single else None,
        "use_m2m": True if use_m2m else None,
        "confidence": confidence,
        "iou": iou,
    }
    options = {name: value for name, value in asked.items() if value is not None}
    formats = tuple(output_format or ("coco", "png"))

    def run(report: Callable[[str, int, int], None]) -> JobReport:
        report("loading", 0, 1)
        with load_any(bundle, options, backend=backend, device=device, threads=threads) as model:
            return segment_everything(
                model, source, out, formats=formats, batch=batch, overwrite=overwrite, progress=report, **options
            )

    run_and_print("everything", run, json_output)


def load_any(
    bundle: Path, options: dict[str, Any], *, backend: str, device: str, threads: int | None
) -> Model | ProposalModel:
    """Load a bundle of either kind. Raises InputError for options of the other kind, and what loading raises."""
    proposes = open_bundle(bundle).manifest.proposals is not None
    foreign = [name for name in options if (name in ("confidence", "iou")) != proposes]
    if foreign:
        raise InputError(
            "this model does not take that option",
            got=", ".join(f"--{name.replace('_', '-')}" for name in foreign),
            expected="--confidence, --iou" if proposes else "the options of points, masks and crops",
        )
    if proposes:
        from samrt.proposals import ProposalModel

        return ProposalModel(bundle, backend=backend, device=device, threads=threads)
    return load(bundle, backend=backend, device=device, threads=threads)


def run_and_print(title: str, run: Callable[[Callable[[str, int, int], None]], JobReport], json_output: bool) -> None:
    """Run a job under a progress bar and print what it did. Exit code 1 where a picture failed, 130 after Ctrl-C."""
    try:
        with progress_bar(title) as report:
            done = run(lambda stage, passed, total: report(escape(stage), passed, total))  # names may look like markup
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    if json_output:
        print_json({**asdict(done), "out": str(done.out), "pictures_per_second": done.pictures_per_second})
    else:
        _print(done)
    if done.failures:
        raise typer.Exit(1)


def _print(report: JobReport) -> None:
    for name in report.ignored:
        print(f"not a picture: {_printable(name)}")
    for name, error in report.failures.items():
        print(f"failed: {_printable(name)}: {_printable(error)}")
    counts = [f"{report.done} done", f"{report.masks} masks"]
    counts += [f"{len(report.empty)} without masks"] if report.empty else []
    counts += [f"{report.kept} done before"] if report.kept else []
    counts += [f"{len(report.failures)} failed"] if report.failures else []
    counts += [f"{len(report.ignored)} other files left out"] if report.ignored else []
    rate = f"; {report.pictures_per_second:.2g} pictures/s" if report.done else ""
    print(f"{report.pictures} {'picture' if report.pictures == 1 else 'pictures'}: {', '.join(counts)}{rate}")
    if report.hint:
        print(_printable(report.hint))
    print(f"written: {report.out}")


def _printable(text: str) -> str:
    """A text that may hold a file name whose bytes are no characters."""
    return text.encode("utf-8", "backslashreplace").decode()
