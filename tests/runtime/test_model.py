import contextlib
import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import samrt
from samrt import BackendError, ImageError, Model, PromptError, Prompts
from samrt.transforms import image_to_input

LEVELS = np.array([128, 64, 128, 192], np.float32)
SCORES = np.array([0.5, 0.6, 0.9, 0.7], np.float32)
CLICK = Prompts(points=[[32, 24]], labels=[1])


def redness(model: Model, image: np.ndarray) -> np.ndarray:
    """What the fake model sees: float32 (16, 16)."""
    return image_to_input(image, model.manifest.numbers.image)[..., 0].reshape(16, 2, 16, 2).mean(axis=(1, 3))


def test_features(model: Model, picture: np.ndarray) -> None:
    features = model.encode(picture)
    assert set(features.tensors) == {"image_embed", "high_res_feats_0"}
    np.testing.assert_allclose(features.tensors["high_res_feats_0"][0, 0], redness(model, picture), atol=1e-3)
    assert features.image_hw == ((48, 64),)
    assert (features.provider, features.precision) == ("CPUExecutionProvider", "fp32")
    assert features.nbytes == 4 * 3 * (16 + 256)
    with pytest.raises(ValueError, match="read-only"):
        features.tensors["image_embed"][:] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        features.image_hw = ()  # type: ignore[misc]


def test_a_click(model: Model, picture: np.ndarray) -> None:
    result = model.decode(model.encode(picture), CLICK)
    expected = redness(model, picture) - LEVELS[1:, None, None]
    np.testing.assert_allclose(result.mask_logits[0], expected, atol=1e-3)
    np.testing.assert_allclose(result.logits[0], np.clip(expected, -32, 32), atol=1e-3)
    np.testing.assert_allclose(result.scores[0], SCORES[1:] + 1e-4 * 16, atol=1e-6)  # x = 32 of 64 is 16 of 32
    np.testing.assert_allclose(result.object_scores, [0])  # one positive label, one of padding
    assert (result.provider, result.precision) == ("CPUExecutionProvider", "fp32")
    assert result.masks.shape == (1, 3, 48, 64)
    assert result.masks.dtype == np.bool_
    truth = picture[..., 0] > 0
    assert (result.masks[0, 1] & truth).sum() / (result.masks[0, 1] | truth).sum() > 0.95
    np.testing.assert_array_equal(result.masks, result.upscaled_logits() > 0)
    assert result.masks is result.masks  # made once


def test_masks_come_from_logits_that_are_not_clamped(model: Model, picture: np.ndarray) -> None:
    result = model.decode(model.encode(picture), CLICK)
    assert np.abs(result.mask_logits).max() > 32
    assert np.abs(result.logits).max() == 32


def test_best_is_one_candidate_per_prompt(model: Model, picture: np.ndarray) -> None:
    result = model.decode(model.encode(picture), CLICK)
    best = result.best()
    assert best.masks.shape == (1, 1, 48, 64)
    np.testing.assert_allclose(best.scores, [[0.9016]], atol=1e-6)
    np.testing.assert_array_equal(best.masks[:, 0], result.masks[:, 1])
    np.testing.assert_array_equal(best.logits[:, 0], result.logits[:, 1])


def test_only_what_is_looked_at_is_resized(model: Model, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    real = samrt.result.binary_masks

    def spy(logits: np.ndarray, *rest: Any) -> np.ndarray:
        sizes.append(logits.shape)
        return real(logits, *rest)

    monkeypatch.setattr("samrt.result.binary_masks", spy)
    best = model.decode(model.encode(picture), CLICK).best()
    assert sizes == []
    assert best.masks.any()
    assert sizes == [(1, 1, 16, 16)]


def test_a_single_mask(model: Model, picture: np.ndarray) -> None:
    result = model.decode(model.encode(picture), CLICK, multimask=False)
    assert result.scores.shape == (1, 1)
    np.testing.assert_allclose(result.mask_logits[0, 0], redness(model, picture) - 128, atol=1e-3)


def test_an_unstable_single_mask(model: Model) -> None:
    """Redness just at the level of token 0: the best of the three takes over."""
    grey = np.full((20, 20, 3), 128, np.uint8)
    result = model.decode(model.encode(grey), Prompts(points=[[10, 10]], labels=[1]), multimask=False)
    np.testing.assert_allclose(result.scores, [[0.9 + 16e-4]], atol=1e-6)


def test_a_cpu_is_given_few_prompts_at_a_time(
    tmp_path: Path, manifest: dict[str, Any], write_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a GPU's profile allows: memory grows with them, speed does not."""
    for graph in ("prompt_encoder", "mask_decoder"):
        manifest["graphs"][graph]["profiles"]["prompts"]["max"] = 64
    with samrt.load(write_bundle(tmp_path / "wide", manifest), backend="onnxruntime", device="cpu") as model:
        executor, sizes = model.executors["mask_decoder"], []
        run = type(executor).run

        def spy(self: Any, feeds: Any, outputs: Any = None) -> Any:
            sizes.append(max(len(feed) for feed in feeds.values()))
            return run(self, feeds, outputs)

        features = model.encode(np.zeros((48, 64, 3), np.uint8))
        monkeypatch.setattr(type(executor), "run", spy)
        points = np.full((40, 1, 2), 5)
        assert len(model.decode(features, Prompts(points=points, labels=np.ones((40, 1))))) == 40
    assert [size for size in sizes if size > 1] == [16, 16, 16, 16, 8, 8]  # both graphs


def test_logits_are_the_next_mask_prompt(model: Model, picture: np.ndarray) -> None:
    features = model.encode(picture)
    first = model.decode(features, CLICK).best()
    second = model.decode(features, Prompts(masks=first.logits))
    np.testing.assert_allclose(second.mask_logits[0, 1], first.mask_logits[0, 0] + first.logits[0, 0], atol=1e-3)
    np.testing.assert_allclose(second.scores[0], SCORES[1:], atol=1e-6)  # no point at all


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_many_prompts_run_in_parts(model: Model, picture: np.ndarray, count: int) -> None:
    features = model.encode(picture)
    points = np.linspace([2, 2], [60, 40], count)[:, None]
    whole = model.decode(features, Prompts(points=points, labels=np.ones((count, 1))))
    for index in range(count):
        one = model.decode(features, Prompts(points=points[index], labels=[1]))
        np.testing.assert_array_equal(whole.scores[index], one.scores[0])
        np.testing.assert_array_equal(whole.masks[index], one.masks[0])
        np.testing.assert_array_equal(whole[index].masks, one.masks)
    assert len(whole) == count
    assert len(list(whole)) == count
    with pytest.raises(IndexError, match=f"prompt {count} of {count}"):
        whole[count]


def test_batches_of_pictures(model: Model, picture: np.ndarray) -> None:
    """Three pictures of different sizes, more than the encoder takes at once."""
    pictures = [picture, picture[::2, ::2], 255 - picture]
    features = model.encode(pictures)
    assert len(features) == 3
    assert [one.image_hw for one in features] == [((48, 64),), ((24, 32),), ((48, 64),)]
    prompts = Prompts(points=[[[8, 8]], [[16, 8]], [[8, 40]]], labels=[[1], [1], [1]])
    result = model.decode(features, prompts)
    for index in range(3):
        alone = model.encode(pictures[index])
        np.testing.assert_allclose(features[index].tensors["image_embed"], alone.tensors["image_embed"], atol=1e-4)
        one = model.decode(alone, Prompts(points=prompts.points[index], labels=[1]))
        np.testing.assert_array_equal(result[index].masks, one.masks)
        np.testing.assert_array_equal(result[index].scores, one.scores)
        chosen = model.decode(features, Prompts(points=[[8, 8]], labels=[1]), image_index=index)
        np.testing.assert_array_equal(chosen.masks, model.decode(alone, Prompts(points=[[8, 8]], labels=[1])).masks)
    with pytest.raises(ImageError, match=r"got: 32 x 24, 64 x 48 .*fix: one by one: \[one.masks for one in result\]"):
        result.masks.any()
    same = model.decode(features[0], prompts.scaled(0.5, 0.5))
    assert same.masks.shape == (3, 3, 48, 64)


def test_pictures_of_one_size_share_an_array(model: Model, picture: np.ndarray) -> None:
    prompts = Prompts(boxes=[[0, 0, 9, 9]] * 2)
    result = model.decode(model.encode([picture, 255 - picture]), prompts)
    assert result.masks.shape == (2, 3, 48, 64)
    np.testing.assert_array_equal(result.masks[1], result[1].masks[0])


def test_pil_grey_and_float_pictures(model: Model, picture: np.ndarray) -> None:
    expected = model.encode(picture).tensors["image_embed"]
    for other in (PIL.Image.fromarray(picture), picture / 255, np.dstack([picture, picture[..., 0]])):
        np.testing.assert_array_equal(model.encode(other).tensors["image_embed"], expected)


def test_holes_and_sprinkles(model: Model) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24, 0] = 255
    image[14:16, 14:16] = 0  # one low-res pixel
    image[0:2, 0:2, 0] = 255
    features = model.encode(image)
    plain = model.decode(features, Prompts(masks=np.zeros((16, 16))))
    clean = model.decode(features, Prompts(masks=np.zeros((16, 16))), fill_hole_area=1, remove_sprinkle_area=1)
    changed = np.argwhere(clean.mask_logits[0, 1] != plain.mask_logits[0, 1])
    assert changed.tolist() == [[0, 0], [7, 7]]
    assert (clean.mask_logits[0, 1, 7, 7], clean.mask_logits[0, 1, 0, 0]) == (10, -10)
    np.testing.assert_array_equal(clean.logits, plain.logits)  # what goes back to the model is what it said


def test_the_threshold(model: Model, picture: np.ndarray) -> None:
    features = model.encode(picture)
    low, high = (model.decode(features, CLICK, mask_threshold=t).masks for t in (-60.0, 60.0))
    assert low.sum() > high.sum()
    np.testing.assert_array_equal(high, model.decode(features, CLICK).upscaled_logits() > 60)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, f: model.decode(f, Prompts(points=[[90, 1]], labels=[1])), "point 0 of prompt 0 lies outside"),
        (lambda model, f: model.decode(f, CLICK, mask_threshold=float("nan")), "mask_threshold must be a finite"),
        (lambda model, f: model.decode(f, CLICK, fill_hole_area=-1), "fill_hole_area must be 0 or more"),
        (lambda model, f: model.decode(f, CLICK, remove_sprinkle_area=float("nan")), "remove_sprinkle_area must be"),
        (lambda model, f: model.decode(f, CLICK, image_index=2), "no such picture | got: index 2 | expected: 0 to 0"),
        (lambda model, f: model.encode([]), "there is no picture | got: an empty list"),
        (lambda model, f: model.encode("picture.png"), "not a picture"),
        (
            lambda model, f: model.decode(model.encode([np.zeros((48, 64, 3), np.uint8)] * 2), CLICK),
            "got: 1 prompts for 2 pictures | expected: one picture for all prompts, or one prompt for each picture",
        ),
    ],
)
def test_calls_that_do_not_fit(model: Model, picture: np.ndarray, call: Callable[..., Any], message: str) -> None:
    features = model.encode(picture)
    with pytest.raises((PromptError, ImageError)) as caught:
        call(model, features)
    assert message in str(caught.value)


def test_features_of_another_model_are_refused(
    model: Model, picture: np.ndarray, manifest: dict[str, Any], tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    manifest["source"]["model"] = "other"
    with samrt.load(write_bundle(tmp_path / "other", manifest), threads=1) as other:
        foreign = other.encode(picture)
        with pytest.raises(ImageError, match=r"these features are of another model .* redness \| fix: encode"):
            model.decode(foreign, CLICK)


def test_features_outlive_the_model_and_travel(
    picture: np.ndarray, tmp_path: Path, write_bundle: Callable[..., Path], model: Model
) -> None:
    with samrt.load(write_bundle(tmp_path / "twin"), "onnxruntime", device="cpu", threads=1) as twin:
        assert twin.providers == dict.fromkeys(
            ("image_encoder", "prompt_encoder", "mask_decoder"), "CPUExecutionProvider"
        )
        assert set(twin.precisions.values()) == {"fp32"}
        assert (twin.device, twin.digest) == ("cpu", model.digest)
        features = pickle.loads(pickle.dumps(twin.encode(picture)))
    with pytest.raises(BackendError, match="closed"):
        twin.encode(picture)
    with pytest.raises(BackendError, match="closed"):
        twin.decode(features, CLICK)
    twin.close()
    np.testing.assert_array_equal(model.decode(features, CLICK).masks, model.decode(model.encode(picture), CLICK).masks)


def test_padded_input(
    manifest: dict[str, Any], tmp_path: Path, write_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    """resize longest_side: aspect kept, padded, masks cropped."""
    manifest["numbers"]["image"]["resize"] = "longest_side"
    with samrt.load(write_bundle(tmp_path / "padded", manifest), threads=1) as padded:
        result = padded.decode(padded.encode(picture), Prompts(points=[[64, 48]], labels=[1]))
        np.testing.assert_allclose(result.scores[0], SCORES[1:] + 1e-4 * 32, atol=1e-6)
        truth = picture[..., 0] > 0
        assert (result.masks[0, 1] & truth).sum() / (result.masks[0, 1] | truth).sum() > 0.95


def test_a_decoder_without_object_scores(
    manifest: dict[str, Any], tmp_path: Path, write_bundle: Callable[..., Path], picture: np.ndarray
) -> None:
    folder = write_bundle(tmp_path / "plain", manifest)
    path = folder / "mask_decoder.onnx"
    proto = onnx.load(path)
    del proto.graph.output[2]
    path.write_bytes(proto.SerializeToString())
    graph = manifest["graphs"]["mask_decoder"]
    graph["forms"][0].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
    del graph["outputs"][2]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with samrt.load(folder, threads=1) as plain:
        assert plain.decode(plain.encode(picture), CLICK).object_scores.tolist() == [10]


@pytest.mark.parametrize(("multimask", "score"), [(True, 0.9), (False, 0.5)])
def test_the_hq_mask_alone(
    model: Model, hq_bundle_path: Path, picture: np.ndarray, multimask: bool, score: float
) -> None:
    """One for each prompt, in parts as any; and the usual candidates are what they are without it."""
    points = np.linspace([2, 2], [60, 40], 7)[:, None]
    prompts, seen = Prompts(points=points, labels=np.ones((7, 1))), redness(model, picture)
    with samrt.load(hq_bundle_path, threads=1) as hq:
        features = hq.encode(picture)
        result = hq.decode(features, prompts, multimask, hq_token_only=True)
        usual = hq.decode(features, prompts, multimask)
    assert result.masks.shape == (7, 1, 48, 64)
    np.testing.assert_allclose(result.mask_logits, np.broadcast_to(seen, (7, 1, 16, 16)), atol=1e-3)
    np.testing.assert_allclose(result.scores[:, 0], score + 1e-4 * points[:, 0, 0] / 2, atol=1e-6)
    np.testing.assert_array_equal(result.object_scores, usual.object_scores)
    plain = model.decode(model.encode(picture), prompts, multimask)
    np.testing.assert_array_equal(usual.mask_logits, plain.mask_logits)
    np.testing.assert_array_equal(usual.scores, plain.scores)


def test_only_the_masks_that_are_asked_for_are_fetched(
    hq_bundle_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []
    with samrt.load(hq_bundle_path, backend="onnxruntime", device="cpu") as hq:
        features, executor = hq.encode(picture), type(hq.executors["mask_decoder"])
        run = executor.run

        def spy(self: Any, feeds: Any, outputs: Any = None) -> Any:
            fetched.append(list(outputs or []))
            return run(self, feeds, outputs)

        monkeypatch.setattr(executor, "run", spy)
        hq.decode(features, CLICK)
        hq.decode(features, CLICK, hq_token_only=True)
    others = ["iou_predictions", "object_score_logits"]
    assert [names for names in fetched if others[0] in names] == [
        ["low_res_masks", *others],
        ["low_res_hq_masks", *others],
    ]


def test_a_model_without_an_hq_mask_says_which_have_one(model: Model, picture: np.ndarray) -> None:
    with pytest.raises(samrt.InputError, match=r"redness: this bundle cannot give the HQ mask .*\(sam-hq-vit-b, -l"):
        model.decode(model.encode(picture), CLICK, hq_token_only=True)


def test_many_threads_one_model(model: Model, picture: np.ndarray) -> None:
    def work(index: int) -> np.ndarray:
        image = np.roll(picture, index, axis=1)
        features = model.encode(image)
        return model.decode(features, Prompts(points=[[index, 5]], labels=[1])).masks

    expected = [work(index) for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for mine, theirs in zip(expected, pool.map(work, range(12)), strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_unknown_backends_and_devices(bundle_path: Path) -> None:
    for arguments in ({"backend": "magic"}, {"device": "tpu"}, {"threads": 0}, {"backend": "tensorrt"}):
        with pytest.raises(BackendError):
            samrt.load(bundle_path, **arguments)


def test_importing_samrt_is_light() -> None:
    code = """
import sys, time
start = time.process_time()
import numpy
before = time.process_time()
import samrt
took = time.process_time() - before
heavy = {"torch", "onnx", "onnxruntime", "transformers", "typer", "rich", "PIL", "scipy", "av"} & set(sys.modules)
assert not heavy, heavy
assert took < 5 * (before - start), (took, before - start)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


numbers = st.one_of(st.floats(-2, 70), st.sampled_from([np.nan, np.inf, -1e9, 1e300]))
dtypes = st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float64, np.bool_, np.complex64])
shapes = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
)


@settings(max_examples=150, deadline=None)
@given(
    image=st.one_of(dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes)), st.none(), st.text(), st.binary()),
    points=st.lists(st.tuples(numbers, numbers), max_size=9) | st.none(),
    labels=st.lists(st.integers(-2, 4), max_size=9) | st.none(),
    box=st.lists(numbers, min_size=3, max_size=5) | st.none(),
    mask=hnp.arrays(np.float32, st.sampled_from([(16, 16), (1, 16, 16), (2, 1, 16, 16), (5,)])) | st.none(),
    multimask=st.booleans(),
)
def test_hostile_input_is_a_result_or_one_clear_error(
    model: Model, image: Any, points: Any, labels: Any, box: Any, mask: Any, multimask: bool
) -> None:
    with contextlib.suppress(ImageError, PromptError):
        features = model.encode(image)
        result = model.decode(features, Prompts(points, labels, box, mask), multimask)
        height, width = features.image_hw[0]
        assert result.masks.shape == (len(result), 3 if multimask else 1, height, width)
        assert result.masks.dtype == np.bool_
        assert np.isfinite(result.scores).all()
