"""The constants of models, read from a manifest: how inputs are made, outputs are read, memory is kept, 3D is sampled."""

import math
from dataclasses import dataclass
from typing import Literal

from samrt.schema import Cursor

_LABELS = ("negative", "positive", "box_top_left", "box_bottom_right", "padding")


@dataclass(frozen=True, slots=True)
class ImageNumbers:
    """How a picture becomes the image encoder's input. mean and std are on the 0..1 scale, applied inside the graph."""

    size_hw: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["stretch", "longest_side"]
    antialias: bool
    resize_dtype: Literal["float32", "uint8"] = "float32"
    """What the picture is resized in: "uint8" rounds to whole levels, twice, as Pillow does with ordinary pictures."""


@dataclass(frozen=True, slots=True)
class PromptNumbers:
    """What the prompt encoder understands: the label of each kind of point, the padding rule, the limits."""

    negative: int | None  # None: the model has no negative points
    positive: int
    box_top_left: int
    box_bottom_right: int
    padding: int
    padding_point: Literal["always", "without_box", "fill"]  # "fill": up to max_points, always that many columns
    max_points: int  # in one prompt, the two corners of a box counted, the padding point not
    mask_size_hw: tuple[int, int] | None  # None: the model takes no mask prompts


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
    single: tuple[int, ...]  # of several the best-scored, and then without a stability rule
    multi: tuple[int, ...]
    stability: Stability | None


@dataclass(frozen=True, slots=True)
class AutomaticNumbers:
    """The thresholds a model's own automatic mask generator starts from; the defaults are SAM's."""

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    candidates: Literal["all", "best"] = "all"
    """Of the several that answer a point: all are kept, or the one with the best score, as SAM-HQ does."""


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
    """The constants of a model that is prompted on pictures."""

    image: ImageNumbers
    prompts: PromptNumbers
    masks: MaskNumbers
    video: VideoNumbers | None = None
    automatic: AutomaticNumbers = AutomaticNumbers()


@dataclass(frozen=True, slots=True)
class ProposalNumbers:
    """The constants of a model that proposes all masks of a picture at once: what `samrt.proposals` follows."""

    size_hw: tuple[int, int]
    pad_value: int  # grey level around the picture, which lies centred
    confidence: float  # least score of a proposal
    iou: float  # above which the lower-scored of two overlapping boxes is dropped
    max_detections: int
    full_frame_iou: float  # a box that covers the picture up to this becomes the whole picture,
    full_frame_edge_px: int  # after edges this near the picture's own were put on them


@dataclass(frozen=True, slots=True)
class FlowNumbers:
    """How one flow is sampled: Euler steps from noise (t = 0) to data (t = 1), see `samrt.reconstruct.flow_sampling`."""

    steps: int
    rescale_t: float  # t = u / (1 + (rescale_t - 1) (1 - u)) for u = i / steps
    guidance: float  # s of (1 + s) conditioned - s unconditioned
    guidance_interval: tuple[float, float]  # of time_scale * t, both ends in
    time_scale: float  # the graph is given time_scale * t
    shortcut: bool  # whether the graph was trained for few long steps


@dataclass(frozen=True, slots=True)
class PoseNumbers:
    """How pose tokens are read: rotation_6d * std + mean."""

    rotation_mean: tuple[float, ...]  # 6
    rotation_std: tuple[float, ...]  # 6


@dataclass(frozen=True, slots=True)
class GaussianNumbers:
    """How the Gaussian decoder's channels become Gaussians."""

    scale_bias: float  # what softplus(inverse_softplus(scale_bias)) starts from
    min_kernel: float  # smallest standard deviation, added in squares
    rotation_gain: float  # quaternion = rotation_gain * raw + (1, 0, 0, 0)
    opacity_bias: float  # opacity where the channel is zero


@dataclass(frozen=True, slots=True)
class MeshNumbers:
    """How the mesh decoder's cubes become a surface."""

    resolution: int  # cubes along one axis
    sdf_bias: float  # added to every signed distance


@dataclass(frozen=True, slots=True)
class ReconstructionNumbers:
    """The constants of a model that makes 3D of a picture and a mask: what `samrt.reconstruct` follows."""

    views: tuple[str, ...]  # of the picture, in the order of the graph's batch
    view_px: int  # side of a view
    crop_scale: float  # side of the crop over the longer side of the mask's box
    point_px: int | None  # side of the pointmap's views; None: the model takes no pointmap
    grid: int  # voxels along one axis
    latent_grid: int  # tokens of the structure latent along one axis
    max_voxels: int
    window: int  # voxels along a side of the attention windows
    prune_interior: bool  # whether voxels with a full 3 x 3 x 3 neighbourhood are dropped
    structure: FlowNumbers
    latent: FlowNumbers
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    pose: PoseNumbers | None
    gaussians: GaussianNumbers
    mesh: MeshNumbers


@dataclass(frozen=True, slots=True)
class DepthNumbers:
    """The constants of a model that sees depth in a picture: what `samrt.reconstruct.moge` follows."""

    remap: Literal["linear", "exp"]  # what made the points of the network's last numbers
    patch_px: int
    tokens: tuple[int, int]  # fewest and most patches it was trained with
    position_grid: int  # patches along a side of the picture that positions are stored for
    position_offset: float  # added to a number of patches before positions are scaled to it
    mask_threshold: float


VIEWS = ("crop_rgb", "full_rgb", "crop_mask", "full_mask", "object")
"""The views a model may take: the picture and the mask, cropped around the object and whole; the object on black."""


def parse_numbers(cursor: Cursor) -> Numbers:
    """Check and read the numbers of a model that is prompted on pictures. Raises ManifestError."""
    video = _video(cursor.key("video")) if cursor.has("video") else None
    automatic = _automatic(cursor.key("automatic")) if cursor.has("automatic") else AutomaticNumbers()
    image, prompts, masks = _image(cursor.key("image")), _prompts(cursor.key("prompts")), _masks(cursor.key("masks"))
    return Numbers(image, prompts, masks, video, automatic)


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
    antialias = cursor.key("antialias").flag()
    resize_dtype: Literal["float32", "uint8"] = "float32"
    if cursor.has("resize_dtype") and cursor.key("resize_dtype").text(choices=("float32", "uint8")) == "uint8":
        resize_dtype = "uint8"
        if not antialias:
            cursor.key("antialias").fail("true, where resize_dtype is uint8")
    return ImageNumbers(size_hw, mean, std, resize, antialias, resize_dtype)


def _prompts(cursor: Cursor) -> PromptNumbers:
    labels, mask_size_hw = cursor.key("labels"), cursor.key("mask_size_hw")
    labels.keys(_LABELS)
    negative = labels.key("negative")
    padding_point = cursor.key("padding_point").text(choices=("always", "without_box", "fill"))
    return PromptNumbers(
        negative=None if negative.is_null() else negative.integer(-1000, 1000),
        **{name: labels.key(name).integer(-1000, 1000) for name in _LABELS[1:]},
        padding_point=padding_point,  # type: ignore[arg-type]  # one of the choices
        max_points=cursor.key("max_points").integer(1, 1 << 20),
        mask_size_hw=None if mask_size_hw.is_null() else _size_hw(mask_size_hw, 16384),
    )


def _masks(cursor: Cursor) -> MaskNumbers:
    rule = cursor.key("stability")
    stability = None
    if not rule.is_null():
        stability = Stability(rule.key("delta").number(0.0), rule.key("threshold").number(0.0, 1.0))
    if stability is not None and len(cursor.key("single").items(1, 1000)) > 1:
        rule.fail("null, where several candidates answer a single request")
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


def _automatic(cursor: Cursor) -> AutomaticNumbers:
    best = cursor.key("candidates").text(choices=("all", "best")) == "best"
    return AutomaticNumbers(
        pred_iou_thresh=cursor.key("pred_iou_thresh").number(0.0, 1.0),
        stability_score_thresh=cursor.key("stability_score_thresh").number(0.0, 1.0),
        candidates="best" if best else "all",
    )


def parse_proposals(cursor: Cursor) -> ProposalNumbers:
    """Check and read the numbers of a model that proposes masks. Raises ManifestError."""
    return ProposalNumbers(
        size_hw=_size_hw(cursor.key("size_hw"), 16384),
        pad_value=cursor.key("pad_value").integer(0, 255),
        confidence=cursor.key("confidence").number(0.0, 1.0),
        iou=cursor.key("iou").number(0.0, 1.0),
        max_detections=cursor.key("max_detections").integer(1, 1 << 20),
        full_frame_iou=cursor.key("full_frame_iou").number(0.0, 1.0),
        full_frame_edge_px=cursor.key("full_frame_edge_px").integer(0, 16384),
    )


def _candidates(cursor: Cursor) -> tuple[int, ...]:
    return tuple(item.integer(0, 1000) for item in cursor.items(1, 1000))


def _size_hw(cursor: Cursor, most: int) -> tuple[int, int]:
    height, width = (item.integer(1, most) for item in cursor.items(2, 2))
    return height, width


def parse_reconstruction(cursor: Cursor) -> ReconstructionNumbers:
    """Check and read the numbers of a model that makes 3D. Raises ManifestError."""
    points, pose, gaussians, mesh = (cursor.key(name) for name in ("point_px", "pose", "gaussians", "mesh"))
    views = tuple(item.text(choices=VIEWS) for item in cursor.key("views").items(1, len(VIEWS)))
    channels = len(cursor.key("latent_mean").items(1, 1024))
    return ReconstructionNumbers(
        views=views,
        view_px=cursor.key("view_px").integer(8, 4096),
        crop_scale=cursor.key("crop_scale").number(1.0, 10.0),
        point_px=None if points.is_null() else points.integer(8, 4096),
        grid=cursor.key("grid").integer(8, 1024),
        latent_grid=cursor.key("latent_grid").integer(1, 256),
        max_voxels=cursor.key("max_voxels").integer(1, 1 << 24),
        window=cursor.key("window").integer(1, 1024),
        prune_interior=cursor.key("prune_interior").flag(),
        structure=_flow(cursor.key("structure")),
        latent=_flow(cursor.key("latent")),
        latent_mean=_numbers(cursor.key("latent_mean"), channels),
        latent_std=_numbers(cursor.key("latent_std"), channels, least=1e-6),
        pose=None
        if pose.is_null()
        else PoseNumbers(_numbers(pose.key("rotation_mean"), 6), _numbers(pose.key("rotation_std"), 6, least=1e-6)),
        gaussians=GaussianNumbers(
            scale_bias=gaussians.key("scale_bias").number(1e-9, 10.0),
            min_kernel=gaussians.key("min_kernel").number(0.0, 10.0),
            rotation_gain=gaussians.key("rotation_gain").number(-100.0, 100.0),
            opacity_bias=gaussians.key("opacity_bias").number(1e-6, 1 - 1e-6),
        ),
        mesh=MeshNumbers(mesh.key("resolution").integer(8, 4096), mesh.key("sdf_bias").number(-1.0, 1.0)),
    )


def parse_depth(cursor: Cursor) -> DepthNumbers:
    """Check and read the numbers of a model that sees depth. Raises ManifestError."""
    least = cursor.key("tokens").items(2, 2)[0].integer(1, 1 << 20)
    remap: Literal["linear", "exp"] = "exp"
    if cursor.key("remap").text(choices=("linear", "exp")) == "linear":
        remap = "linear"
    return DepthNumbers(
        remap=remap,
        patch_px=cursor.key("patch_px").integer(1, 1024),
        tokens=(least, cursor.key("tokens").items(2, 2)[1].integer(least, 1 << 20)),
        position_grid=cursor.key("position_grid").integer(1, 4096),
        position_offset=cursor.key("position_offset").number(0.0, 1.0),
        mask_threshold=cursor.key("mask_threshold").number(),
    )


def _flow(cursor: Cursor) -> FlowNumbers:
    first, last = (item.number() for item in cursor.key("guidance_interval").items(2, 2))
    return FlowNumbers(
        steps=cursor.key("steps").integer(1, 1000),
        rescale_t=cursor.key("rescale_t").number(1e-3, 100.0),
        guidance=cursor.key("guidance").number(0.0, 100.0),
        guidance_interval=(first, last),
        time_scale=cursor.key("time_scale").number(1e-3, 1e6),
        shortcut=cursor.key("shortcut").flag(),
    )


def _numbers(cursor: Cursor, count: int, least: float = -math.inf) -> tuple[float, ...]:
    return tuple(item.number(least) for item in cursor.items(count, count))
