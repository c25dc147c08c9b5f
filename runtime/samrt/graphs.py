"""What the graphs of a bundle must have in common for a model prompted on pictures, and which stored form to load.

    image_encoder    a picture                       -> image tensors
    prompt_encoder   points, labels, mask            -> embeddings
    mask_decoder     image tensors and embeddings    -> candidate masks, their scores, maybe an object score,
                                                        maybe SAM-HQ's HQ mask alone

The names of image tensors and embeddings are free: the decoder takes what the other two make.
"""

from __future__ import annotations

from typing import NoReturn

from samrt.manifest import Form, Graph, Manifest
from samrt_engines.backends import CUDA_PROVIDER, cuda_device_count, look_at_backend
from samrt_engines.errors import BackendError, ManifestError
from samrt_engines.tensors import TensorSpec

GRAPHS = IMAGE_ENCODER, PROMPT_ENCODER, MASK_DECODER = ("image_encoder", "prompt_encoder", "mask_decoder")

MASKS, SCORES, OBJECT_SCORES = "low_res_masks", "iou_predictions", "object_score_logits"
HQ_MASKS = "low_res_hq_masks"
"""Of SAM-HQ: (P, 1, h, w), what it adds to each of SAM's masks. A decoder without it cannot give it alone."""
_NO_LIMIT = 1 << 30


def check_graphs(manifest: Manifest) -> None:
    """Check that the graphs fit each other and the manifest's numbers. Raises ManifestError, BundleError for another kind."""
    numbers = manifest.numbers  # says first what a bundle of another kind is for
    missing = [name for name in GRAPHS if name not in manifest.graphs]
    if missing:
        _refuse("graphs", f"no {', '.join(missing)} among {', '.join(manifest.graphs)}", ", ".join(GRAPHS))
    encoder, prompter, decoder = (manifest.graphs[name] for name in GRAPHS)
    picture = encoder.inputs[0].name
    _check(IMAGE_ENCODER, encoder.inputs, picture, ("float32", "uint8"), (None, *numbers.image.size_hw, 3))
    if len(encoder.inputs) != 1:
        _refuse("graphs.image_encoder.inputs", f"{len(encoder.inputs)} tensors", "one tensor")
    _check(PROMPT_ENCODER, prompter.inputs, "point_coords", ("float32",), (None, None, 2))
    _check(PROMPT_ENCODER, prompter.inputs, "point_labels", ("int32",), (None, None))
    if numbers.prompts.mask_size_hw is not None:
        mask = _check(PROMPT_ENCODER, prompter.inputs, "mask_input", ("float32",), (None, 1, None, None))
        if tuple(largest(prompter, "mask_input", axis) for axis in (2, 3)) != numbers.prompts.mask_size_hw:
            most = "numbers.prompts.mask_size_hw, {} x {}, at most".format(*numbers.prompts.mask_size_hw)
            _refuse("graphs.prompt_encoder.inputs", str(mask), most)
        _check(PROMPT_ENCODER, prompter.inputs, "has_mask_input", ("float32",), (None,))
    takes = "point_coords, point_labels" + (", mask_input, has_mask_input" if numbers.prompts.mask_size_hw else "")
    if len(prompter.inputs) != len(takes.split(", ")):
        _refuse("graphs.prompt_encoder.inputs", ", ".join(spec.name for spec in prompter.inputs), takes)
    made = {spec.name for spec in (*encoder.outputs, *prompter.outputs)}
    for spec in decoder.inputs:
        if spec.name not in made:
            _refuse("graphs.mask_decoder.inputs", spec.name, f"outputs of the encoders: {', '.join(sorted(made))}")
    tokens = 1 + max(*numbers.masks.single, *numbers.masks.multi)
    masks = _check(MASK_DECODER, decoder.outputs, MASKS, ("float32",), (None, None, *numbers.masks.size_hw))
    scores = _check(MASK_DECODER, decoder.outputs, SCORES, ("float32",), (None, None))
    if not isinstance(masks.shape[1], int) or masks.shape[1] != scores.shape[1] or masks.shape[1] < tokens:
        _refuse("graphs.mask_decoder.outputs", f"{masks} and {scores}", f"the same {tokens} or more candidates in both")
    if any(spec.name == OBJECT_SCORES for spec in decoder.outputs):
        _check(MASK_DECODER, decoder.outputs, OBJECT_SCORES, ("float32",), (None, 1))
    if any(spec.name == HQ_MASKS for spec in decoder.outputs):
        _check(MASK_DECODER, decoder.outputs, HQ_MASKS, ("float32",), (None, 1, *numbers.masks.size_hw))


def choose_form(graph: Graph, name: str, backend: str, device: str) -> Form:
    """Choose the form to load for a backend and device: the first that is made for it, or for any.

    Raises BackendError when there is none.
    """
    form = find_form(graph, backend, device)
    if form is not None:
        return form
    known = sorted({target for form in graph.forms for target in form.targets})
    target = _target(backend, device)
    raise BackendError(
        f"{name}: the bundle has no form of this graph for {target}",
        got=f"forms for {', '.join(known)}",
        expected=target,
        fix="choose backend and device to match, or export the model for this target",
    )


def find_form(graph: Graph, backend: str, device: str) -> Form | None:
    """The form that `choose_form` chooses, or None."""
    target = _target(backend, device) if any(form.targets for form in graph.forms) else backend
    return next((form for form in graph.forms if not form.targets or target in form.targets), None)


def largest(graph: Graph, tensor: str, axis: int) -> int:
    """The largest size of an axis of an input: its fixed size, its profile's maximum, or practically no limit."""
    size = next(spec.shape[axis] for spec in graph.inputs if spec.name == tensor)
    if isinstance(size, int):
        return size
    return graph.profiles[size].max if size in graph.profiles else _NO_LIMIT


def absent_mask_hw(manifest: Manifest) -> tuple[int, int] | None:
    """The size of ``mask_input`` where no prompt has a mask: the smallest that the prompt encoder takes. None: it takes none."""
    if manifest.numbers.prompts.mask_size_hw is None:
        return None
    graph = manifest.graphs[PROMPT_ENCODER]
    shape = next(spec.shape for spec in graph.inputs if spec.name == "mask_input")
    height, width = (size if isinstance(size, int) else graph.profiles[size].min for size in shape[2:])
    return height, width


def runs_on_cuda(device: str) -> bool:
    """Whether ONNX Runtime runs on a GPU for this device; "auto" is one where there are a GPU and the provider for it."""
    if device == "auto":
        return cuda_device_count() > 0 and CUDA_PROVIDER in look_at_backend("onnxruntime").providers
    return device != "cpu"


def _target(backend: str, device: str) -> str:
    """What a graph will run on, as manifests name targets: "onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt"."""
    if backend in ("openvino", "tensorrt"):
        return backend
    if device == "auto":
        device = "cuda" if runs_on_cuda(device) else "cpu"
    return f"onnxruntime-{device.partition(':')[0]}"


def _check(
    graph: str, specs: tuple[TensorSpec, ...], name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]
) -> TensorSpec:
    """Check one tensor; None in the shape stands for any size or symbol. Returns its spec."""
    wanted = f"'{name}': {' or '.join(dtypes)} ({', '.join('any' if size is None else str(size) for size in shape)})"
    for spec in specs:
        if spec.name != name:
            continue
        sizes = tuple(None if wish is None else size for size, wish in zip(spec.shape, shape, strict=False))
        if spec.dtype not in dtypes or len(spec.shape) != len(shape) or sizes != shape:
            _refuse(f"graphs.{graph}", str(spec), wanted)
        return spec
    _refuse(f"graphs.{graph}", ", ".join(spec.name for spec in specs), wanted)


def _refuse(place: str, got: str, expected: str) -> NoReturn:
    raise ManifestError(f"manifest.json: {place}", got=got, expected=expected, fix="samrt export, once more")
