"""What bench measures of a model that proposes masks, refuses and writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from samrt.bench import Report, bench, run, to_html, to_markdown
from samrt.bench.contenders import Samrt
from samrt.bench.peak import Peak
from samrt.bench.process import _click
from samrt.bench.proposals import ProposalTask, proposal_tasks, propose_and_click
from samrt.bench.tasks import GraphTask
from samrt.cli import build_app
from samrt.proposals import ProposalModel, select_box, select_points
from samrt_engines.errors import BackendError, BundleError, SamrtError

HEIGHT, WIDTH = 48, 64
TASKS = ["encode", "post-process", "everything", "click, 1 mask", "box, 1 mask"]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Blocks of colours, uint8 (HEIGHT, WIDTH, 3)."""
    blocks = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return blocks.repeat(HEIGHT // 6, axis=0).repeat(WIDTH // 8, axis=1)


@pytest.fixture(scope="module")
def report(proposal_bundle: Path, picture: np.ndarray) -> Report:
    """What one run found. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "probe_peak", lambda threads: Peak(100.0, threads or 1, "not probed"))
        return bench(proposal_bundle, image=picture, backend="onnxruntime", device="cpu", threads=1, runs=5)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["bench", *(str(argument) for argument in arguments)])


def test_rows_say_what_ran_where(report: Report) -> None:
    detector, *whole = report.rows
    assert (detector.task, detector.kind, detector.batch) == ("detector", "graph", 1)
    assert [row.task for row in whole] == TASKS
    assert {row.kind for row in whole} == {"whole"}
    on_host = [row.task for row in report.rows if row.ran_on == "numpy"]
    assert on_host == ["post-process", "click, 1 mask", "box, 1 mask"]
    assert {row.ran_on for row in report.rows} == {"CPUExecutionProvider", "numpy"}
    for row in report.rows:
        assert (row.contender, row.precision, row.runs) == ("samrt", "fp32", 5)
        assert 0 < row.min_ms <= row.p50_ms <= row.p99_ms
        assert row.per_second == pytest.approx(1000 / row.p50_ms)
        assert row.ratio is row.relative_l2 is row.mask_iou is None


def test_memory_is_that_of_fresh_processes(report: Report, proposal_bundle: Path) -> None:
    assert (report.model, report.image_hw) == ("colours", (HEIGHT, WIDTH))
    assert (list(report.graphs), list(report.processes)) == (["detector"], ["samrt"])
    facts = report.graphs["detector"]
    assert facts.model_bytes == (proposal_bundle / "detector.onnx").stat().st_size
    for process in (facts.process, report.processes["samrt"]):
        assert process.first_s > process.load_s > 0
        assert process.rss_base_mib is not None
        assert process.rss_loaded_mib is not None
        assert process.rss_peak_mib is not None
        assert 10 < process.rss_base_mib < process.rss_loaded_mib <= process.rss_peak_mib
        assert process.vram_mib is None


def test_every_task_does_what_it_is_called(
    proposer: ProposalModel, picture: np.ndarray, detector_constants: dict[str, np.ndarray], report: Report
) -> None:
    segments = proposer.propose(picture)
    assert report.masks_found == len(segments) > 3
    tasks = {task.name: task for task in proposal_tasks(proposer, picture, segments) if isinstance(task, ProposalTask)}
    made = {name: task.run() for name, task in tasks.items()}
    assert made["encode"].keys() == {"prototypes", *detector_constants}
    np.testing.assert_array_equal(made["encode"]["scores"], detector_constants["scores"])
    for name in ("post-process", "everything"):
        np.testing.assert_array_equal(made[name]["scores"], segments.scores)
    click = select_points(segments, [[WIDTH / 2, HEIGHT / 2]])
    box = select_box(segments, [WIDTH * 0.3, HEIGHT * 0.3, WIDTH * 0.7, HEIGHT * 0.7])
    assert click.any()
    assert box.any()
    assert (click != box).any()
    np.testing.assert_array_equal(made["click, 1 mask"]["masks"], click[None, None])
    np.testing.assert_array_equal(made["box, 1 mask"]["masks"], box[None, None])


def test_the_detector_meets_the_picture(proposer: ProposalModel, picture: np.ndarray) -> None:
    task, encode, *_ = proposal_tasks(proposer, picture, proposer.propose(picture))
    assert isinstance(task, GraphTask)
    assert isinstance(encode, ProposalTask)
    made = proposer.executors[task.graph].run(task.feeds)
    np.testing.assert_array_equal(made["prototypes"], encode.run()["prototypes"])
    assert (task.feeds["image"][0, :4] == 114).all()  # 48 x 64 lies in the middle of 32 x 32
    assert made["prototypes"].std() > 1


def test_the_process_answers_a_click(
    proposer: ProposalModel, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = proposer.propose(picture)
    answer = propose_and_click(proposer, picture)
    np.testing.assert_array_equal(answer, select_points(segments, [[WIDTH / 2, HEIGHT / 2]]))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(proposer, "propose", lambda image: seen.append(image) or segments)
    assert _click(Samrt(proposer), picture) == "detector"
    assert len(seen) == 1
    assert seen[0] is picture


def test_a_picture_without_masks_is_measured_too(
    write_proposal_bundle: Callable[..., Path], proposal_manifest: dict[str, Any], picture: np.ndarray, tmp_path: Path
) -> None:
    proposal_manifest["numbers"]["proposals"]["confidence"] = 0.99
    with ProposalModel(write_proposal_bundle(tmp_path / "sure", proposal_manifest), "onnxruntime", "cpu", 1) as model:
        tasks = proposal_tasks(model, picture, model.propose(picture))
        made = {task.name: task.run() for task in tasks if isinstance(task, ProposalTask)}
    assert made["everything"]["scores"].shape == (0,)
    for name in ("click, 1 mask", "box, 1 mask"):
        assert made[name]["masks"].shape == (1, 1, HEIGHT, WIDTH)
        assert not made[name]["masks"].any()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            ("--against", "pytorch", "--against", "pytorch-compile"),
            BackendError,
            r"nothing to measure colours against \| got: pytorch, pytorch-compile \| .* without PyTorch code "
            r"\| fix: samrt bench BUNDLE, without --against",
        ),
        (
            ("--video",),
            BundleError,
            r"colours cannot track \| got: a bundle whose abilities are automatic, points, boxes \| .* without --video",
        ),
    ],
)
def test_what_it_cannot_be_measured_with_is_refused_before_loading(
    proposal_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    kind: type[SamrtError],
    message: str,
) -> None:
    def load(*_: object, **__: object) -> Samrt:
        raise AssertionError("loaded")

    monkeypatch.setattr(run, "open_samrt", load)
    error = invoke(proposal_bundle, *arguments).exception
    assert isinstance(error, kind)
    assert re.search(message, str(error))


@pytest.mark.parametrize("write", [to_markdown, to_html])
def test_reports_say_how_many_masks_the_times_are_for(report: Report, write: Callable[[Report], str]) -> None:
    text = write(report)
    assert f"{report.masks_found} masks found in the picture. The work after the detector grows" in text
    assert "samrt, fp32 on numpy" in text
    assert "detector alone" in text
    for name in TASKS:
        assert name in text


def test_the_command_writes_and_prints_it(report: Report, proposal_bundle: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samrt.commands.bench.measure", lambda bundle, **options: report)
        result = invoke(proposal_bundle, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert f"{report.masks_found} masks found in the picture" in " ".join(result.stdout.split())
    assert re.search(r"post-process +samrt +\d", result.stdout)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        f"report.{suffix}" for suffix in ("html", "json", "md")
    ]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["masks_found"] == report.masks_found
