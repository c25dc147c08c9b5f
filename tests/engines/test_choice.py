"""Choosing a backend by measuring it: fake clocks and candidates, a real cache folder."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samrt_engines import choice
from samrt_engines.choice import Decision, DecisionStore, Option, cache_folder, choose, open_fastest, sample_feeds
from samrt_engines.errors import BackendError, ProviderError
from samrt_engines.executor import open_executor
from samrt_engines.tensors import Array, TensorSpec

from .tiny_graphs import LINEAR_INPUTS, linear, rows

RIGHT = {"y": np.array([3.0, 4.0], np.float32)}


class Bench:
    """Candidates that take as long as they are told to, on a clock that nobody else moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float, outputs: Mapping[str, Array] = RIGHT) -> Callable[[], Any]:
        """Takes `seconds` in turn, the last of them from then on; the first is the warm-up."""
        left = list(seconds)

        def run() -> Mapping[str, Array]:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return outputs

        return run

    def choose(self, candidates: Mapping[str, Callable[[], Any]], **options: Any) -> Decision:
        return choose(
            "encoder", candidates, options.pop("reference", RIGHT), clock=self.clock, pause=lambda: None, **options
        )


# Choosing


def test_the_fastest_wins_by_its_median() -> None:
    bench = Bench()
    decision = bench.choose(
        {"a": bench.candidate("a", 9, 0.1, 0.1, 5), "b": bench.candidate("b", 0.5), "c": bench.candidate("c", 0.6)},
        budget_seconds=100,
    )
    assert decision.chosen == "b"  # a was fastest twice, and slowest most of the time
    assert decision.seconds == pytest.approx({"a": 5, "b": 0.5, "c": 0.6})
    assert decision.errors == {"a": 0, "b": 0, "c": 0}


def test_turns_rotate() -> None:
    bench = Bench()
    bench.choose(
        {"a": bench.candidate("a", 1), "b": bench.candidate("b", 1), "c": bench.candidate("c", 1)}, budget_seconds=12
    )
    assert "".join(bench.order) == "abc" + "abc" + "bca" + "cab"


@pytest.mark.parametrize(("budget", "rounds"), [(0, 1), (4.0, 1), (4.1, 2), (1e9, 7)])
def test_the_budget_ends_it_after_a_round_at_least(budget: float, rounds: int) -> None:
    bench = Bench()
    bench.choose({"a": bench.candidate("a", 1), "b": bench.candidate("b", 1)}, budget_seconds=budget)
    assert bench.order.count("a") == bench.order.count("b") == 1 + rounds


@pytest.mark.parametrize(("second", "chosen"), [(0.99, "first"), (0.98, "first"), (0.96, "second")])
def test_the_first_one_wins_what_may_be_noise(second: float, chosen: str) -> None:
    bench = Bench()
    decision = bench.choose({"first": bench.candidate("first", 1), "second": bench.candidate("second", second)})
    assert decision.chosen == chosen


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"y": np.array([3.0, 4.001], np.float32)}, "relative error 2.0e-04, above 2e-05"),
        ({"y": np.array([3.0, math.nan], np.float32)}, "relative error inf, above 2e-05"),
        ({"y": np.array([[3.0, 4.0]], np.float32)}, "relative error inf, above 2e-05"),
        ({"y": np.array([3.0, 4.0], np.float16)}, "relative error inf, above 2e-05"),
        ({}, "relative error inf, above 2e-05"),
    ],
)
def test_speed_does_not_excuse_a_wrong_answer(outputs: Any, reason: str) -> None:
    bench = Bench()
    decision = bench.choose(
        {"right": bench.candidate("right", 9), "wrong": bench.candidate("wrong", 1, outputs=outputs)}
    )
    assert (decision.chosen, decision.refused) == ("right", {"wrong": reason})
    assert bench.order.count("wrong") == 1
    assert bench.order.count("right") == 1  # with one left, there is nothing to measure


def test_without_a_reference_the_first_one_is_right() -> None:
    bench = Bench()
    other = {"y": np.array([3.0, 5.0], np.float32)}
    candidates = {"a": bench.candidate("a", 9, outputs=other), "b": bench.candidate("b", 1)}
    decision = bench.choose(candidates, reference=None)
    assert (decision.chosen, list(decision.refused)) == ("a", ["b"])


def test_a_looser_tolerance_lets_it_in() -> None:
    bench = Bench()
    close = {"y": np.array([3.0, 4.001], np.float32)}
    candidates = {"right": bench.candidate("right", 9), "close": bench.candidate("close", 1, outputs=close)}
    decision = bench.choose(candidates, tolerance=1e-3)
    assert (decision.chosen, decision.refused) == ("close", {})
    assert decision.errors["close"] == pytest.approx(2e-4, rel=1e-3)


def test_the_worst_output_counts() -> None:
    reference = {"good": np.ones(3, np.float32), "zero": np.zeros(2, np.float32)}
    assert choice.relative_error(reference, reference) == 0
    assert choice.relative_error({**reference, "zero": np.array([0, 1e-9], np.float32)}, reference) == math.inf
    half = {**reference, "good": np.array([1, 1, 0.5], np.float32)}
    assert choice.relative_error(half, reference) == pytest.approx(0.5 / math.sqrt(3))


def test_a_candidate_that_fails_is_out() -> None:
    def fail() -> Any:
        raise ProviderError("no such kernel")

    bench = Bench()
    decision = bench.choose({"bad": fail, "good": bench.candidate("good", 1)})
    assert (decision.chosen, decision.refused) == ("good", {"bad": "no such kernel"})


def test_nobody_left() -> None:
    def fail() -> Any:
        raise BackendError("no such kernel")

    bench = Bench()
    wrong = bench.candidate("wrong", 1, outputs={"y": np.zeros(2, np.float32)})
    message = (
        "encoder: no backend runs this graph | got: bad: no such kernel; wrong: relative error 1.0e+00, above 2e-05"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        bench.choose({"bad": fail, "wrong": wrong})


# Remembering


CONTEXT = {"machine": "Zen, 2 cores", "threads": "2"}
DECISION = Decision("encoder", "b", {"a": 2.0, "b": 1.0}, {"a": 0.0, "b": 1e-6}, {"c": "too old"}, CONTEXT)


def test_what_was_saved_is_loaded_and_listed(tmp_path: Path) -> None:
    store = DecisionStore(tmp_path)
    assert (store.load("encoder", CONTEXT), store.all()) == (None, ())
    assert store.save(DECISION)
    assert store.load("encoder", CONTEXT) == DECISION
    assert store.all() == (DECISION,)
    assert [path.suffix for path in (tmp_path / "choices").iterdir()] == [".json"]
    assert store.forget() == 1
    assert store.all() == ()


@pytest.mark.parametrize("other", [{"machine": "Zen, 4 cores"}, {"threads": "1"}, {"onnxruntime version": "2"}])
def test_another_context_is_another_decision(other: dict[str, str], tmp_path: Path) -> None:
    store = DecisionStore(tmp_path)
    store.save(DECISION)
    assert store.load("encoder", {**CONTEXT, **other}) is None
    assert store.load("decoder", CONTEXT) is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"format": 1}).encode(),
        lambda whole: whole.replace(b'"format": 1', b'"format": 2'),
        lambda whole: whole.replace(b'"chosen": "b"', b'"chosen": 3'),
        lambda whole: whole.replace(b"2.0", b'"fast"'),
        lambda whole: whole.replace(b'"Zen, 2 cores"', b"[]"),
        lambda whole: whole.replace(b"Zen, 2 cores", b"Zen, 3 cores"),
        lambda whole: whole[:-30],
    ],
)
def test_a_damaged_file_is_as_good_as_none(damage: Any, tmp_path: Path) -> None:
    store = DecisionStore(tmp_path)
    store.save(DECISION)
    (path,) = (tmp_path / "choices").iterdir()
    whole = path.read_bytes()
    damaged = damage(whole) if callable(damage) else damage
    assert damaged != whole
    path.write_bytes(damaged)
    assert store.load("encoder", CONTEXT) is None
    assert store.save(DECISION)
    assert store.load("encoder", CONTEXT) == DECISION


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DecisionStore(tmp_path)
    store.save(DECISION)

    def full(source: Any, target: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not store.save(Decision("encoder", "a", {}, {}, {}, CONTEXT))
    assert store.load("encoder", CONTEXT) == DECISION
    assert len(list((tmp_path / "choices").iterdir())) == 1


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "choices").write_text("in the way")
    store = DecisionStore(tmp_path)
    assert not store.save(DECISION)
    assert (store.load("encoder", CONTEXT), store.all(), store.forget()) == (None, (), 0)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"SAMRT_CACHE": "/fast/cache", "XDG_CACHE_HOME": "/xdg"}, "/fast/cache"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/samrt"),
        ("linux", {}, "/home/ann/.cache/samrt"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/ann/.cache/samrt"),
        ("darwin", {}, "/home/ann/Library/Caches/samrt"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/samrt/Cache"),
        ("win32", {}, "/home/ann/AppData/Local/samrt/Cache"),
    ],
)
def test_where_the_cache_is(
    platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SAMRT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    assert cache_folder() == Path(expected)


# Opening


class Opener:
    """Options that count how often they are opened, and fake how long runs take."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.made_feeds = 0

    def option(self, backend: str, *seconds: float, sha256: str = "0" * 64, fails: bool = False) -> Option:
        def open_it() -> Any:
            self.opened.append(backend)
            if fails:
                raise ProviderError(f"no {backend} here")
            return Fake(self, backend, self.bench.candidate(backend, *seconds))

        return Option(backend, sha256, open_it)

    def feeds(self) -> dict[str, Array]:
        self.made_feeds += 1
        return {}

    def open_fastest(self, *options: Option, folder: Path, machine: str = "Zen", threads: int | None = 2) -> Any:
        return open_fastest(
            options,
            self.feeds,
            graph="encoder",
            machine=machine,
            threads=threads,
            folder=folder,
            clock=self.bench.clock,
            pause=lambda: None,
        )


class Fake:
    """An executor, as far as choosing needs one."""

    def __init__(self, opener: Opener, name: str, answer: Callable[[], Any]) -> None:
        self.opener, self.name, self.answer = opener, name, answer

    def run(self, feeds: Any) -> Any:
        return self.answer()

    def close(self) -> None:
        self.opener.closed.append(self.name)

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def test_measured_once_then_remembered(tmp_path: Path) -> None:
    opener = Opener(Bench())
    options = opener.option("onnxruntime", 2.0), opener.option("openvino", 1.0)
    executor, decision = opener.open_fastest(*options, folder=tmp_path)
    assert (executor.name, decision.chosen) == ("openvino", "openvino")
    assert (opener.opened, opener.closed, opener.made_feeds) == (["onnxruntime", "openvino"], ["onnxruntime"], 1)
    again, same = opener.open_fastest(*options, folder=tmp_path)
    assert (again.name, same) == ("openvino", decision)
    assert (opener.opened[2:], opener.closed, opener.made_feeds) == (["openvino"], ["onnxruntime"], 1)


@pytest.mark.parametrize("change", [{"machine": "Zen 6"}, {"threads": 4}, {"threads": None}])
def test_another_machine_or_thread_count_is_measured_anew(change: Any, tmp_path: Path) -> None:
    opener = Opener(Bench())
    options = opener.option("onnxruntime", 2.0), opener.option("openvino", 1.0)
    opener.open_fastest(*options, folder=tmp_path)
    opener.open_fastest(*options, folder=tmp_path, **change)
    assert opener.made_feeds == 2
    assert len(DecisionStore(tmp_path).all()) == 2


def test_another_model_file_or_version_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener(Bench())
    plain = opener.option("onnxruntime", 2.0)
    opener.open_fastest(plain, opener.option("openvino", 1.0), folder=tmp_path)
    opener.open_fastest(plain, opener.option("openvino", 1.0, sha256="1" * 64), folder=tmp_path)
    assert opener.made_feeds == 2
    monkeypatch.setattr(choice, "installed_version", lambda backend: "99.0")
    _, decision = opener.open_fastest(plain, opener.option("openvino", 1.0), folder=tmp_path)
    assert opener.made_feeds == 3
    assert decision.context["openvino version"] == "99.0"


def test_a_backend_that_does_not_open_is_noted(tmp_path: Path) -> None:
    opener = Opener(Bench())
    executor, decision = opener.open_fastest(
        opener.option("onnxruntime", 2.0), opener.option("openvino", 1.0, fails=True), folder=tmp_path
    )
    assert (executor.name, decision.refused) == ("onnxruntime", {"openvino": "no openvino here"})
    assert opener.closed == []


def test_the_first_has_to_open(tmp_path: Path) -> None:
    opener = Opener(Bench())
    with pytest.raises(ProviderError, match=r"^no onnxruntime here$"):
        opener.open_fastest(
            opener.option("onnxruntime", 1.0, fails=True), opener.option("openvino", 1.0), folder=tmp_path
        )


def test_all_are_closed_when_measuring_fails(tmp_path: Path) -> None:
    opener = Opener(Bench())

    def broken() -> Any:
        raise KeyError("feeds")

    options = opener.option("onnxruntime", 1.0), opener.option("openvino", 1.0)
    with pytest.raises(KeyError):
        open_fastest(options, broken, graph="encoder", machine="Zen", folder=tmp_path)
    assert sorted(opener.closed) == ["onnxruntime", "openvino"]


def test_one_way_needs_no_measuring(tmp_path: Path) -> None:
    opener = Opener(Bench())
    executor, decision = opener.open_fastest(opener.option("onnxruntime", 1.0), folder=tmp_path)
    assert (executor.name, decision.chosen, opener.made_feeds) == ("onnxruntime", "onnxruntime", 0)
    assert list(tmp_path.iterdir()) == []


def test_real_backends_agree_on_a_real_graph(tmp_path: Path) -> None:
    model = linear()
    options = [
        Option(name, "0" * 64, lambda name=name: open_executor(model, backend=name, device="cpu", threads=1))
        for name in ("onnxruntime", "openvino")
    ]
    feeds = sample_feeds(LINEAR_INPUTS, {"rows": 5})
    executor, decision = open_fastest(options, lambda: feeds, graph="linear", machine="any", folder=tmp_path)
    with executor:
        assert executor.run(rows(2))["y"].shape == (2, 2)
    assert decision.refused == {}
    assert set(decision.seconds) == {"onnxruntime", "openvino"}
    assert DecisionStore(tmp_path).all() == (decision,)


def test_feeds_made_up_are_always_the_same_and_fit() -> None:
    specs = [
        TensorSpec("image", "uint8", ("batch", 4, 4, 3)),
        TensorSpec("features", "float32", ("batch", 1000)),
        TensorSpec("half", "float16", (2,)),
        TensorSpec("labels", "int32", ("batch", "points")),
        TensorSpec("valid", "bool", (2,)),
        TensorSpec("pixels", "float32", (1000,)),
    ]
    sizes = {"batch": 2, "points": 5}
    one, other = (sample_feeds(specs, sizes, {"pixels": (0, 255)}) for _ in range(2))
    for spec in specs:
        assert one[spec.name].dtype == spec.dtype
        np.testing.assert_array_equal(one[spec.name], other[spec.name])
    assert one["image"].shape == (2, 4, 4, 3)
    assert (one["image"].min() < 30, one["image"].max() > 220) == (True, True)
    assert 0.9 < one["features"].std() < 1.1
    assert (one["labels"].shape, one["labels"].any(), one["valid"].all()) == ((2, 5), False, True)
    assert (one["pixels"].min() >= 0, one["pixels"].max() > 200) == (True, True)
