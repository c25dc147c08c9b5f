"""The self-test: what it keeps, what it lets through, and what it stops."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from samrt.selftest import (
    MOST_SAMPLES,
    Expected,
    SelfTest,
    SelfTestRow,
    check_rows,
    expected_from_output,
    sample_places,
    usual_error,
)
from samrt_engines.errors import ManifestError, SelfTestError
from samrt_engines.tensors import TensorSpec

IMAGE = np.arange(2 * 4 * 3, dtype=np.float32).reshape(1, 2, 4, 3) * 10


@dataclass
class Doubled:
    """An executor that computes what it is told to."""

    inputs: tuple[TensorSpec, ...]
    compute: Callable[..., dict[str, NDArray[np.float32]]]

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        assert list(feeds) == [spec.name for spec in self.inputs]
        return self.compute(**feeds)


def chain(fault: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda x: x) -> dict[str, Doubled]:
    """An encoder that scales, and a decoder that adds a prompt to what it made."""
    encoder = Doubled((TensorSpec("image", "float32", (1, 2, 4, 3)),), lambda image: {"embed": fault(image * 2)})
    decoder = Doubled(
        (TensorSpec("embed", "float32", (1, 2, 4, 3)), TensorSpec("label", "int32", (1,))),
        lambda embed, label: {"masks": embed + label.astype(np.float32)},
    )
    return {"encoder": encoder, "decoder": decoder}


@pytest.fixture
def selftest() -> SelfTest:
    expected = {
        "encoder": {"embed": expected_from_output(IMAGE * 2, 5e-3)},
        "decoder": {"masks": expected_from_output(IMAGE * 2 + 7, 1e-2)},
    }
    return SelfTest({"image": IMAGE, "label": np.array([7], np.int32)}, expected)


def test_right_answers_pass_through_the_file(selftest: SelfTest) -> None:
    content = selftest.to_bytes()
    read = SelfTest.from_bytes(content)
    assert read.to_bytes() == content
    rows = read.run(chain())  # type: ignore[arg-type]
    assert [(row.graph, row.output, row.tolerance) for row in rows] == [
        ("encoder", "embed", 5e-3),
        ("decoder", "masks", 1e-2),
    ]
    assert all(row.ok and row.relative_l2 == 0 for row in rows)
    check_rows(rows, "plans")


def test_inputs_come_back_in_the_types_of_the_graphs(selftest: SelfTest) -> None:
    seen = {}
    executors = chain()
    executors["decoder"].compute = lambda embed, label: seen.update(label=label) or {"masks": embed + 7}
    SelfTest.from_bytes(selftest.to_bytes()).run(executors)  # type: ignore[arg-type]
    assert seen["label"].dtype == np.int32


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda x: x * 1.01, r"'embed' is off by 1.0e-02 \(relative\), cosine 1.000000"),
        (lambda x: x[..., ::-1].copy(), r"'embed' is off by .*, cosine 0\.\d+; 1 more outputs are wrong after it"),
        (lambda x: np.where(x > 400, np.inf, x), r"'embed' is off by inf"),
        (lambda x: x * np.nan, r"'embed' is off by inf"),
        (lambda x: x[:, :1], r"'embed' is off by inf"),
        (np.zeros_like, r"'embed' is off by 1.0e\+00 \(relative\), cosine 0.000000"),
    ],
)
def test_wrong_answers_are_named(selftest: SelfTest, fault: Callable, message: str) -> None:  # type: ignore[type-arg]
    executors = chain(fault)
    executors["decoder"].compute = lambda embed, label: {"masks": np.resize(embed, IMAGE.shape) + 7}
    rows = selftest.run(executors)  # type: ignore[arg-type]
    with pytest.raises(SelfTestError, match=f"^plans: encoder is wrong on this machine.*{message}.*fix: build again"):
        check_rows(rows, "plans")


def test_rounding_within_tolerance_passes(selftest: SelfTest) -> None:
    rows = selftest.run(chain(lambda x: x.astype(np.float16).astype(np.float32) * 1.001))  # type: ignore[arg-type]
    assert all(row.ok for row in rows)
    assert rows[0].relative_l2 > 5e-4


def test_an_answer_that_points_elsewhere_is_wrong_even_within_a_wide_tolerance() -> None:
    wanted = Expected(np.array([3.0, 4.0], np.float32), tolerance=0.1)
    turned = np.array([3.0, 4.0]) + 0.099 * np.array([-4.0, 3.0])  # 9.9 % off, all of it sideways: 1 - cos = 0.0049
    (row,) = SelfTest({"image": IMAGE}, {"encoder": {"embed": wanted}}).run(
        chain(lambda _: turned.astype(np.float32))  # type: ignore[arg-type]
    )
    assert row.ok
    (row,) = SelfTest({"image": IMAGE}, {"encoder": {"embed": wanted}}).run(
        chain(lambda _: -np.array([3.0, 4.0], np.float32))  # type: ignore[arg-type]
    )
    assert (row.ok, row.cosine) == (False, pytest.approx(-1))


@pytest.mark.parametrize(
    ("at_export", "usual"),
    [
        (7.6e-4, 2.28e-3),  # fp16, emulated: three times
        (3.5e-7, 3 * 2**-11),  # fp32: a GPU computes it in TF32, which rounds like fp16
    ],
)
def test_what_rounding_explains(at_export: float, usual: float) -> None:
    assert usual_error(at_export) == pytest.approx(usual)
    for error, unusual in ((usual * 0.99, False), (usual * 1.01, True), (float("nan"), True)):
        row = SelfTestRow("decoder", "masks", error, 1.0, 5e-3, usual)
        assert row.unusual is unusual
        assert row.ok is (error < 5e-3)  # noticed, not refused
    assert not SelfTestRow("decoder", "masks", 1.0, 1.0, 5e-3).unusual


def test_samples_cover_large_tensors() -> None:
    assert sample_places(10).tolist() == list(range(10))
    places = sample_places(1 << 20)
    assert len(places) == len(set(places.tolist())) == MOST_SAMPLES
    for part in np.array_split(np.arange(1 << 20), 64):  # every 64th of the tensor is looked at
        assert ((places >= part[0]) & (places <= part[-1])).sum() > 100


def test_json_has_no_infinity(selftest: SelfTest) -> None:
    rows = selftest.run(chain(lambda x: x * np.nan))  # type: ignore[arg-type]
    assert rows[0].to_json() == {
        "graph": "encoder",
        "output": "embed",
        "relative_l2": None,
        "cosine": -1.0,
        "tolerance": 5e-3,
        "usual": None,
        "ok": False,
    }


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_a_damaged_file_is_refused(content: bytes) -> None:
    with pytest.raises(ManifestError, match="the self-test cannot be read"):
        SelfTest.from_bytes(content)


def test_pickles_are_refused() -> None:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **{"input:image": np.array([object()])})
    with pytest.raises(ManifestError, match="the self-test cannot be read"):
        SelfTest.from_bytes(file.getvalue())
