"""Does every graph build? Models at full size, fp16 and bf16, through TensorRT for RTX on a machine with no GPU.

    python benchmarks/rtx_builds.py --out benchmarks/results/rtx_builds.json [--models mobile-sam sam-vit-b]

All models that are prompted on pictures, unless some are named. Rows that the file has already are kept and not built again.

Live random weights: what builds does not depend on their values. The precision of image encoders is written with nothing
kept in fp32 but what has no narrow form, which is what the export chooses for SAM 2.1 tiny, and so is that of memory
attention; the others get the islands that the export chooses. Profiles are the manifest's, dynamic. `sam_family.py --precisions
fp16` builds what an export really writes, which takes far longer: there every node that is kept in fp32 is searched for.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from samrt.machine import cpu_name, usable_cores
from samrt_engines import BuildError
from samrt_engines.tensorrt import BuildOptions, build_plan, load_tensorrt
from samrt_export.external import store
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.islands import choose_islands
from samrt_export.precision.narrow import choose
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec, families, find
from samrt_export.source import load_weights


def main() -> None:
    """Build all, and write as it goes."""
    options = parse_arguments()
    rtx = load_tensorrt("rtx")
    document: dict[str, Any] = {
        "machine": {"cpu": cpu_name(), "cores": usable_cores(), "platform": platform.platform()},
        "tensorrt": str(rtx),
        "rows": json.loads(options.out.read_text())["rows"] if options.out is not None and options.out.exists() else [],
    }
    for model in options.models or prompted_models():
        known = {key(row) for row in document["rows"]}
        family = find(model)
        module = load_weights(family, model, random_seed=0).module
        for spec in family.graphs(module, model):
            asked = options.graphs is None or spec.name in options.graphs
            missing = [pair for pair in wanted(options) if asked and (model, spec.name, *pair) not in known]
            for row in rows(model, spec, missing) if missing else ():
                document["rows"].append(row)
                print(*(f"{value}" for value in row.values()), flush=True)
                if options.out is not None:
                    options.out.write_text(json.dumps(document, indent=1) + "\n")


def prompted_models() -> list[str]:
    """Every model that answers points, but for toys and networks that only a user's file holds."""
    return [
        model
        for family in families().values()
        if family.open_file is None
        for model in family.models
        if "points" in family.abilities(model) and not model.endswith("-toy")
    ]


def wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(precision, compute capability) of every build of a graph."""
    return [(precision, sm) for precision in options.precisions for sm in options.sm]


def key(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """What a row is about."""
    return row["model"], row["graph"], row["precision"], row["sm"]


def rows(model: str, spec: GraphSpec, pairs: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """One row for each precision and compute capability of a graph."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fp32 = onnx_from_spec(spec, choose(spec, "").module, folder / "fp32.data")
        for precision in dict.fromkeys(precision for precision, _ in pairs):
            content = store(typed_form(fp32, spec, precision), folder / f"{precision}.onnx")
            files = folder.glob(f"{precision}.*")  # of a graph too large to be one file
            size = len(content) if isinstance(content, bytes) else sum(file.stat().st_size for file in files)
            for sm in (sm for one, sm in pairs if one == precision):
                row = {"model": model, "graph": spec.name, "precision": precision, "sm": sm, "onnx_bytes": size}
                yield row | build(content, spec, precision, sm)


def build(content: bytes | Path, spec: GraphSpec, precision: str, sm: str) -> dict[str, Any]:
    """One plan, thrown away."""
    started = time.perf_counter()
    try:
        plan = build_plan(
            content,
            profiles=dict(spec.profiles),
            precision=precision,
            options=BuildOptions(flavour="rtx", sm=sm),
            onnx_sha256="0" * 64,  # a plan's key has it; nobody keeps this one
            name=spec.name,
        )
    except BuildError as error:
        return {"failed": str(error)}
    assert plan.facts is not None
    return {
        "plan_bytes": len(plan.data),
        "parse_s": round(plan.facts.parse_seconds, 3),
        "build_s": round(plan.facts.build_seconds, 2),
        "all_s": round(time.perf_counter() - started, 2),
        "layers": plan.facts.layers,
        "attentions": plan.facts.attentions,
        "may_split": plan.facts.decomposable,
    }


def typed_form(fp32: onnx.ModelProto, spec: GraphSpec, precision: str) -> onnx.ModelProto:
    """See the top of this file."""
    if precision == "fp32":
        return fp32
    if spec.name in ("image_encoder", "memory_attention"):
        return typed_graph(fp32, precision, {})
    return choose_islands(fp32, spec, precision, reference_runs(spec)).typed


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--graphs", nargs="+", help="only these; all SAM-like models of a family have the same decoder")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"], choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--sm", nargs="+", default=["86", "89"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
