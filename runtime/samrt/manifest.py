"""The manifest of a bundle: everything the runtime knows about a model, as frozen dataclasses.

`parse_manifest` turns the JSON of ``manifest.json`` into a `Manifest` and checks every value on the way; nothing after
it has to. Keys it does not know are let through where a later writer may add information (the top level, source, forms,
numbers) and refused where an unread key would change what the file means (tensors, profiles, files).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from samrt.schema import Cursor, parse_json
from samrt_engines.errors import ManifestError, UnsafePathError
from samrt_engines.tensors import DTYPES, TensorSpec

FORMAT = "samrt-bundle"
VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_LABELS = ("negative", "positive", "box_top_left", "box_bottom_right", "padding")
_MAX_BYTES = 1 << 44
_MAX_SIZE = 1 << 31


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of the bundle: its path inside the folder, SHA-256 in hexadecimal, and size in bytes."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class KeptFp32:
    """Operators that compute in fp32 in a narrow form, and why."""

    op: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Form:
    """One stored form of a graph: a model file, its external data, for which targets (none named: any)."""

    file: FileRecord
    data: tuple[FileRecord, ...]
    precision: str
    targets: tuple[str, ...]
    opset: int
    parity: Mapping[str, Mapping[str, float]]  # output -> measure -> value, against PyTorch at export
    flops: float | None = None  # floating-point operations of one run at the profiles' opt sizes
    kept_fp32: tuple[KeptFp32, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes a symbolic dimension may take, and the one to be fastest at."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph: its tensors, the ranges of their symbolic dimensions, and the forms it is stored in."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, Profile]
    forms: tuple[Form, ...]

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Symbol -> (smallest, largest) size."""
        return {symbol: (profile.min, profile.max) for symbol, profile in self.profiles.items()}


@dataclass(frozen=True, slots=True)
class Source:
    """Where the model came from."""

    model: str
    checkpoint_kind: str
    checkpoint_sha256: str | None
    seed: int | None
    licence: str
    licence_note: str
    samrt: str
    opset: int | None
    versions: Mapping[str, str]  # tool -> version it was exported with


@dataclass(frozen=True, slots=True)
class ImageNumbers:
    """How a picture becomes the image encoder's input. mean and std are on the 0..1 scale, applied inside the graph."""

    size_hw: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["stretch", "longest_side"]
    antialias: bool


@dataclass(frozen=True, slots=True)
class PromptNumbers:
    """What the prompt encoder understands: the label of each kind of point, the padding rule, the limits."""

    negative: int
    positive: int
    box_top_left: int
    box_bottom_right: int
    padding: int
    padding_point: Literal["always", "without_box"]
    max_points: int  # in one prompt, the two corners of a box counted, the padding point not
    mask_size_hw: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stability:
    """When a single mask gives way to the best of several: see `samrt.masks.choose_candidates`."""

    delta: float
    threshold: float


@dataclass(frozen=True, slots=True)
class MaskNumbers:
    """What the mask decoder returns: which candidates answer a single and a multimask request, and their threshold."""

    threshold: float
    logits_clamp: float
    size_hw: tuple[int, int]
    single: tuple[int, ...]
    multi: tuple[int, ...]
    stability: Stability | None


@dataclass(frozen=True, slots=True)
class VideoNumbers:
    """How a model's memory of a video is kept: what `samrt.video` follows."""

    max_conditioning_frames: int | None  # that one frame attends to; None: all
    recent_frames: int  # not prompted ones, the nearest
    temporal_stride: int  # between recent frames
    conditioning_time: int  # memory_time of conditioning frames; recent ones count from 0, the frame before
    max_object_pointers: int
    past_pointers_only: bool  # of conditioning frames: none from the future
    signed_pointer_distance: bool  # else its absolute value
    multimask_points: tuple[int, int]  # least and most points of a prompt that get the best of several masks
    empty_prompt_points: int  # padding points that stand for "no prompt on this frame", the usual one apart
    absent_logit: float  # of masks where the object score says that there is none
    fill_hole_area: int  # largest holes that are filled in what is shown, in low-res pixels


@dataclass(frozen=True, slots=True)
class Numbers:
    """The constants of a model."""

    image: ImageNumbers
    prompts: PromptNumbers
    masks: MaskNumbers
    video: VideoNumbers | None = None


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """An engine that ``samrt build`` made of a graph on this or another machine. A plan is code: no record, no loading."""

    graph: str
    file: FileRecord
    key: Mapping[str, Any]
    """What it was built from and for: `samrt_engines.tensorrt.PlanKey.from_json` reads it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest."""

    version: int
    source: Source
    graphs: Mapping[str, Graph]
    numbers: Numbers
    abilities: tuple[str, ...]
    selftest: FileRecord | None = None
    """See `samrt.selftest`."""
    plans: tuple[PlanRecord, ...] = ()


def read_manifest(text: bytes) -> Manifest:
    """Parse and check the content of a ``manifest.json``. Raises ManifestError, UnsafePathError."""
    if len(text) > MAX_MANIFEST_BYTES:
        raise ManifestError("manifest.json is too large", got=f"{len(text)} bytes", expected=f"{MAX_MANIFEST_BYTES}")
    return parse_manifest(parse_json(text, MANIFEST_NAME))


def parse_manifest(document: Any) -> Manifest:
    """Check a manifest that is already parsed JSON, as an exporter does before writing it.

    Raises ManifestError, which names the place (``graphs.image_encoder.forms[0].sha256``), what was found and what was
    expected; UnsafePathError for a file path that leaves the bundle.
    """
    root = Cursor(document, "")
    root.key("format").text(choices=(FORMAT,))
    version = root.key("version").integer(0, _MAX_SIZE)
    if version != VERSION:
        raise ManifestError(
            "manifest.json: this bundle's version is not supported",
            got=f"version {version}",
            expected=f"version {VERSION}",
            fix="pip install --upgrade samrt" if version > VERSION else "export the model again with this samrt",
        )
    graphs = {name: _graph(cursor) for name, cursor in root.key("graphs").children().items()}
    if not graphs:
        root.key("graphs").fail("at least one graph")
    abilities = tuple(cursor.text(r"[\w-]{1,50}") for cursor in root.key("abilities").items())
    return Manifest(
        version,
        _source(root.key("source")),
        graphs,
        _numbers(root.key("numbers")),
        abilities,
        _file(root.key("selftest")) if root.has("selftest") else None,
        tuple(_plan(item, graphs) for item in root.key("plans").items(0, 4096)) if root.has("plans") else (),
    )


def _source(cursor: Cursor) -> Source:
    checkpoint, licence = cursor.key("checkpoint"), cursor.key("licence")
    sha256, seed, opset = checkpoint.key("sha256"), checkpoint.key("seed"), cursor.key("opset")
    known = ("model", "checkpoint", "licence", "samrt", "opset")
    versions = {key: child.value for key, child in cursor.children().items() if key not in known}
    return Source(
        model=cursor.key("model").text(r"[\w.+-]{1,100}"),
        checkpoint_kind=checkpoint.key("kind").text(r"[\w-]{1,50}"),
        checkpoint_sha256=None if sha256.is_null() else sha256.text(r"[0-9a-f]{64}"),
        seed=None if seed.is_null() else seed.integer(-(1 << 63), 1 << 64),
        licence=licence.key("name").text(),
        licence_note=licence.key("note").text(most=100_000) if licence.has("note") else "",
        samrt=cursor.key("samrt").text(),
        opset=None if opset.is_null() else opset.integer(1, 1000),
        versions={key: value for key, value in versions.items() if isinstance(value, str)},
    )


def _graph(cursor: Cursor) -> Graph:
    inputs, outputs = _tensors(cursor.key("inputs")), _tensors(cursor.key("outputs"))
    symbols = {size for spec in (*inputs, *outputs) for size in spec.shape if isinstance(size, str)}
    profiles = {symbol: _profile(child) for symbol, child in cursor.key("profiles").children().items()}
    for symbol in profiles:
        if symbol not in symbols:
            cursor.key("profiles").key(symbol).fail(f"a symbol of the tensors: {', '.join(sorted(symbols)) or 'none'}")
    return Graph(inputs, outputs, profiles, tuple(_form(item) for item in cursor.key("forms").items(1, 64)))


def _tensors(cursor: Cursor) -> tuple[TensorSpec, ...]:
    specs: dict[str, TensorSpec] = {}
    for item in cursor.items(1, 256):
        item.keys(("name", "dtype", "shape"))
        name = item.key("name").text(r"[\w./:-]{1,200}")
        if name in specs:
            item.key("name").fail("a name not used before")
        shape = tuple(
            size.text(r"[A-Za-z_]\w{0,99}") if isinstance(size.value, str) else size.integer(1, _MAX_SIZE)
            for size in item.key("shape").items(0, 16)
        )
        specs[name] = TensorSpec(name, item.key("dtype").text(choices=DTYPES), shape)
    return tuple(specs.values())


def _profile(cursor: Cursor) -> Profile:
    cursor.keys(("min", "opt", "max"))
    least = cursor.key("min").integer(0, _MAX_SIZE)
    most = cursor.key("max").integer(max(least, 1), _MAX_SIZE)
    return Profile(least, cursor.key("opt").integer(least, most), most)


def _form(cursor: Cursor) -> Form:
    parity = {
        output: {measure: value.number() for measure, value in child.children().items()}
        for output, child in (cursor.key("parity").children() if cursor.has("parity") else {}).items()
    }
    data = cursor.key("data").items() if cursor.has("data") else []
    for item in data:
        item.keys(("file", "sha256", "size"))
    return Form(
        file=_file(cursor),
        data=tuple(_file(item) for item in data),
        precision=cursor.key("precision").text(r"[\w-]{1,50}"),
        targets=tuple(item.text(r"[\w-]{1,100}") for item in cursor.key("targets").items()),
        opset=cursor.key("opset").integer(1, 1000),
        parity=parity,
        flops=cursor.key("flops").number(0.0) if cursor.has("flops") else None,
        kept_fp32=tuple(map(_kept, cursor.key("kept_fp32").items())) if cursor.has("kept_fp32") else (),
    )


def _kept(cursor: Cursor) -> KeptFp32:
    return KeptFp32(
        op=cursor.key("op").text(r"\w{1,100}"),
        reason=cursor.key("reason").text(),
        count=cursor.key("count").integer(0, _MAX_SIZE),
    )


def _plan(cursor: Cursor, graphs: Mapping[str, Graph]) -> PlanRecord:
    cursor.keys(("graph", "file", "sha256", "size", "key"))
    key = {name: child.value for name, child in cursor.key("key").children().items()}
    return PlanRecord(cursor.key("graph").text(choices=tuple(graphs)), _file(cursor), key)


def _file(cursor: Cursor) -> FileRecord:
    file = cursor.key("file")
    path = file.text(most=500)
    check_inner_path(path, f"manifest.json: {file.where}")
    return FileRecord(path, cursor.key("sha256").text(r"[0-9a-f]{64}"), cursor.key("size").integer(0, _MAX_BYTES))


def check_inner_path(path: str, place: str) -> None:
    """Accept only a plain relative path downwards: ``encoder.onnx``, ``plans/encoder.plan``. Raises UnsafePathError."""
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    if not plain or re.search(r"[\\:\x00-\x1f\x7f]", path) or PurePosixPath(path).is_absolute():
        raise UnsafePathError(
            place,
            got=ascii(path),
            expected="a path inside the bundle folder, relative, with no '..'",
            fix="do not use this bundle; a bundle that samrt wrote never holds such a path",
        )


def _numbers(cursor: Cursor) -> Numbers:
    video = _video(cursor.key("video")) if cursor.has("video") else None
    return Numbers(_image(cursor.key("image")), _prompts(cursor.key("prompts")), _masks(cursor.key("masks")), video)


def _image(cursor: Cursor) -> ImageNumbers:
    low, high = (item.number() for item in cursor.key("value_range").items(2, 2))
    if (low, high) != (0.0, 255.0):
        cursor.key("value_range").fail("[0, 255]")
    resize: Literal["stretch", "longest_side"] = "stretch"
    if cursor.key("resize").text(choices=("stretch", "longest_side")) == "longest_side":
        resize = "longest_side"
    size_hw = _size_hw(cursor.key("size_hw"), 16384)
    if resize == "longest_side" and size_hw[0] != size_hw[1]:
        cursor.key("size_hw").fail("a square, which resize longest_side pads to")
    red, green, blue = (item.number(0.0, 1.0) for item in cursor.key("mean").items(3, 3))
    std_red, std_green, std_blue = (item.number(1e-6, 10.0) for item in cursor.key("std").items(3, 3))
    mean, std = (red, green, blue), (std_red, std_green, std_blue)
    return ImageNumbers(size_hw, mean, std, resize, cursor.key("antialias").flag())


def _prompts(cursor: Cursor) -> PromptNumbers:
    labels = cursor.key("labels")
    labels.keys(_LABELS)
    padding_point: Literal["always", "without_box"] = "always"
    if cursor.key("padding_point").text(choices=("always", "without_box")) == "without_box":
        padding_point = "without_box"
    return PromptNumbers(
        **{name: labels.key(name).integer(-1000, 1000) for name in _LABELS},
        padding_point=padding_point,
        max_points=cursor.key("max_points").integer(1, 1 << 20),
        mask_size_hw=_size_hw(cursor.key("mask_size_hw"), 16384),
    )


def _masks(cursor: Cursor) -> MaskNumbers:
    rule = cursor.key("stability")
    stability = None
    if not rule.is_null():
        stability = Stability(rule.key("delta").number(0.0), rule.key("threshold").number(0.0, 1.0))
    return MaskNumbers(
        threshold=cursor.key("threshold").number(),
        logits_clamp=cursor.key("logits_clamp").number(0.0, math.inf),
        size_hw=_size_hw(cursor.key("size_hw"), 16384),
        single=_candidates(cursor.key("single")),
        multi=_candidates(cursor.key("multi")),
        stability=stability,
    )


def _video(cursor: Cursor) -> VideoNumbers:
    most = cursor.key("max_conditioning_frames")
    fewest, highest = (item.integer(0, 1 << 20) for item in cursor.key("multimask_points").items(2, 2))
    return VideoNumbers(
        max_conditioning_frames=None if most.is_null() else most.integer(1, 1 << 20),
        recent_frames=cursor.key("recent_frames").integer(0, 1000),
        temporal_stride=cursor.key("temporal_stride").integer(1, 1000),
        conditioning_time=cursor.key("conditioning_time").integer(0, 1000),
        max_object_pointers=cursor.key("max_object_pointers").integer(1, 1000),
        past_pointers_only=cursor.key("past_pointers_only").flag(),
        signed_pointer_distance=cursor.key("signed_pointer_distance").flag(),
        multimask_points=(fewest, highest),
        empty_prompt_points=cursor.key("empty_prompt_points").integer(0, 1000),
        absent_logit=cursor.key("absent_logit").number(most=0.0),
        fill_hole_area=cursor.key("fill_hole_area").integer(0, 1 << 20),
    )


def _candidates(cursor: Cursor) -> tuple[int, ...]:
    return tuple(item.integer(0, 1000) for item in cursor.items(1, 1000))


def _size_hw(cursor: Cursor, most: int) -> tuple[int, int]:
    height, width = (item.integer(1, most) for item in cursor.items(2, 2))
    return height, width
