"""The plots of a report. matplotlib comes with the bench extra and is imported here, when a plot is asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samrt.bench.process import Process
from samrt.bench.report import Report, Row
from samrt_engines.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision, and by lightness in print.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
STAGES = (("Python, numpy, samrt", "#999999"), ("libraries and weights", "#56B4E9"), ("peak while running", "#D55E00"))
USES = (
    ("CUDA context", "#999999"),
    ("weights", "#0072B2"),
    ("scratch", "#E69F00"),
    ("inputs, outputs, features", "#009E73"),
    ("allocated, not told apart", "#56B4E9"),
    ("libraries, and what is not counted", "#dddddd"),
)
MARKERS = ("o", "s", "^", "D", "v", "P")
TOLERANCES = (("fp32 bar 1e-5", 1e-5, ":"), ("fp16 bar 5e-3", 5e-3, "--"))
"""What an export may differ from PyTorch: drawn for orientation."""
WIDTH_IN = 10.0
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.8}

_COUNTED = {"image_encoder": "pictures", "memory_attention": "objects", "memory_encoder": "objects"}


def figures(report: Report) -> dict[str, Figure]:
    """Every plot the report has data for, by title. Raises MissingExtraError."""
    found = {
        "Latency": latency(report),
        "Throughput by batch": throughput(report),
        "Memory": memory(report),
        "GPU memory": gpu_memory(report),
        "Accuracy next to speed": accuracy(report),
    }
    return {title: figure for title, figure in found.items() if figure is not None}


def data_uri(figure: Figure) -> str:
    """A figure as an SVG that can stand in an <img>: text as outlines, the same bytes for the same data."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "samrt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def latency(report: Report) -> Figure:
    """A panel for each task, each with its own axis from zero; a bar for each contender with its quartiles."""
    tasks = list(dict.fromkeys(row.task for row in report.rows))
    panels = [[row for row in report.rows if row.task == task] for task in tasks]
    panels = [[row for row in rows if row.batch == rows[0].batch] for rows in panels]
    columns = 2
    lines = -(-len(panels) // columns)
    bars = len(report.contenders)
    figure, axes = _grid(lines, columns, height_in=lines * (0.62 + 0.34 * bars))
    for rows, ax in zip(panels, axes, strict=False):
        _latency_panel(ax, rows, report)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    _legend(figure, report)
    return figure


def throughput(report: Report) -> Figure | None:
    """Pictures, prompts or objects a second by batch size, for each graph measured at more than one."""
    rows = [row for row in report.rows if row.kind == "graph"]
    graphs = [
        name for name in dict.fromkeys(row.task for row in rows) if len({r.batch for r in rows if r.task == name}) > 1
    ]
    if not graphs:
        return None
    figure, axes = _grid(1, len(graphs), height_in=2.9)
    for name, ax in zip(graphs, axes, strict=True):
        batches = sorted({row.batch for row in rows if row.task == name})
        for index, contender in enumerate(report.contenders):
            points = sorted((r.batch, r.per_second) for r in rows if r.task == name and r.contender == contender)
            if points:
                ax.plot(*zip(*points, strict=True), color=COLORS[index % 6], marker=MARKERS[index % 6])
        ax.set_xscale("log", base=2)
        ax.set_xticks(batches, [str(batch) for batch in batches])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        what = _COUNTED.get(name, "prompts")
        ax.set(title=name, xlabel=f"{what} at once", ylabel=f"{what} per second")
        ax.grid(axis="y", **GRID)
    _legend(figure, report)
    return figure


def memory(report: Report) -> Figure | None:
    """Resident memory of each contender's process, in stages; and of each graph alone."""
    known = {name: stages for name, one in _processes(report) if (stages := _stages(one)) is not None}
    return _stacks(known, STAGES, "resident memory, MiB (fresh process each)") if known else None


def gpu_memory(report: Report) -> Figure | None:
    """GPU memory of each contender's process, by use; and of each graph alone. None without a GPU."""
    known = {name: uses for name, one in _processes(report) if (uses := _uses(one)) is not None}
    return _stacks(known, USES, "GPU memory, MiB (fresh process each)") if known else None


def accuracy(report: Report) -> Figure | None:
    """Left, how many times samrt's time the others take; right, how far samrt's outputs are from theirs; task by task."""
    rows = [row for row in report.rows if row.ratio is not None]
    if not rows:
        return None
    tasks = list(dict.fromkeys(f"{row.task}, batch {row.batch}" if row.kind == "graph" else row.task for row in rows))
    figure, (speed, error) = _grid(1, 2, height_in=1.2 + 0.36 * len(tasks), sharey=True)
    others = report.contenders[1:]
    for row in rows:
        index = report.contenders.index(row.contender)
        style: dict[str, Any] = {
            "color": COLORS[index % 6],
            "marker": MARKERS[index % 6],
            "linestyle": "none",
            "markersize": 7,
        }
        task = f"{row.task}, batch {row.batch}" if row.kind == "graph" else row.task
        y = tasks.index(task) + (
            0.0 if len(others) == 1 else 0.3 * (others.index(row.contender) / (len(others) - 1) - 0.5)
        )
        assert row.ratio is not None
        low, high = row.ratio_quartiles or (row.ratio, row.ratio)
        speed.plot([low, high], [y, y], color=COLORS[index % 6], linewidth=1.6)
        speed.plot(row.ratio, y, **style)
        if row.relative_l2 is not None and 0 < row.relative_l2 < float("inf"):
            error.plot(row.relative_l2, y, **style)
        if row.mask_iou is not None:
            error.annotate(
                f"mask IoU {row.mask_iou:.4f}", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                color=COLORS[index % 6],
            )  # fmt: skip
    speed.axvline(1, color="#444444", linewidth=1)
    speed.set_xlim(left=0)
    speed.set(title="speed", xlabel="times samrt's time (right of 1: samrt is faster)")
    speed.set_yticks(range(len(tasks)), tasks)
    speed.invert_yaxis()
    _error_axis(error, [row.relative_l2 for row in rows if row.relative_l2])
    for ax in (speed, error):
        ax.grid(axis="both", **GRID)
    _legend(figure, report, report.contenders[1:])
    return figure


def _error_axis(ax: Axes, errors: Sequence[float]) -> None:
    ax.set_xscale("log")
    finite = [error for error in errors if error < float("inf")] or [1e-7]
    ax.set_xlim(min(finite) / 5, max(TOLERANCES[-1][1], *finite) * 5)
    for label, value, style in TOLERANCES:
        ax.axvline(value, color="#444444", linewidth=1, linestyle=style)
        ax.annotate(
            label, (value, 0), (-3, 6), xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=90, ha="right", va="bottom", fontsize=8, color="#444444",
        )  # fmt: skip
    ax.set(title="accuracy", xlabel="relative error of samrt's outputs against theirs (L2)")
    ax.tick_params(axis="y", labelleft=False)


def _latency_panel(ax: Axes, rows: Sequence[Row], report: Report) -> None:
    for y, row in enumerate(rows):
        color = COLORS[report.contenders.index(row.contender) % 6]
        low, high = row.quartiles_ms
        whiskers = [[max(row.p50_ms - low, 0)], [max(high - row.p50_ms, 0)]]
        ax.barh(y, row.p50_ms, color=color, height=0.66, xerr=whiskers, error_kw={"capsize": 3, "linewidth": 1.1})
        ax.annotate(
            f"{row.p50_ms:.3g}", (max(high, row.p50_ms), y), (6, 0), textcoords="offset points", va="center", fontsize=9
        )
    ax.set_yticks([])
    ax.invert_yaxis()
    ax.margins(x=0.16)
    ax.set_xlim(left=0)
    unit = "" if rows[0].batch == 1 or rows[0].kind == "whole" else f", batch {rows[0].batch}"
    ax.set_title(f"{rows[0].task}{unit}", fontsize=10, loc="left")
    ax.set_xlabel("ms", fontsize=9)
    ax.grid(axis="x", **GRID)


def _processes(report: Report) -> list[tuple[str, Process]]:
    """What runs in a process of its own, and what plots call it."""
    whole = [(f"{name}, whole", process) for name, process in report.processes.items()]
    return whole + [(f"{name}, alone", facts.process) for name, facts in report.graphs.items()]


def _stacks(bars: Mapping[str, Sequence[float]], kinds: Sequence[tuple[str, str]], label: str) -> Figure:
    """A bar for each name, of a part for each kind (name, colour), with its sum."""
    figure, (ax,) = _grid(1, 1, height_in=1.0 + 0.42 * len(bars))
    for y, parts in enumerate(bars.values()):
        left = 0.0
        for size, (_, color) in zip(parts, kinds, strict=True):
            ax.barh(y, size, left=left, color=color, edgecolor="white", height=0.62)
            left += size
        ax.annotate(f"{left:.0f}", (left, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.margins(x=0.08)
    ax.set(xlabel=label)
    ax.grid(axis="x", **GRID)
    shown = [kind for index, kind in enumerate(kinds) if any(parts[index] for parts in bars.values())]
    handles = [_patch(color, name) for name, color in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _uses(process: Process) -> tuple[float, ...] | None:
    """GPU memory in the order of `USES`; what nobody accounts for is the last."""
    if process.vram_mib is None:
        return None
    context, uses = process.vram_context_mib or 0.0, process.vram_uses_mib or {}
    known = (context, uses.get("weights", 0.0), uses.get("scratch", 0.0), uses.get("inputs_outputs", 0.0))
    if not uses and process.vram_allocated_mib is not None:
        return *known, process.vram_allocated_mib, max(process.vram_mib - context - process.vram_allocated_mib, 0.0)
    return *known, 0.0, max(process.vram_mib - sum(known), 0.0)


def _stages(process: Process) -> tuple[float, float, float] | None:
    base, loaded, peak = process.rss_base_mib, process.rss_loaded_mib, process.rss_peak_mib
    if base is None or loaded is None or peak is None:
        return None
    return base, max(loaded - base, 0.0), max(peak - loaded, 0.0)


def _grid(lines: int, columns: int, *, height_in: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, in reading order. Figures are made directly: pyplot would keep state and windows."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.for_package(
            "matplotlib", extra="bench", purpose="to draw the plots of an HTML report"
        ) from error
    figure = Figure(figsize=(WIDTH_IN, height_in + 0.5), layout="constrained")
    axes = [ax for line in figure.subplots(lines, columns, squeeze=False, sharey=sharey) for ax in line]
    for ax in axes:
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def _legend(figure: Figure, report: Report, names: Sequence[str] | None = None) -> None:
    handles = list(_contender_patches(report, names or report.contenders))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)


def _contender_patches(report: Report, names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        # Each graph may run on something else, where "auto" chose.
        ways = dict.fromkeys(f"{row.precision} on {row.ran_on}" for row in report.rows if row.contender == name)
        yield _patch(COLORS[report.contenders.index(name) % 6], f"{name}: {' and '.join(ways)}")


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)
