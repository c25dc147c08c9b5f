"""A report as a page of Markdown."""

from __future__ import annotations

from samrt.bench.process import Process
from samrt.bench.report import Report, Row

USES = ("weights", "scratch", "inputs_outputs")
"""Of GPU memory, as `samrt.bench.contenders.memory_by_use` counts them."""
METHOD = (
    "Contenders take turns in every round and the order rotates. Ratios are paired round by round: the median, with the "
    "quartiles in brackets; over 1, samrt is faster. Errors are of samrt's outputs against the contender's, same inputs, "
    "same run. Memory and load times come from fresh processes."
)


def to_markdown(report: Report) -> str:
    """The whole report."""
    parts = [
        f"# {report.model}",
        machine_text(report),
        quiet_text(report),
        METHOD,
        *found_texts(report),
        *(f'**{one.contender} was skipped** from "{one.task}" on: {one.reason}' for one in report.skipped),
        "## Graphs",
        _table(*graph_table(report)),
        "## End to end",
        _table(*whole_table(report)),
        "## Files and memory",
        *allocator_texts(report),
        _table(*memory_table(report)),
    ]
    return "\n\n".join(parts) + "\n"


def graph_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row for each graph, batch and contender."""
    rows = [row for row in report.rows if row.kind == "graph"]
    # What no row has makes no column: parity without a reference, shares without a count of the work.
    compared, counted = any(row.ratio is not None for row in rows), any(row.share_of_peak is not None for row in rows)
    head = ["graph", "batch", "contender", "runs", "p50 ms", "p95 ms", "p99 ms", "per second"]
    head += ["of peak"] * counted + ["times samrt", "relative error"] * compared
    return head, [
        [row.task, str(row.batch), contender_text(row), *_times(row)]
        + [_share(row.share_of_peak)] * counted
        + [ratio_text(row), "" if row.relative_l2 is None else f"{row.relative_l2:.1e}"] * compared
        for row in rows
    ]


def whole_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row for each task and contender."""
    rows = [row for row in report.rows if row.kind == "whole"]
    compared = any(row.ratio is not None for row in rows)
    head = ["task", "contender", "runs", "p50 ms", "p95 ms", "p99 ms", "per second"]
    head += ["times samrt", "agreement"] * compared
    return head, [
        [row.task, contender_text(row), *_times(row)] + [ratio_text(row), _agreement(row)] * compared for row in rows
    ]


def memory_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row for each contender's process, and for each graph alone in one."""
    processes = _all_processes(report)
    gpu = any(process.vram_mib is not None or process.vram_allocated_mib is not None for process in processes)
    used = any(process.vram_uses_mib is not None for process in processes)
    head = ["process", "file MiB", "plan MiB", "load s", "to first result s", "RSS base", "loaded", "peak MiB"]
    head += ["VRAM MiB", "of it context", "allocated"] * gpu + ["weights", "scratch", "in and out"] * used
    rows = []
    for name, process in report.processes.items():
        size = sum(facts.model_bytes for facts in report.graphs.values()) if name == "samrt" else None
        plans = [facts.plan_bytes for facts in report.graphs.values() if facts.plan_bytes is not None]
        plan = sum(plans) if name == "samrt" and plans else None
        rows.append((f"{name}: encode, one click", size, plan, process))
    rows += [
        (f"{name} alone", facts.model_bytes, facts.plan_bytes, facts.process) for name, facts in report.graphs.items()
    ]
    return head, [
        [
            name,
            *("" if size is None else f"{size / 2**20:.1f}" for size in (model_bytes, plan_bytes)),
            f"{process.load_s:.2f}",
            f"{process.first_s:.2f}",
            *(_mib(size) for size in (process.rss_base_mib, process.rss_loaded_mib, process.rss_peak_mib)),
        ]
        + [_mib(size) for size in (process.vram_mib, process.vram_context_mib, process.vram_allocated_mib)] * gpu
        + [_mib((process.vram_uses_mib or {}).get(use)) for use in USES] * used
        for name, model_bytes, plan_bytes, process in rows
    ]


def machine_text(report: Report) -> str:
    """Where, with what and when it was measured, and what the machine can do at most."""
    machine, peak = report.machine, report.machine["peak"]
    return (
        f"{machine['cpu']}, {_count(machine['cores'], 'core')}, {_count(machine['threads'], 'thread')}; "
        f"samrt {machine['samrt']}, Python {machine['python']}, numpy {machine['numpy']}; "
        f"{machine['time'].replace('T', ' ').replace('+00:00', ' UTC')}; "
        f"picture {report.image_hw[1]} x {report.image_hw[0]}; bundle {report.digest[:12]}. "
        f"Probed peak: {peak['gflops']:.0f} GFLOP/s with {_count(peak['threads'], 'thread')} ({peak['method']})."
    )


def quiet_text(report: Report) -> str:
    """How busy the machine was before; what others do on it falls on the contenders unevenly where cores are short."""
    load: float | None = report.machine["load_before"]
    if load is None:
        return "How busy the machine was before is not known here."
    text = f"Load average before: {load:.2f}."
    if load > report.machine["cores"] / 4:
        text += " The machine was not quiet: do not quote these figures."
    return text


def found_texts(report: Report) -> list[str]:
    """What the times of a model that proposes masks depend on; empty for other models."""
    if report.masks_found is None:
        return []
    return [
        f"{_count(report.masks_found, 'mask')} found in the picture. The work after the detector grows with their number: "
        "for times that hold for your pictures, measure with one of them (--image). Memory is for a made-up one of its size."
    ]


def allocator_texts(report: Report) -> list[str]:
    """What the GPU columns cannot say, and why; empty where there is nothing to explain."""
    silent = [process for process in _all_processes(report) if process.vram_mib is not None]
    if all(process.vram_allocated_mib is not None for process in silent):
        return []
    return [
        "What was allocated is empty where the backend does not tell: ONNX Runtime has no count of its allocator for "
        "Python. There, VRAM less its context is weights, scratch, tensors and libraries together."
    ]


def contender_text(row: Row) -> str:
    """Who, in which precision, on what."""
    return f"{row.contender}, {row.precision} on {row.ran_on}"


def ratio_text(row: Row) -> str:
    """The paired ratio with its quartiles."""
    if row.ratio is None or row.ratio_quartiles is None:
        return ""
    return f"{row.ratio:.2f} ({row.ratio_quartiles[0]:.2f} to {row.ratio_quartiles[1]:.2f})"


def _times(row: Row) -> list[str]:
    rate = f"{row.per_second:,.0f}" if row.per_second >= 1000 else f"{row.per_second:.4g}"
    return [str(row.runs), *(f"{ms:.2f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms)), rate]


def _share(share: float | None) -> str:
    """Of the peak. What is small is not nothing."""
    return "" if share is None else "< 1%" if share < 0.01 else f"{share:.0%}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _agreement(row: Row) -> str:
    if row.mask_iou is not None:
        return f"mask IoU {row.mask_iou:.4f}"
    return "" if row.relative_l2 is None else f"relative error {row.relative_l2:.1e}"


def _mib(size: float | None) -> str:
    return "" if size is None else f"{size:.0f}"


def _all_processes(report: Report) -> list[Process]:
    return [*report.processes.values(), *(facts.process for facts in report.graphs.values())]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
