"""A folder of built plans: found by what they were built from and for, whole or absent, never mistaken for another's.

::

    plans/
    ├── image_encoder-<digest of the key>.plan    what TensorRT built
    ├── image_encoder-<digest of the key>.json    its key, SHA-256 and size; written last: a plan without one is no plan
    └── timing-<digest>.cache                     what the builder measured on one GPU, driver and TensorRT

A plan is code. The checksum beside it tells damage from wholeness; only a checksum kept elsewhere, in the bundle's
manifest, tells ours from a stranger's: `load(..., sha256=...)`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samrt_engines.errors import PlanError
from samrt_engines.files import locked, read_regular, remove_leftovers, write_whole
from samrt_engines.tensorrt.keys import Plan, PlanKey, explain_difference

FOLDER = "plans"
"""The cache's name inside a bundle."""

_REBUILD = "samrt build"
_GRAPH_NAME = r"[A-Za-z0-9_.]+"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What is written beside a plan."""

    graph: str
    key: PlanKey
    sha256: str
    size: int

    @classmethod
    def of(cls, graph: str, plan: Plan) -> PlanEntry:
        return cls(graph, plan.key, plan.sha256, len(plan.data))

    @property
    def file(self) -> str:
        return f"{plan_name(self.graph, self.key)}.plan"

    def to_json(self) -> dict[str, Any]:
        return {"graph": self.graph, "key": self.key.to_json(), "sha256": self.sha256, "size": self.size}

    @classmethod
    def from_json(cls, entry: object) -> PlanEntry:
        """Read the form that `to_json` writes, trusting nothing about it. Raises PlanError."""
        if not isinstance(entry, dict) or entry.keys() != {"graph", "key", "sha256", "size"}:
            raise PlanError("a plan's entry is malformed", got=repr(entry)[:200], expected="graph, key, sha256, size")
        graph, sha256, size = entry["graph"], entry["sha256"], entry["size"]
        named = isinstance(graph, str) and re.fullmatch(_GRAPH_NAME, graph)
        if not named or not isinstance(sha256, str) or type(size) is not int:
            raise PlanError("a plan's entry is malformed", got=repr(entry)[:200], expected="a name, a digest, a size")
        return cls(graph, PlanKey.from_json(entry["key"]), sha256, size)


def plan_name(graph: str, key: PlanKey) -> str:
    """The file name of a plan without its suffix."""
    assert re.fullmatch(_GRAPH_NAME, graph), f"a graph's name goes into a file name: {graph!r}"
    return f"{graph}-{key.digest}"


class PlanCache:
    """The plans of one folder. Any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, graph: str, key: PlanKey, *, sha256: str | None = None) -> Plan:
        """The plan for a key.

        sha256: what the plan's checksum has to be, from a place that a stranger cannot write

        Raises PlanError: no plan for this key (it names what the plans that are there were built for), a damaged plan,
        another checksum.
        """
        plan = self.find(graph, key, sha256=sha256)
        if plan is not None:
            return plan
        others = [entry for entry in self.entries() if entry.graph == graph]
        nearest = min((explain_difference(key, entry.key) for entry in others), key=len, default=None)
        raise PlanError(
            f"{graph}: there is no plan for this machine"
            if nearest is None
            else f"{graph}: the plan is stale or foreign",
            got=f"nothing in {self.folder}" if nearest is None else "; ".join(nearest),
            expected=f"{plan_name(graph, key)}.plan",
            fix=_REBUILD,
        )

    def find(self, graph: str, key: PlanKey, *, sha256: str | None = None) -> Plan | None:
        """As `load`, with None where there is no plan for the key. Raises PlanError for a damaged one."""
        entry = self._entry(self._path(graph, key, "json"))
        if entry is None:
            return None
        if entry.graph != graph or entry.key != key:
            raise PlanError(
                f"{graph}: the plan's description is another plan's",
                got="; ".join(explain_difference(key, entry.key)) or f"of graph {entry.graph}",
                fix=_REBUILD,
            )
        data = read_regular(self._path(graph, key, "plan"))
        if data is None:
            return None
        _check_bytes(graph, data, entry, sha256)
        return Plan(data, key)

    def save(self, graph: str, plan: Plan) -> PlanEntry:
        """Write a plan. Raises PlanError when that fails; then what was there before is whole or gone, never mixed."""
        entry = PlanEntry.of(graph, plan)
        with self._locked(graph, plan.key):
            self._write(entry, plan.data)
        return entry

    def get_or_build(
        self, graph: str, key: PlanKey, build: Callable[[], Plan], *, waiting: Callable[[], None] | None = None
    ) -> Plan:
        """The plan for a key, built where there is none; of several callers at once, one builds and the others wait.

        build: called when there is no plan, or a damaged one
        waiting: called once when another process is building it

        Returns the plan; `facts` are None when it was there. Raises PlanError, and what `build` raises.
        """
        with self._locked(graph, key, waiting):
            try:
                found = self.find(graph, key)
            except PlanError:
                found = None  # damaged: the new one takes its place
            if found is not None:
                return found
            plan = build()
            if plan.key != key:
                raise PlanError(f"{graph}: another plan was built", got="; ".join(explain_difference(key, plan.key)))
            self._write(PlanEntry.of(graph, plan), plan.data)
            return plan

    def entries(self) -> tuple[PlanEntry, ...]:
        """What is in the folder, by name. Descriptions that cannot be read are left out."""
        found = []
        for path in sorted(self.folder.glob("*-*.json")):
            try:
                entry = self._entry(path)
            except PlanError:
                continue
            if entry is not None and self._path(entry.graph, entry.key, "json") == path:
                found.append(entry)
        return tuple(found)

    def load_timing(self, key: PlanKey, driver: str) -> bytes | None:
        """What builds on this GPU, driver and TensorRT have measured so far; None when nothing has been."""
        return read_regular(self._timing_path(key, driver))

    def save_timing(self, key: PlanKey, driver: str, data: bytes) -> None:
        """Keep what a build measured. Raises PlanError when it cannot be written."""
        path = self._timing_path(key, driver)
        with locked(path.with_suffix(".lock")):
            remove_leftovers(path)
            write_whole(path, data)

    def _write(self, entry: PlanEntry, data: bytes) -> None:
        """While locked. The description goes first and comes last: a reader finds both of one build, or none."""
        plan, description = self._path(entry.graph, entry.key, "plan"), self._path(entry.graph, entry.key, "json")
        for path in (description, plan):
            remove_leftovers(path)
        description.unlink(missing_ok=True)
        write_whole(plan, data)
        write_whole(description, json.dumps(entry.to_json(), indent=1).encode() + b"\n")

    def _locked(self, graph: str, key: PlanKey, waiting: Callable[[], None] | None = None) -> Any:
        return locked(self._path(graph, key, "lock"), waiting=waiting)

    def _path(self, graph: str, key: PlanKey, suffix: str) -> Path:
        return self.folder / f"{plan_name(graph, key)}.{suffix}"

    def _timing_path(self, key: PlanKey, driver: str) -> Path:
        text = "|".join((key.flavour, key.version, key.gpu, key.capability, driver))
        return self.folder / f"timing-{hashlib.sha256(text.encode()).hexdigest()[:32]}.cache"

    def _entry(self, path: Path) -> PlanEntry | None:
        data = read_regular(path)
        if data is None:
            return None
        try:
            return PlanEntry.from_json(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path.name} is damaged", got=f"no JSON: {error}", fix=_REBUILD) from error


def _check_bytes(graph: str, data: bytes, entry: PlanEntry, sha256: str | None) -> None:
    if len(data) != entry.size:
        raise PlanError(
            f"{graph}: the plan is truncated or grown",
            got=f"{len(data):,} bytes",
            expected=f"{entry.size:,} bytes",
            fix=_REBUILD,
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise PlanError(f"{graph}: the plan was changed", got=f"SHA-256 {digest}", expected=entry.sha256, fix=_REBUILD)
    if sha256 is not None and digest != sha256:
        raise PlanError(
            f"{graph}: the plan is not the one that the manifest vouches for",
            got=f"SHA-256 {digest}",
            expected=sha256,
            fix=_REBUILD,
        )
