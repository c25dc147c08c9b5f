import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samrt import BundleError, ManifestError, UnsafePathError
from samrt.graphs import check_graphs, choose_form, largest
from samrt.manifest import Profile, parse_manifest, read_manifest
from samrt.numbers import AutomaticNumbers, ProposalNumbers
from samrt_engines.errors import BackendError
from samrt_engines.tensors import TensorSpec


def change(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set, or with ... delete, the value at "graphs.image_encoder.forms.0.sha256"."""
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    target: Any = document
    for part in parents:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return document


def test_everything_is_read(manifest: dict[str, Any]) -> None:
    parsed = parse_manifest(manifest)
    assert parsed.source.model == "redness"
    assert parsed.source.versions == {"torch": "2.13.0", "onnx": "1.23.2"}
    assert parsed.source.seed == 0
    assert parsed.abilities == ("points", "boxes", "masks", "multimask")
    encoder = parsed.graphs["image_encoder"]
    assert encoder.inputs == (TensorSpec("image", "float32", ("images", 32, 32, 3)),)
    assert encoder.profiles == {"images": Profile(1, 1, 2)}
    assert encoder.ranges == {"images": (1, 2)}
    assert encoder.forms[0].parity == {"out": {"max_abs": 1e-6, "relative_l2": 1e-7, "cosine": 1.0}}
    assert parsed.numbers.image.size_hw == (32, 32)
    assert parsed.numbers.prompts.box_bottom_right == 3
    assert parsed.numbers.masks.multi == (1, 2, 3)
    assert parsed.numbers.masks.stability is not None
    assert parsed.numbers.masks.stability.delta == 0.05
    assert read_manifest(json.dumps(manifest).encode()) == parsed
    check_graphs(parsed)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "manifest.json: format | got: 'other' | expected: 'samrt-bundle'"),
        ("format", ..., "manifest.json: format | got: nothing | expected: 'samrt-bundle'"),
        ("version", "1", "manifest.json: version | got: '1' | expected: a whole number"),
        ("version", True, "manifest.json: version | got: True"),
        ("graphs", [], "manifest.json: graphs | got: an array of 0 elements | expected: an object"),
        ("graphs", {}, "manifest.json: graphs | got: an object with 0 keys | expected: at least one graph"),
        (
            "graphs.image_encoder.forms.0.sha256",
            "12",
            "graphs.image_encoder.forms[0].sha256 | got: '12' | expected: a text that matches [0-9a-f]{64}",
        ),
        ("graphs.image_encoder.forms.0.size", -1, "graphs.image_encoder.forms[0].size | got: -1"),
        ("graphs.image_encoder.forms", [], "graphs.image_encoder.forms | got: an array of 0 elements"),
        ("graphs.image_encoder.forms.0.data", [{"file": "a"}], "graphs.image_encoder.forms[0].data[0].sha256"),
        ("graphs.mask_decoder.inputs.1.dtype", "float64", "graphs.mask_decoder.inputs[1].dtype | got: 'float64'"),
        ("graphs.mask_decoder.inputs.1.shape", ["p", 0], "graphs.mask_decoder.inputs[1].shape[1] | got: 0"),
        ("graphs.mask_decoder.inputs.1.name", "image_embed", "expected: a name not used before"),
        ("graphs.mask_decoder.inputs.1.layout", "nchw", "graphs.mask_decoder.inputs[1].layout | got: 'nchw'"),
        ("graphs.mask_decoder.profiles.images.max", 0, "graphs.mask_decoder.profiles.images.max | got: 0"),
        ("graphs.mask_decoder.profiles.images.opt", 9, "graphs.mask_decoder.profiles.images.opt | got: 9"),
        ("graphs.mask_decoder.profiles.frames", {"min": 1}, "graphs.mask_decoder.profiles.frames.max"),
        (
            "graphs.mask_decoder.profiles.frames",
            {"min": 1, "opt": 1, "max": 1},
            "profiles.frames | got: an object with 3 keys | expected: a symbol of the tensors: images, points, prompts",
        ),
        ("numbers.image.size_hw", [32], "numbers.image.size_hw | got: an array of 1 elements"),
        ("numbers.image.mean", [123.7, 116.3, 103.5], "numbers.image.mean[0] | got: 123.7 | expected: a number from 0"),
        ("numbers.image.std", [0, 1, 1], "numbers.image.std[0] | got: 0"),
        ("numbers.image.resize", "crop", "numbers.image.resize | got: 'crop' | expected: 'stretch' or 'longest_side'"),
        ("numbers.image.value_range", [0, 1], "numbers.image.value_range | got: an array of 2 elements | expected: [0"),
        ("numbers.image.antialias", 1, "numbers.image.antialias | got: 1 | expected: true or false"),
        ("numbers.prompts.labels.padding", ..., "numbers.prompts.labels.padding | got: nothing"),
        ("numbers.prompts.padding_point", "never", "expected: 'always' or 'without_box' or 'fill'"),
        ("numbers.image.resize_dtype", "uint16", "numbers.image.resize_dtype | got: 'uint16' | expected: 'float32' or"),
        ("numbers.prompts.labels.positive", None, "numbers.prompts.labels.positive | got: None"),
        (
            "numbers.automatic",
            {"candidates": "some"},
            "numbers.automatic.candidates | got: 'some' | expected: 'all' or",
        ),
        ("numbers.proposals", {"size_hw": [64]}, "numbers.proposals.size_hw | got: an array of 1 elements"),
        ("numbers.masks.threshold", "0", "numbers.masks.threshold | got: '0' | expected: a number"),
        ("numbers.masks.stability", ..., "numbers.masks.stability | got: nothing"),
        ("numbers.masks.single", [0, 1], "numbers.masks.stability | got:"),
        ("numbers.masks.multi", [], "numbers.masks.multi | got: an array of 0 elements"),
        ("source.licence", ..., "source.licence | got: nothing"),
        ("abilities.0", 7, "abilities[0] | got: 7 | expected: a text"),
    ],
)
def test_messages_name_the_place(manifest: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(change(manifest, path, value))
    assert message in str(caught.value)
    assert caught.value.fix


def test_a_model_without_some_prompts(manifest: dict[str, Any]) -> None:
    for path, value in (("labels.negative", None), ("mask_size_hw", None), ("padding_point", "fill")):
        manifest = change(manifest, f"numbers.prompts.{path}", value)
    prompts = parse_manifest(change(manifest, "numbers.image.resize_dtype", "uint8")).numbers.prompts
    assert (prompts.negative, prompts.mask_size_hw, prompts.padding_point) == (None, None, "fill")


def test_thresholds_of_automatic_masks(manifest: dict[str, Any]) -> None:
    assert parse_manifest(manifest).numbers.automatic == AutomaticNumbers(0.88, 0.95, "all")
    own = {"pred_iou_thresh": 0.8, "stability_score_thresh": 0.9, "candidates": "best"}
    assert parse_manifest(change(manifest, "numbers.automatic", own)).numbers.automatic == AutomaticNumbers(
        0.8, 0.9, "best"
    )


def test_a_model_that_proposes_masks_takes_no_prompts(manifest: dict[str, Any]) -> None:
    numbers = {"size_hw": [1024, 1024], "pad_value": 114, "confidence": 0.4, "iou": 0.9, "max_detections": 300}
    manifest["numbers"] = {"proposals": numbers | {"full_frame_iou": 0.9, "full_frame_edge_px": 20}}
    parsed = parse_manifest(manifest)
    assert parsed.proposals == ProposalNumbers((1024, 1024), 114, 0.4, 0.9, 300, 0.9, 20)
    with pytest.raises(BundleError, match=r"takes no prompts on pictures .* fix: samrt.ProposalModel\(bundle\)"):
        _ = parsed.numbers


@pytest.mark.parametrize(("version", "fix"), [(2, "pip install --upgrade samrt"), (0, "export the model again")])
def test_an_unknown_version_names_both(manifest: dict[str, Any], version: int, fix: str) -> None:
    with pytest.raises(ManifestError, match=rf"got: version {version} \| expected: version 1 \| fix: {fix}"):
        parse_manifest(change(manifest, "version", version))


@pytest.mark.parametrize("path", ["source.builder", "numbers.sound", "graphs.image_encoder.forms.0.notes", "note"])
def test_information_of_later_writers_is_let_through(manifest: dict[str, Any], path: str) -> None:
    parse_manifest(change(manifest, path, {"any": ["thing"]}))


@pytest.mark.parametrize(
    "file",
    ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "", "C:\\x", "a\\..\\b", "a\0b", "a\nb", "c:x", "a" * 300],
)
def test_paths_that_leave_the_bundle(manifest: dict[str, Any], file: str) -> None:
    with pytest.raises(UnsafePathError, match=r"graphs.image_encoder.forms\[0\].file"):
        parse_manifest(change(manifest, "graphs.image_encoder.forms.0.file", file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected: JSON in UTF-8"),
        (b'{"format": "samrt-bundle", ', "expected: JSON in UTF-8"),
        (b"\xff\xfe{}", "expected: JSON in UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b'{"version": NaN}', "the constant NaN"),
        (b'{"version": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"version": 1, "version": 1}', "the key 'version' stands twice"),
        (b"null", "manifest.json | got: None | expected: an object"),
    ],
)
def test_json_that_is_none(text: bytes, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(text)
    assert message in str(caught.value)


def test_numbers_too_large_for_a_float(manifest: dict[str, Any]) -> None:
    for huge in (10**400, float("inf")):
        with pytest.raises(ManifestError, match="expected: a finite number"):
            parse_manifest(change(manifest, "numbers.masks.threshold", huge))


def test_a_huge_manifest_is_not_parsed() -> None:
    with pytest.raises(ManifestError, match="too large"):
        read_manifest(b" " * (4 * 1024 * 1024 + 1))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("graphs.mask_decoder", ..., "no mask_decoder among image_encoder, prompt_encoder"),
        ("graphs.image_encoder.inputs.0.shape.1", 64, "expected: 'image': float32 or uint8 (any, 32, 32, 3)"),
        ("graphs.prompt_encoder.inputs.1.dtype", "int64", "expected: 'point_labels': int32 (any, any)"),
        ("graphs.prompt_encoder.inputs.0.name", "coords", "expected: 'point_coords': float32 (any, any, 2)"),
        ("graphs.mask_decoder.inputs.0.name", "embedding", "graphs.mask_decoder.inputs | got: embedding"),
        ("graphs.mask_decoder.outputs.0.shape.1", 3, "the same 4 or more candidates in both"),
        ("graphs.mask_decoder.outputs.2.shape.1", 3, "expected: 'object_score_logits': float32 (any, 1)"),
        ("graphs.mask_decoder.outputs.2.name", "low_res_hq_masks", "'low_res_hq_masks': float32 (any, 1, 16, 16)"),
        ("numbers.masks.multi", [1, 2, 4], "the same 5 or more candidates in both"),
        ("numbers.masks.size_hw", [32, 32], "expected: 'low_res_masks': float32 (any, any, 32, 32)"),
    ],
)
def test_graphs_must_fit_each_other(manifest: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check_graphs(parse_manifest(change(manifest, path, value)))
    assert message in str(caught.value)


def test_the_form_for_a_target(manifest: dict[str, Any]) -> None:
    form = manifest["graphs"]["image_encoder"]["forms"][0]
    forms = [{**form, "file": "trt.onnx", "targets": ["tensorrt"]}, {**form, "targets": ["onnxruntime-cpu"]}]
    graph = parse_manifest(change(manifest, "graphs.image_encoder.forms", forms)).graphs["image_encoder"]
    assert choose_form(graph, "g", "onnxruntime", "cpu").file.file == "image_encoder.onnx"
    assert choose_form(graph, "g", "tensorrt", "auto").file.file == "trt.onnx"
    with pytest.raises(
        BackendError, match=r"no form of this graph for onnxruntime-cuda \| got: forms for onnxruntime-cpu"
    ):
        choose_form(graph, "g", "auto", "cuda:1")


def test_the_largest_sizes(manifest: dict[str, Any]) -> None:
    graph = parse_manifest(manifest).graphs["image_encoder"]
    assert (largest(graph, "image", 0), largest(graph, "image", 1)) == (2, 32)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: str = "") -> list[str]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [
        place for key, child in children for place in places(child, f"{path}.{key}" if path else str(key))
    ]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_one_clear_error(data: st.DataObject, sound: dict[str, Any]) -> None:
    document = copy.deepcopy(sound)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(document)))
        change(document, place, data.draw(st.just(...) | json_values))
    with contextlib.suppress(BundleError):
        check_graphs(parse_manifest(document))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damaged_text_is_one_clear_error(data: st.DataObject, sound: dict[str, Any]) -> None:
    text = bytearray(json.dumps(sound).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        check_graphs(read_manifest(bytes(text[: data.draw(st.integers(0, len(text)) | st.just(len(text)))])))


@pytest.fixture(scope="module")
def sound(models: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, write_bundle: Any) -> dict[str, Any]:
    folder = write_bundle(tmp_path_factory.mktemp("sound"))
    return json.loads((folder / "manifest.json").read_text())
