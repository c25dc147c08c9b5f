"""Keys: equal exactly for one plan, stable, and different in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samrt_engines.errors import PlanError
from samrt_engines.tensorrt import BuildOptions, Flavour, PlanKey, explain_difference

FIELDS: dict[str, Any] = {
    "onnx_sha256": "ab" * 32,
    "flavour": Flavour.RTX,
    "version": "1.7.1.116",
    "gpu": "any",
    "capability": "8.6",
    "precision": "fp16",
    "profiles": {"points": (0, 2, 65), "images": (1, 1, 8)},
    "options": BuildOptions(),
}
KEY = PlanKey.of(**FIELDS)


def test_the_digest_never_changes() -> None:
    """A plan built by an earlier samrt is found by a later one. If this must change, raise KEY_VERSION."""
    assert KEY.digest == "f04c844ce7d990b0e52a383ad6d71a20"


def test_order_does_not_matter() -> None:
    turned = PlanKey.of(**FIELDS | {"profiles": {"images": (1, 1, 8), "points": (0, 2, 65)}})
    assert turned == KEY
    assert turned.digest == KEY.digest


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"onnx_sha256": "cd" * 32}, "ONNX file: wanted abababababab, found cdcdcdcdcdcd"),
    (
        {"flavour": Flavour.TENSORRT, "version": "11.4.0"},
        "TensorRT: wanted TensorRT for RTX 1.7.1.116, found TensorRT 11.4.0",
    ),
    ({"version": "1.6"}, "TensorRT: wanted TensorRT for RTX 1.7.1.116, found TensorRT for RTX 1.6"),
    ({"gpu": "NVIDIA L4"}, "GPU: wanted any, found NVIDIA L4"),
    ({"capability": "8.9"}, "compute capability: wanted 8.6, found 8.9"),
    ({"precision": "fp32"}, "precision: wanted fp16, found fp32"),
    (
        {"profiles": {"points": (0, 2, 64), "images": (1, 1, 8)}},
        "profile of 'points': wanted (0, 2, 65), found (0, 2, 64)",
    ),
    ({"profiles": {"images": (1, 1, 8)}}, "profile of 'points': wanted (0, 2, 65), found none"),
    ({"options": BuildOptions(workspace_bytes=5)}, "option workspace_bytes: wanted None, found 5"),
    ({"options": BuildOptions(strip_weights=True)}, "option strip_weights: wanted False, found True"),
    ({"options": BuildOptions(hardware_compatible=True)}, "option hardware_compatible: wanted False, found True"),
    ({"options": BuildOptions(version_compatible=True)}, "option version_compatible: wanted False, found True"),
    ({"options": BuildOptions(optimization_level=5)}, "option optimization_level: wanted None, found 5"),
    ({"options": BuildOptions(decomposable_attention=True)}, "option decomposable_attention: wanted None, found True"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_every_field_tells_keys_apart_in_words(change: dict[str, Any], words: str) -> None:
    other = PlanKey.of(**FIELDS | change)
    assert explain_difference(KEY, other) == [words]
    assert other.digest != KEY.digest


def test_full_digests_count_though_twelve_digits_are_shown() -> None:
    assert explain_difference(KEY, PlanKey.of(**FIELDS | {"onnx_sha256": "ab" * 31 + "cd"})) == [
        "ONNX file: wanted abababababab, found abababababab"
    ]


def test_equal_keys_do_not_differ() -> None:
    assert explain_difference(KEY, KEY) == []


@pytest.mark.parametrize("change", [{}, *(change for change, _ in CHANGES)])
def test_json_there_and_back(change: dict[str, Any]) -> None:
    key = PlanKey.of(**FIELDS | change)
    assert PlanKey.from_json(json.loads(json.dumps(key.to_json()))) == key


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"gpu": None},
        {"tensorrt": {"flavour": "openvino", "version": "1"}},
        {"profiles": {"images": [1, 2]}},
        {"profiles": {"images": [1, True, 2]}},
        {"profiles": []},
        {"options": {"workspace_bytes": None}},
        {"options": {"unknown": 1}},
        {"more": 1},
    ],
)
def test_malformed_json_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="a plan's key is malformed"):
        PlanKey.from_json(KEY.to_json() | change)


@pytest.mark.parametrize("entry", [None, [], "key", {}])
def test_what_is_no_key_is_refused(entry: object) -> None:
    with pytest.raises(PlanError, match="a plan's key is malformed"):
        PlanKey.from_json(entry)
