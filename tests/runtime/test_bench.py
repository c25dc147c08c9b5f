"""The benchmark: what it measures, compares, refuses and writes."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import samrt
from samrt import BackendError, InputError, MissingExtraError
from samrt.bench import (
    GraphFacts,
    Process,
    Report,
    Row,
    Skipped,
    WholeTask,
    bench,
    contenders,
    gpu,
    plots,
    run,
)
from samrt.bench.contenders import Samrt, mask_iou, memory_by_use, worst_error
from samrt.bench.peak import Peak, probe_peak
from samrt.bench.process import measure_process
from samrt.bench.tasks import flops_at, made_up_picture
from samrt.bench.timing import Times, paired_ratio, rotated, time_in_turns
from samrt.cli import build_app
from samrt_engines.openvino import computes_bf16


class Echo(Samrt):
    """A reference that is the bundle itself, off by a thousandth and after a nap."""

    def __init__(self, bundle: Path, mode: str = "eager") -> None:
        super().__init__(samrt.load(bundle, threads=1))
        self.mode = mode

    def run_graph(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        time.sleep(0.01)
        if self.mode == "broken" and name != "image_encoder":
            raise BackendError("cannot compile here", got="no compiler")
        return {key: value * np.float32(1.001) for key, value in super().run_graph(name, feeds).items()}


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """References "echo" and "echo-broken"; their processes, which would not know them, are samrt's own."""

    def opener(bundle: Path, *, mode: str, **options: Any) -> Echo:
        return Echo(bundle, mode)

    entry = types.SimpleNamespace(name="echo", load=lambda: opener)
    monkeypatch.setattr(contenders, "entry_points", lambda group: [entry])
    real = measure_process

    def measure(bundle: Path, *, contender: str = "samrt", **options: Any) -> Process:
        return real(bundle, **options)

    monkeypatch.setattr(run, "measure_process", measure)


@pytest.fixture(autouse=True)
def _quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "probe_peak", lambda threads: Peak(100.0, threads or 1, "not probed"))


def test_rows_batches_and_facts(bundle_path: Path, picture: np.ndarray) -> None:
    report = bench(bundle_path, image=picture, runs=6, threads=1)
    assert [(row.task, row.batch) for row in report.rows if row.kind == "graph"] == [
        ("image_encoder", 1),
        ("image_encoder", 2),  # its profile ends there
        ("prompt_encoder", 1),
        ("prompt_encoder", 4),
        ("mask_decoder", 1),
        ("mask_decoder", 4),
    ]
    assert next(row.task for row in report.rows if row.kind == "whole") == "encode"
    for row in report.rows:
        assert row.runs == 6
        assert 0 < row.min_ms <= row.quartiles_ms[0] <= row.p50_ms <= row.quartiles_ms[1] <= row.p95_ms <= row.p99_ms
        assert row.per_second == pytest.approx(row.batch / row.p50_ms * 1000)
        assert (row.ran_on, row.precision) == ("CPUExecutionProvider", "fp32")
        assert row.relative_l2 is row.mask_iou is row.ratio is row.share_of_peak is None  # nothing to compare with
    for name, facts in report.graphs.items():
        assert facts.model_bytes == (bundle_path / f"{name}.onnx").stat().st_size
        assert facts.plan_bytes is None
        assert facts.process.rss_peak_mib is not None
    assert set(report.graphs) == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert report.image_hw == (48, 64)


def test_without_a_gpu_there_is_no_gpu_number(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    whole = measure_process(bundle_path, hw=(48, 64), device="cpu", threads=1)
    assert whole.vram_mib is whole.vram_context_mib is whole.vram_allocated_mib is None
    assert whole.first_s > whole.load_s > 0
    assert whole.import_s > 0


def test_peak_memory_is_the_childs_own(bundle_path: Path) -> None:
    """Linux hands a process its parent's peak as ru_maxrss: this one's 400 MiB must not show."""
    big = np.ones(400 << 20, np.uint8)
    found = measure_process(bundle_path, hw=(48, 64), device="cpu", threads=1)
    assert big[-1] == 1
    assert found.rss_base_mib is not None
    assert found.rss_loaded_mib is not None
    assert found.rss_peak_mib is not None
    assert 10 < found.rss_base_mib < found.rss_loaded_mib <= found.rss_peak_mib < 380


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"samrt does not run in a fresh process \| got: BundleError: cannot open"):
        measure_process(tmp_path / "none", hw=(48, 64))


@pytest.mark.usefixtures("echo")
def test_a_reference_is_compared_and_timed(bundle_path: Path, picture: np.ndarray) -> None:
    report = bench(bundle_path, image=picture, against=["echo"], runs=6, threads=1)
    rows = [row for row in report.rows if row.contender == "echo"]
    assert len(rows) == len(report.rows) / 2
    for row in (row for row in rows if row.kind == "graph"):
        assert row.p50_ms >= 10
        assert row.ratio is not None
        assert row.ratio > 1
        assert row.ratio_quartiles is not None
        assert row.ratio_quartiles[0] <= row.ratio <= row.ratio_quartiles[1]
        assert row.relative_l2 == pytest.approx(1e-3, rel=0.05)
    clicks = [row for row in rows if row.kind == "whole" and row.task != "encode"]
    assert {row.mask_iou for row in clicks} == {1.0}
    assert next(row for row in rows if row.task == "encode").relative_l2 == 0
    assert "echo, fp32 on CPUExecutionProvider" in samrt.bench.to_markdown(report)


@pytest.mark.usefixtures("echo")
def test_a_reference_that_cannot_run_is_skipped_with_the_reason(bundle_path: Path, picture: np.ndarray) -> None:
    report = bench(bundle_path, image=picture, against=["echo", "echo-broken"], runs=5, threads=1)
    assert report.skipped == (
        Skipped("echo-broken", "prompt_encoder, batch 1", "cannot compile here | got: no compiler"),
    )
    assert {row.task for row in report.rows if row.contender == "echo-broken"} == {"image_encoder"}
    assert list(report.processes) == ["samrt", "echo"]
    assert "**echo-broken was skipped**" in samrt.bench.to_markdown(report)


@pytest.mark.usefixtures("echo")
def test_an_unknown_reference_is_refused(bundle_path: Path) -> None:
    with pytest.raises(BackendError, match=r"unknown reference \| got: 'abacus' \| expected: echo"):
        bench(bundle_path, against=["abacus"])


def test_turns_rotate_and_short_runs_share_one() -> None:
    """Everyone is first equally often; a short call has five runs in a turn, a long one a single run."""
    order: list[str] = []

    def call(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    times = time_in_turns({name: call(name) for name in "abc"}, runs=15, seconds=60, settle_s=1e-6)
    turns = "".join(order[9:])  # after three warm-up runs each
    assert turns == "".join(name * 6 for name in "abcbcacab")  # five counted runs after one that is not
    assert [len(one.run_ms) for one in times.values()] == [15, 15, 15]
    assert [len(one.turn_ms) for one in times.values()] == [3, 3, 3]
    assert [rotated(["a", "b"], index) for index in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_a_task_stops_when_its_time_is_up() -> None:
    counts = [0]

    def slow() -> None:
        counts[0] += 1
        time.sleep(0.002)

    times = time_in_turns({"slow": slow}, runs=10_000, seconds=0.0)
    assert len(times["slow"].run_ms) == 5
    assert counts == [5 + 3]


def test_ratios_are_paired() -> None:
    """The machine became ten times slower halfway: the ratio of each round is still 2."""
    base = np.array([1.0, 1.0, 10.0, 10.0])
    ratio = paired_ratio(Times(base * 2, base * 2), Times(base, base))
    assert (ratio.median, ratio.quartiles) == (2.0, (2.0, 2.0))


def test_agreement_cannot_be_vacuous() -> None:
    one = np.ones((2, 3), np.float32)
    assert worst_error({"a": one, "b": one}, {"a": one, "b": one * 2}) == pytest.approx(0.5)
    assert worst_error({"a": one}, {"a": one[:1]}) == float("inf")
    assert worst_error({"a": one * np.nan}, {"a": one}) == float("inf")
    masks = np.zeros((2, 1, 2, 2), bool)
    assert mask_iou(masks, masks) == 1
    other = masks.copy()
    other[1, 0, 0] = True
    assert mask_iou(masks, other) == 0
    assert mask_iou(other, masks[:1]) == 0


def test_the_probe_multiplies_matrices() -> None:
    peak = probe_peak(1, side=64, runs=2)
    assert peak.gflops > 0
    assert peak.threads == 1
    assert re.fullmatch(r"numpy float32 matmul 64 x 64, \S+, best of 2", peak.method)


def test_work_is_known_where_the_bundle_says_it(model: samrt.Model) -> None:
    """For larger batches of a graph that does everything per picture; never guessed for other sizes."""
    encoder, prompter = model.manifest.graphs["image_encoder"], model.manifest.graphs["prompt_encoder"]
    form = types.SimpleNamespace(flops=1000.0)
    image = np.zeros((1, 32, 32, 3), np.float32)
    assert flops_at(encoder, form, {"image": image}) == 1000  # type: ignore[arg-type]
    assert flops_at(encoder, form, {"image": image.repeat(4, 0)}) == 4000  # type: ignore[arg-type]
    assert flops_at(encoder, types.SimpleNamespace(flops=None), {"image": image}) is None  # type: ignore[arg-type]
    feeds = {
        "point_coords": np.zeros((1, 2, 2)),
        "point_labels": np.zeros((1, 2)),
        "mask_input": np.zeros((1, 1, 16, 16)),
        "has_mask_input": np.zeros(1),
    }
    assert flops_at(prompter, form, feeds) == 1000  # type: ignore[arg-type]
    many = {name: array.repeat(2, 0) for name, array in feeds.items()}
    assert flops_at(prompter, form, many) is None  # type: ignore[arg-type]


class FakeNvml(types.ModuleType):
    """NVML with two GPUs; this process is on the second."""

    class NVMLError(Exception):
        pass

    def __init__(self, pid: int) -> None:
        super().__init__("pynvml")
        mine = types.SimpleNamespace(pid=pid, usedGpuMemory=300 << 20)
        other = types.SimpleNamespace(pid=pid + 1, usedGpuMemory=5 << 30)
        self.processes = [[other], [other, mine]]
        self.nvmlInit = self.nvmlShutdown = lambda: None
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetComputeRunningProcesses = lambda handle: self.processes[handle]


def test_gpu_memory_is_this_processs_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    fake = FakeNvml(os.getpid())
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert gpu.process_vram_bytes() == 300 << 20
    fake.processes = [[], []]
    assert gpu.process_vram_bytes() is None
    fake.nvmlInit = lambda: (_ for _ in ()).throw(fake.NVMLError())
    assert gpu.process_vram_bytes() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.process_vram_bytes() is None


def a_report() -> Report:
    """A report with everything in it, numbers that JSON does not have included."""
    row = Row(
        "image_encoder", "graph", 1, "samrt", "CPU", "fp32", 5, 2.0, 3.0, 4.0, 1.0, (1.5, 2.5), 500.0, 1.0, 0.5
    )  # fmt: skip
    other = {"ratio": 2.0, "ratio_quartiles": (1.5, 2.5)}
    alone = Process(0.1, 0.2, 0.3, 30.0, 60.0, 90.0)
    return Report(
        model="<nano>",
        digest="0" * 64,
        machine={"cpu": "A | B", "cores": 2, "threads": 2, "samrt": "0", "python": "3", "numpy": "2", "time": "now"}
        | {"load_before": 0.1, "peak": {"gflops": 100.0, "threads": 2, "method": "matmul"}},
        image_hw=(1080, 1920),
        graphs={"image_encoder": GraphFacts("image_encoder.onnx", 3 << 20, None, "fp32", "CPU", alone)},
        processes={"samrt": alone, "pytorch": replace(alone, rss_peak_mib=400.0)},
        rows=(
            row,
            replace(row, contender="pytorch", p50_ms=4.0, relative_l2=float("inf"), **other),
            replace(row, batch=2),
            replace(row, batch=2, contender="pytorch", relative_l2=1e-6, **other),
            replace(row, task="click", kind="whole"),
            replace(row, task="click", kind="whole", contender="pytorch", mask_iou=0.9, **other),
        ),
        skipped=(Skipped("pytorch-compile", "encode", "no <compiler>"),),
    )


def test_markdown_says_it_all() -> None:
    text = samrt.bench.to_markdown(a_report())
    assert "| image_encoder | 1 | samrt, fp32 on CPU | 5 | 2.00 | 3.00 | 4.00 | 500 | 50% |  |  |" in text
    assert "| 50% | 2.00 (1.50 to 2.50) | 1.0e-06 |" in text
    assert "| 2.00 (1.50 to 2.50) | inf |" in text
    assert "mask IoU 0.9000" in text
    assert "| image_encoder alone | 3.0 |  | 0.20 | 0.30 | 30 | 60 | 90 |" in text
    assert 'skipped** from "encode" on: no <compiler>' in text
    assert "VRAM" not in text  # no GPU, no column


def test_figures_are_written_for_people() -> None:
    report = a_report()
    (row, *rest) = report.rows
    fast = replace(row, per_second=16384.2, share_of_peak=0.002)
    machine = {**report.machine, "threads": 1, "time": "2026-11-21T13:16:28+00:00"}
    text = samrt.bench.to_markdown(replace(report, machine=machine, rows=(fast, *rest)))
    assert "| 4.00 | 16,384 | < 1% |" in text
    assert "A | B, 2 cores, 1 thread; samrt 0" in text
    assert "2026-11-21 13:16:28 UTC; picture 1920 x 1080; bundle 000000000000. Probed peak: 100" in text


def test_a_legend_names_all_that_auto_chose() -> None:
    report = a_report()
    (row, *rest) = report.rows
    figure = plots.latency(replace(report, rows=(replace(row, ran_on="OpenVINO CPU"), *rest)))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["samrt: fp32 on OpenVINO CPU and fp32 on CPU", "pytorch: fp32 on CPU"]


def test_masks_that_are_compared_show_their_iou() -> None:
    figure = plots.accuracy(a_report())
    assert figure is not None
    assert "mask IoU 0.9000" in {text.get_text() for text in figure.axes[1].texts}


def test_a_busy_machine_is_named() -> None:
    report = a_report()
    assert "do not quote" not in samrt.bench.to_markdown(report)
    busy = replace(report, machine={**report.machine, "load_before": 3.5})
    assert "Load average before: 3.50. The machine was not quiet: do not quote" in samrt.bench.to_markdown(busy)
    assert "do not quote" in samrt.bench.to_html(busy)


def test_markdown_shows_gpu_memory_where_it_was_measured() -> None:
    report = a_report()
    on_gpu = replace(report.processes["samrt"], vram_mib=700.0, vram_context_mib=400.0)
    text = samrt.bench.to_markdown(replace(report, processes={"samrt": on_gpu}))
    assert "| RSS base | loaded | peak MiB | VRAM MiB | of it context | allocated |" in text
    assert "| 30 | 60 | 90 | 700 | 400 |  |" in text
    assert "ONNX Runtime has no count of its allocator for Python" in text
    by_use = {"weights": 150.0, "scratch": 40.0, "inputs_outputs": 10.0}
    counted = replace(on_gpu, vram_allocated_mib=200.0, vram_uses_mib=by_use)
    whole = replace(report, processes={"samrt": counted})
    text = samrt.bench.to_markdown(whole)
    assert "| allocated | weights | scratch | in and out |" in text
    assert "| 30 | 60 | 90 | 700 | 400 | 200 | 150 | 40 | 10 |" in text
    assert "ONNX Runtime has no count" not in text


def test_gpu_memory_is_a_stack_that_adds_up() -> None:
    report = a_report()
    assert plots.gpu_memory(report) is None
    on_gpu = replace(report.processes["samrt"], vram_mib=700.0, vram_context_mib=400.0)
    by_use = {"weights": 150.0, "scratch": 40.0, "inputs_outputs": 10.0}
    processes = {
        "samrt": replace(on_gpu, vram_allocated_mib=200.0, vram_uses_mib=by_use),
        "onnxruntime": on_gpu,
        "pytorch": replace(on_gpu, vram_allocated_mib=250.0),
        "unknown": replace(on_gpu, vram_mib=None),
    }
    figure = plots.gpu_memory(replace(report, processes=processes))
    assert figure is not None
    (ax,) = figure.axes
    bars: dict[float, list[float]] = {}
    for bar in ax.patches:
        bars.setdefault(bar.get_y(), []).append(bar.get_width())
    assert list(bars.values()) == [
        [400, 150, 40, 10, 0, 100],
        [400, 0, 0, 0, 0, 300],
        [400, 0, 0, 0, 250, 50],
    ]
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "samrt, whole",
        "onnxruntime, whole",
        "pytorch, whole",
    ]
    page = samrt.bench.to_html(replace(report, processes=processes))
    assert "<h2>GPU memory</h2><p>NVML" in page
    assert "ONNX Runtime has no count of its allocator for Python" in page


class OnGpu:
    """An executor that counts its memory."""

    provider = "TensorRT"

    def __init__(self, weights: int, scratch: Any) -> None:
        self.weights, self.scratch = weights, scratch

    def memory_bytes(self) -> dict[str, int]:
        return {"weights": self.weights}


def test_shared_scratch_counts_once() -> None:
    shared, own = (
        types.SimpleNamespace(size_bytes=size, pool=types.SimpleNamespace(peak_bytes=size + 7)) for size in (100, 30)
    )
    on_cpu = types.SimpleNamespace(provider="CPUExecutionProvider")
    on_ort = types.SimpleNamespace(provider="CUDAExecutionProvider")
    executors: list[Any] = [OnGpu(1, shared), OnGpu(2, shared), OnGpu(4, own), on_cpu]
    assert memory_by_use(executors) == {"weights": 7, "scratch": 130, "inputs_outputs": 14}
    assert memory_by_use([*executors, on_ort]) is None
    assert memory_by_use([on_cpu]) is None


def test_the_precision_that_openvino_was_told_stands_in_every_row(bundle_path: Path, picture: np.ndarray) -> None:
    openvino = pytest.importorskip("openvino")
    precision = "bf16" if computes_bf16(openvino) else "fp32"
    report = bench(bundle_path, image=picture, runs=5, threads=1, backend="openvino", precision=precision)
    assert {(row.ran_on, row.precision) for row in report.rows} == {("OpenVINO CPU", precision)}
    assert {facts.precision for facts in report.graphs.values()} == {precision}
    assert f"samrt, {precision} on OpenVINO CPU" in samrt.bench.to_markdown(report)


def test_html_is_one_file_with_its_plots() -> None:
    page = samrt.bench.to_html(a_report())
    assert re.findall(r"<h2>([^<]+)</h2>", page) == [
        "Latency",
        "Throughput by batch",
        "Memory",
        "Accuracy next to speed",
        "Graphs",
        "End to end",
        "Files and memory",
    ]
    plots = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(plots) == 4
    assert len(set(plots)) == 4
    for plot in plots:
        assert b"<svg" in base64.b64decode(plot)
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing to fetch
    assert "<nano>" not in page
    assert "&lt;nano&gt;" in page
    assert "no &lt;compiler&gt;" in page
    assert samrt.bench.to_html(a_report()) == page


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["bench", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.html", "all"])
def test_the_command_writes_its_report(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("samrt.commands.bench.measure", lambda bundle, **options: a_report())
    out = tmp_path / name
    result = invoke(bundle_path, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    assert document["rows"][1]["relative_l2"] is None  # infinite
    files = [out] if out.suffix else sorted(out.iterdir())
    for path in files:
        text = path.read_text()
        if path.suffix == ".json":
            assert json.loads(text, parse_constant=pytest.fail) == document
        else:
            assert text.startswith("# <nano>" if path.suffix == ".md" else "<!doctype html>")
    assert [path.suffix for path in files] == ([out.suffix] if out.suffix else [".html", ".json", ".md"])


def test_the_command_measures_and_prints(bundle_path: Path, tmp_path: Path) -> None:
    result = invoke(bundle_path, "--runs", "5", "--seconds", "1", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert re.search(r"mask_decoder x4 +samrt", result.stdout)
    assert re.search(r"samrt: loads in \d+\.\d+ s, first mask after", result.stdout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.pdf", "unknown kind of report | got: 'report.pdf' | expected: a name ending in .json, .md, .html"),
        ("none/report.md", "no folder"),
        ("file", "got: a file"),
        ("folder.md", "got: a folder of that name"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_measuring(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("samrt.commands.bench.measure", pytest.fail)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.md").mkdir()
    result = invoke(bundle_path, "-o", tmp_path / name)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_html_needs_matplotlib_and_says_so(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke(bundle_path, "-o", tmp_path / "report.html")
    assert isinstance(result.exception, MissingExtraError)
    assert 'fix: pip install "samrt[bench]"' in str(result.exception)


def test_the_made_up_picture_is_a_picture() -> None:
    picture = made_up_picture()
    assert (picture.shape, picture.dtype) == ((1080, 1920, 3), np.uint8)
    assert len(np.unique(picture)) == 256
    assert WholeTask("encode").batch == 1
