"""TensorRT: plans built from ONNX files, kept, and run. Importing this loads neither TensorRT nor CUDA.

For example, on a machine with no GPU::

    plan = build_plan(
        Path("mask_decoder.onnx"),
        profiles={"images": (1, 1, 1), "prompts": (1, 1, 64), "points": (0, 2, 65)},
        precision="fp16",
        options=BuildOptions(flavour="rtx", sm="86"),
    )
    PlanCache(Path("plans")).save("mask_decoder", plan)
"""

from samrt_engines.tensorrt.arrays import CudaArray
from samrt_engines.tensorrt.build import build_plan, plan_key
from samrt_engines.tensorrt.cache import PlanCache, PlanEntry
from samrt_engines.tensorrt.cuda import Cuda, Device, open_cuda
from samrt_engines.tensorrt.executor import ExecutorOptions, TensorRTExecutor
from samrt_engines.tensorrt.keys import BuildFacts, BuildOptions, Plan, PlanKey, explain_difference
from samrt_engines.tensorrt.libraries import FLAVOURS, Flavour, TensorRT, load_tensorrt
from samrt_engines.tensorrt.memory import Scratch
from samrt_engines.tensorrt.messages import BuildStep

__all__ = [
    "FLAVOURS",
    "BuildFacts",
    "BuildOptions",
    "BuildStep",
    "Cuda",
    "CudaArray",
    "Device",
    "ExecutorOptions",
    "Flavour",
    "Plan",
    "PlanCache",
    "PlanEntry",
    "PlanKey",
    "Scratch",
    "TensorRT",
    "TensorRTExecutor",
    "build_plan",
    "explain_difference",
    "load_tensorrt",
    "open_cuda",
    "plan_key",
]
