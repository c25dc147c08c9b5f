"""Does every graph build? All SAM 2 variants at full size, fp16 and bf16, through TensorRT for RTX on a machine with no GPU.

    python benchmarks/rtx_builds.py --out benchmarks/results/rtx_builds.json

Live random weights: what builds does not depend on their values. The precision of image encoders is written with nothing
kept in fp32 but what has no narrow form, which is what the export chooses for SAM 2.1 tiny, and so is that of memory
attention; the others get the islands that the export chooses. Profiles are the manifest's, dynamic.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from samrt.machine import cpu_name, usable_cores
from samrt_engines import BuildError
from samrt_engines.tensorrt import BuildOptions, build_plan, load_tensorrt
from samrt_export.families.sam2 import CONFIGS
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import reference_runs
from samrt_export.precision.islands import choose_islands
from samrt_export.precision.typed import typed_graph
from samrt_export.registry import GraphSpec, find
from samrt_export.source import load_weights


def main() -> None:
    """Build all, and write as it goes."""
    options = parse_arguments()
    rtx = load_tensorrt("rtx")
    document: dict[str, Any] = {
        "machine": {"cpu": cpu_name(), "cores": usable_cores(), "platform": platform.platform()},
        "tensorrt": str(rtx),
        "rows": [],
    }
    for model in options.models:
        family = find(model)
        module = load_weights(family, model, random_seed=0).module
        for spec in family.graphs(module, model):
            for row in rows(model, spec, options):
                document["rows"].append(row)
                print(*(f"{value}" for value in row.values()), flush=True)
                if options.out is not None:
                    options.out.write_text(json.dumps(document, indent=1) + "\n")


def rows(model: str, spec: GraphSpec, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each precision and compute capability of a graph."""
    (general,) = (form for form in spec.forms if not form.targets)
    fp32 = onnx_from_spec(spec, general.module)
    for precision in options.precisions:
        typed = typed_form(fp32, spec, precision)
        content = typed.SerializeToString()
        for sm in options.sm:
            row = {"model": model, "graph": spec.name, "precision": precision, "sm": sm, "onnx_bytes": len(content)}
            started = time.perf_counter()
            try:
                plan = build_plan(
                    content,
                    profiles=dict(spec.profiles),
                    precision=precision,
                    options=BuildOptions(flavour="rtx", sm=sm),
                    name=spec.name,
                )
            except BuildError as error:
                yield row | {"failed": str(error)}
                continue
            assert plan.facts is not None
            yield row | {
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
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16"], choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--sm", nargs="+", default=["86", "89"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
