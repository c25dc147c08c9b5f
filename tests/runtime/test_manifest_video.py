"""What a manifest says about video."""

from typing import Any

import pytest

from samrt import ManifestError
from samrt.manifest import parse_manifest
from samrt.numbers import VideoNumbers

VIDEO = {
    "max_conditioning_frames": None,
    "recent_frames": 6,
    "temporal_stride": 1,
    "conditioning_time": 6,
    "max_object_pointers": 16,
    "past_pointers_only": True,
    "signed_pointer_distance": False,
    "multimask_points": [0, 1],
    "empty_prompt_points": 1,
    "absent_logit": -1024.0,
    "fill_hole_area": 8,
}


def test_a_model_of_pictures_has_none(manifest: dict[str, Any]) -> None:
    assert parse_manifest(manifest).numbers.video is None


def test_the_numbers_are_read(manifest: dict[str, Any]) -> None:
    manifest["numbers"]["video"] = VIDEO | {"later": "information"}
    assert parse_manifest(manifest).numbers.video == VideoNumbers(None, 6, 1, 6, 16, True, False, (0, 1), 1, -1024.0, 8)
    manifest["numbers"]["video"] = VIDEO | {"max_conditioning_frames": 4}
    video = parse_manifest(manifest).numbers.video
    assert video is not None
    assert video.max_conditioning_frames == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_conditioning_frames", 0),
        ("recent_frames", -1),
        ("temporal_stride", 0),
        ("max_object_pointers", 1.5),
        ("past_pointers_only", 1),
        ("multimask_points", [0]),
        ("absent_logit", 3.0),
        ("fill_hole_area", "8"),
    ],
)
def test_a_wrong_number_is_named(manifest: dict[str, Any], name: str, value: Any) -> None:
    manifest["numbers"]["video"] = VIDEO | {name: value}
    with pytest.raises(ManifestError, match=f"numbers.video.{name}"):
        parse_manifest(manifest)


@pytest.mark.parametrize("name", sorted(VIDEO.keys() - {"max_conditioning_frames"}))  # null and absent read alike
def test_every_number_is_needed(manifest: dict[str, Any], name: str) -> None:
    manifest["numbers"]["video"] = {key: value for key, value in VIDEO.items() if key != name}
    with pytest.raises(ManifestError, match=f"numbers.video.{name}"):
        parse_manifest(manifest)
