"""The check that feeds pass before a backend sees them: each fault by its message, and no false alarm."""

import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samrt_engines.errors import ManifestError, TensorError
from samrt_engines.tensors import DTYPES, Array, TensorSpec, check_feeds, pick_outputs, spec_differences

COORDS = TensorSpec("point_coords", "float32", ("prompts", "points", 2))
LABELS = TensorSpec("point_labels", "int32", ("prompts", "points"))
SPECS = (COORDS, LABELS)


def points(prompts: int = 3, count: int = 5) -> dict[str, Array]:
    return {
        "point_coords": np.zeros((prompts, count, 2), np.float32),
        "point_labels": np.zeros((prompts, count), np.int32),
    }


def refuse(message: str, feeds: dict[str, Any], **options: Any) -> None:
    """The whole message, word for word."""
    with pytest.raises(TensorError, match=f"^{re.escape(message)}$"):
        check_feeds(feeds, SPECS, graph="prompt_encoder", **options)


def test_sizes_of_the_symbols_come_back() -> None:
    assert check_feeds(points(3, 5), SPECS) == {"prompts": 3, "points": 5}


def test_a_dimension_may_be_empty() -> None:
    assert check_feeds(points(2, 0), SPECS) == {"prompts": 2, "points": 0}


def test_a_scalar_has_no_symbols() -> None:
    assert check_feeds({"t": np.array(1.5, np.float32)}, [TensorSpec("t", "float32", ())]) == {}


def test_missing_name() -> None:
    feeds = points()
    del feeds["point_labels"]
    refuse(
        "prompt_encoder: the inputs are not the graph's | got: missing 'point_labels' | "
        "expected: 'point_coords', 'point_labels'",
        feeds,
    )


def test_a_misspelt_name_is_recognised() -> None:
    feeds = points()
    feeds["point_label"] = feeds.pop("point_labels")
    refuse(
        "prompt_encoder: the inputs are not the graph's | got: missing 'point_labels' and unknown 'point_label' | "
        "expected: 'point_coords', 'point_labels' | fix: rename 'point_label' to 'point_labels'",
        feeds,
    )


def test_unknown_name() -> None:
    refuse(
        "prompt_encoder: the inputs are not the graph's | got: unknown 'boxes' | "
        "expected: 'point_coords', 'point_labels'",
        {**points(), "boxes": np.zeros(4, np.float32)},
    )


def test_not_an_array() -> None:
    refuse(
        "prompt_encoder: input 'point_labels' is not an array | got: list | "
        'expected: numpy.ndarray, point_labels: int32 (prompts, points) | fix: numpy.asarray(..., dtype="int32")',
        {**points(), "point_labels": [[1]]},
    )


def test_wrong_dtype() -> None:
    refuse(
        "prompt_encoder: input 'point_labels' has the wrong dtype | got: int64 | expected: int32 | "
        'fix: .astype("int32")',
        {**points(), "point_labels": np.zeros((3, 5), np.int64)},
    )


def test_foreign_byte_order() -> None:
    refuse(
        "prompt_encoder: input 'point_coords' has the wrong dtype | got: float32 in foreign byte order | "
        'expected: float32 | fix: .astype("float32")',
        {**points(), "point_coords": np.zeros((3, 5, 2), np.dtype("f4").newbyteorder())},
    )


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (3, 5, 2, 1), ()])
def test_wrong_rank_or_fixed_size(shape: tuple[int, ...]) -> None:
    refuse(
        f"prompt_encoder: input 'point_coords' has the wrong shape | got: {shape} | "
        "expected: point_coords: float32 (prompts, points, 2)",
        {**points(), "point_coords": np.zeros(shape, np.float32)},
    )


def test_one_symbol_two_sizes() -> None:
    refuse(
        "prompt_encoder: 'points' has two sizes | got: 5 in 'point_coords', 4 in 'point_labels' (axis 1) | "
        "expected: one size for 'points' in all inputs",
        {**points(3, 5), "point_labels": np.zeros((3, 4), np.int32)},
    )


def test_one_symbol_twice_in_one_tensor() -> None:
    square = [TensorSpec("affinity", "float32", ("tokens", "tokens"))]
    assert check_feeds({"affinity": np.zeros((4, 4), np.float32)}, square) == {"tokens": 4}
    with pytest.raises(TensorError, match=r"4 in 'affinity', 3 in 'affinity' \(axis 1\)"):
        check_feeds({"affinity": np.zeros((4, 3), np.float32)}, square)


def test_above_the_range() -> None:
    refuse(
        "prompt_encoder: 'prompts' is out of range in input 'point_coords' (axis 0) | got: 3 | expected: 1 to 2 | "
        "fix: split the call along 'prompts'",
        points(3),
        ranges={"prompts": (1, 2)},
    )


def test_below_the_range() -> None:
    refuse(
        "prompt_encoder: 'prompts' is out of range in input 'point_coords' (axis 0) | got: 0 | expected: 1 to 2",
        points(0),
        ranges={"prompts": (1, 2)},
    )


@pytest.mark.parametrize("size", [1, 8])
def test_both_ends_of_a_range_are_in_it(size: int) -> None:
    assert check_feeds(points(size), SPECS, ranges={"prompts": (1, 8), "unused": (3, 3)})["prompts"] == size


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[TensorSpec], dict[str, int]]:
    """Any input specs, and a size for every symbol."""
    sizes = draw(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), min_size=1))
    dimension = st.one_of(st.integers(0, 3), st.sampled_from(sorted(sizes)))
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=4))
    shapes = st.lists(dimension, max_size=4).map(tuple)
    return [TensorSpec(name, draw(st.sampled_from(DTYPES)), draw(shapes)) for name in names], sizes


def feeds_for(specs: list[TensorSpec], sizes: dict[str, int]) -> dict[str, Array]:
    return {s.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in s.shape], s.dtype) for s in specs}


@given(graph=graphs())
def test_fitting_feeds_pass_untouched(graph: tuple[list[TensorSpec], dict[str, int]]) -> None:
    specs, sizes = graph
    feeds = feeds_for(specs, sizes)
    for array in feeds.values():
        array.flags.writeable = False
    before = dict(feeds)
    used = {dimension for spec in specs for dimension in spec.shape if isinstance(dimension, str)}
    assert check_feeds(feeds, specs, ranges={symbol: (size, size) for symbol, size in sizes.items()}) == {
        symbol: sizes[symbol] for symbol in used
    }
    assert all(feeds[name] is array for name, array in before.items())


@given(graph=graphs(), data=st.data())
def test_any_single_fault_is_found(graph: tuple[list[TensorSpec], dict[str, int]], data: st.DataObject) -> None:
    """Take fitting feeds and break one thing."""
    specs, sizes = graph
    feeds = feeds_for(specs, sizes)
    spec = data.draw(st.sampled_from(specs))
    array = feeds[spec.name]
    fixed = [axis for axis, dimension in enumerate(spec.shape) if isinstance(dimension, int)]
    fault = data.draw(st.sampled_from(["missing", "unknown", "dtype", "rank", *(["fixed"] if fixed else [])]))
    if fault == "missing":
        del feeds[spec.name]
    elif fault == "unknown":
        feeds[spec.name + "?" * 9] = array
    elif fault == "dtype":
        feeds[spec.name] = array.astype("float64")
    elif fault == "rank":
        feeds[spec.name] = array[None]
    else:
        shape = list(array.shape)
        shape[data.draw(st.sampled_from(fixed))] += 1
        feeds[spec.name] = np.zeros(shape, spec.dtype)
    with pytest.raises(TensorError):
        check_feeds(feeds, specs)


def test_all_outputs_or_the_wanted_ones_in_their_order() -> None:
    assert pick_outputs(None, SPECS) == ["point_coords", "point_labels"]
    assert pick_outputs(["point_labels", "point_coords", "point_labels"], SPECS) == ["point_labels", "point_coords"]


@pytest.mark.parametrize(("wanted", "got"), [(["masks"], "'masks'"), ([], "nothing")])
def test_no_such_output(wanted: list[str], got: str) -> None:
    message = f"mask_decoder: no such output | got: {got} | expected: 'point_coords', 'point_labels'"
    with pytest.raises(TensorError, match=f"^{re.escape(message)}$"):
        pick_outputs(wanted, SPECS, graph="mask_decoder")


def test_a_spec_prints_as_its_io_table_line() -> None:
    assert str(COORDS) == "point_coords: float32 (prompts, points, 2)"


@pytest.mark.parametrize(
    ("declared", "differences"),
    [
        (SPECS, []),
        ((LABELS, COORDS), []),
        ((TensorSpec("point_coords", "float32", ("P", "N", "two")), LABELS), []),
        ((COORDS,), ["'point_labels' is missing"]),
        ((*SPECS, TensorSpec("boxes", "float32", (4,))), ["'boxes' is unknown"]),
        (
            (COORDS, TensorSpec("point_labels", "int64", ("prompts", "points"))),
            ["point_labels: int64 (prompts, points) instead of point_labels: int32 (prompts, points)"],
        ),
        (
            (TensorSpec("point_coords", "float32", ("points", 2)), LABELS),
            ["point_coords: float32 (points, 2) instead of point_coords: float32 (prompts, points, 2)"],
        ),
        (
            (TensorSpec("point_coords", "float32", ("prompts", "points", 3)), LABELS),
            ["point_coords: float32 (prompts, points, 3) instead of point_coords: float32 (prompts, points, 2)"],
        ),
    ],
)
def test_differences_between_a_model_and_its_manifest(declared: tuple[TensorSpec, ...], differences: list[str]) -> None:
    assert spec_differences(declared, SPECS) == differences


@given(graph=graphs())
def test_json_round_trip(graph: tuple[list[TensorSpec], dict[str, int]]) -> None:
    for spec in graph[0]:
        assert TensorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_has_the_manifests_keys() -> None:
    assert COORDS.to_json() == {"name": "point_coords", "dtype": "float32", "shape": ["prompts", "points", 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "a tensor's name is malformed | got: '' | expected: a non-empty string"),
        ({"name": 7}, "a tensor's name is malformed | got: 7 | expected: a non-empty string"),
        (
            {"dtype": "float64"},
            "tensor 'image' has an unknown dtype | got: 'float64' | "
            "expected: float32, float16, uint8, int32, int64, bool",
        ),
        (
            {"dtype": ["float32"]},
            "tensor 'image' has an unknown dtype | got: ['float32'] | "
            "expected: float32, float16, uint8, int32, int64, bool",
        ),
        *(
            (
                {"shape": shape},
                f"tensor 'image' has a malformed shape | got: {shape!r} | "
                "expected: a list of sizes (whole numbers from 0) and names of symbolic dimensions",
            )
            for shape in ("images", None, [1.0], [True], [-1], [""], [None], [[1]])
        ),
        (
            {"layout": "nhwc"},
            "a tensor's entry is malformed | got: 'name', 'dtype', 'shape', 'layout' | "
            "expected: an object with 'name', 'dtype' and 'shape'",
        ),
    ],
)
def test_malformed_json(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=f"^{re.escape(message)}$"):
        TensorSpec.from_json({"name": "image", "dtype": "uint8", "shape": ["images", 8, 8, 3], **change})


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.one_of(st.sampled_from(["name", "dtype", "shape"]), st.text()), inner)
    ),
    max_leaves=8,
)


@given(entry=JSON)
def test_any_json_is_a_spec_or_a_manifest_error(entry: object) -> None:
    with contextlib.suppress(ManifestError):
        assert TensorSpec.from_json(entry).to_json() == entry
