"""The manifest of a bundle: everything the runtime knows about a model, as frozen dataclasses.

`parse_manifest` turns the JSON of ``manifest.json`` into a `Manifest` and checks every value on the way; nothing after
it has to. Keys it does not know are let through where a later writer may add information (the top level, source, forms,
numbers) and refused where an unread key would change what the file means (tensors, profiles, files).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from samrt.numbers import (
    DepthNumbers,
    Numbers,
    ProposalNumbers,
    ReconstructionNumbers,
    parse_depth,
    parse_numbers,
    parse_proposals,
    parse_reconstruction,
)
from samrt.schema import Cursor, parse_json
from samrt_engines.errors import BundleError, ManifestError, UnsafePathError
from samrt_engines.tensors import DTYPES, TensorSpec

FORMAT = "samrt-bundle"
VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

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
    prompted: Numbers | None
    """Of a model that is prompted on pictures."""
    abilities: tuple[str, ...]
    selftest: FileRecord | None = None
    """See `samrt.selftest`."""
    plans: tuple[PlanRecord, ...] = ()
    reconstruction: ReconstructionNumbers | None = None
    """Of a model that makes 3D of a picture and a mask."""
    depth: DepthNumbers | None = None
    """Of a model that sees depth in a picture."""
    proposals: ProposalNumbers | None = None
    """Of a model that proposes all masks of a picture at once."""

    @property
    def numbers(self) -> Numbers:
        """Of a model that is prompted on pictures. Raises BundleError for any other."""
        if self.prompted is None:
            proposes = "samrt.ProposalModel(bundle), or on the command line: samrt everything IMAGE -b BUNDLE -o OUT"
            makes_3d = "samrt.Reconstructor(bundle), or on the command line: samrt reconstruct IMAGE MASK -b BUNDLE"
            raise BundleError(
                f"{self.source.model} takes no prompts on pictures",
                got=f"a bundle whose abilities are {', '.join(self.abilities)}",
                expected="a bundle of a segmentation model that is prompted",
                fix=makes_3d if self.proposals is None else proposes,
            )
        return self.prompted


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
    numbers = root.key("numbers")
    reconstruction = parse_reconstruction(numbers.key("reconstruction")) if numbers.has("reconstruction") else None
    depth = parse_depth(numbers.key("depth")) if numbers.has("depth") else None
    proposals = parse_proposals(numbers.key("proposals")) if numbers.has("proposals") else None
    abilities = tuple(cursor.text(r"[\w-]{1,50}") for cursor in root.key("abilities").items())
    return Manifest(
        version,
        _source(root.key("source")),
        graphs,
        None if (reconstruction or depth or proposals) and not numbers.has("image") else parse_numbers(numbers),
        abilities,
        _file(root.key("selftest")) if root.has("selftest") else None,
        tuple(_plan(item, graphs) for item in root.key("plans").items(0, 4096)) if root.has("plans") else (),
        reconstruction,
        depth,
        proposals,
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
