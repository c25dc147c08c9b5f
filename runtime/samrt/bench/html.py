"""A report as one HTML file that needs nothing else: plots are inside."""

from __future__ import annotations

from html import escape

from samrt.bench.markdown import (
    METHOD,
    allocator_texts,
    found_texts,
    graph_table,
    machine_text,
    memory_table,
    quiet_text,
    whole_table,
)
from samrt.bench.plots import data_uri, figures
from samrt.bench.report import Report

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: .2rem } h2 { margin-top: 2.2rem } p { max-width: 48rem }
img { width: 100%; max-width: 62rem; height: auto }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .4rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child, .name { text-align: left }
.note { background: #fff4d6; padding: .6rem .9rem; border-left: 4px solid #E69F00 }
"""
NOTES = {
    "Latency": "Medians; whiskers span the middle half of the runs. Each panel has its own axis, from zero. Batch 1.",
    "Throughput by batch": "At the median. Higher is better.",
    "Memory": "What a process holds before anything is loaded, after loading, and at its peak: one picture, one click; or one "
    "graph run once.",
    "GPU memory": "NVML's count for a process after its first runs, by use where the backend tells it.",
    "Accuracy next to speed": "Medians of the ratios paired round by round, lines over their quartiles. Vertical lines on the "
    "right are what an export may differ from PyTorch; where masks are compared, their smallest IoU stands instead.",
}


def to_html(report: Report) -> str:
    """The whole report. Raises MissingExtraError without matplotlib."""
    title = f"{report.model}: samrt bench"
    body = [f"<h1>{escape(report.model)}</h1>"]
    body += [
        f"<p>{escape(text)}</p>" for text in (machine_text(report), quiet_text(report), METHOD, *found_texts(report))
    ]
    body += [
        f'<p class="note"><b>{escape(one.contender)}</b> was skipped from "{escape(one.task)}" on: {escape(one.reason)}</p>'
        for one in report.skipped
    ]
    for name, figure in figures(report).items():
        body.append(f'<h2>{name}</h2><p>{NOTES[name]}</p><img alt="{name}" src="{data_uri(figure)}">')
    for name, table in (
        ("Graphs", graph_table(report)),
        ("End to end", whole_table(report)),
        ("Files and memory", memory_table(report)),
    ):
        notes = allocator_texts(report) if name == "Files and memory" else []
        body.append(f"<h2>{name}</h2>{''.join(f'<p>{escape(text)}</p>' for text in notes)}{_table(*table)}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    texts = {"contender", "agreement"}
    kinds = [' class="name"' if name in texts else "" for name in head]

    def line(tag: str, cells: list[str]) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag}{kind}>{escape(c)}</{tag}>" for c, kind in zip(cells, kinds, strict=True))
            + "</tr>"
        )

    return f'<div class="wide"><table>{line("th", head)}{"".join(line("td", row) for row in rows)}</table></div>'
