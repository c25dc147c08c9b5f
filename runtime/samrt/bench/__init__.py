"""Latency, throughput, memory and parity of a bundle, beside other implementations in the same run.

report = samrt.bench.bench(Path("bundles/nano"), against=["pytorch"])
print(samrt.bench.to_markdown(report))
"""

from samrt.bench.contenders import Contender, open_reference
from samrt.bench.html import to_html
from samrt.bench.markdown import to_markdown
from samrt.bench.peak import Peak, probe_peak
from samrt.bench.process import Process, measure_process
from samrt.bench.report import GraphFacts, Report, Row, Skipped
from samrt.bench.run import bench
from samrt.bench.tasks import GraphTask, WholeTask

__all__ = [
    "Contender",
    "GraphFacts",
    "GraphTask",
    "Peak",
    "Process",
    "Report",
    "Row",
    "Skipped",
    "WholeTask",
    "bench",
    "measure_process",
    "open_reference",
    "probe_peak",
    "to_html",
    "to_markdown",
]
