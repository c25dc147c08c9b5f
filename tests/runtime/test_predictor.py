import inspect
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from samrt import ImageError, ImagePredictor, Model, PromptError, Prompts, load

POINT, LABEL, BOX = np.array([[32, 24]]), np.array([1]), np.array([10, 10, 50, 40])


@pytest.fixture
def predictor(model: Model, picture: np.ndarray) -> ImagePredictor:
    predictor = ImagePredictor(model)
    predictor.set_image(picture)
    return predictor


def test_arguments_are_those_of_upstream() -> None:
    """Names, order and defaults of SAM2ImagePredictor; and behind them, by name alone, what sam-hq's has besides."""

    def arguments(method: object) -> dict[str, object]:
        return {name: p.default for name, p in list(inspect.signature(method).parameters.items())[1:]}

    flags = {"multimask_output": True, "return_logits": False, "normalize_coords": True}
    prompts = ("point_coords", "point_labels", "box", "mask_input")
    hq = [("hq_token_only", False)]
    assert list(arguments(ImagePredictor.predict).items()) == [*dict.fromkeys(prompts).items(), *flags.items(), *hq]
    batch = {f"{name}_batch": None for name in prompts}
    assert list(arguments(ImagePredictor.predict_batch).items()) == [*batch.items(), *flags.items(), *hq]
    for method in (ImagePredictor.predict, ImagePredictor.predict_batch):
        assert inspect.signature(method).parameters["hq_token_only"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(arguments(ImagePredictor.__init__).items()) == [
        ("model", inspect.Parameter.empty),
        ("mask_threshold", None),
        ("max_hole_area", 0.0),
        ("max_sprinkle_area", 0.0),
    ]
    assert list(arguments(ImagePredictor.set_image)) == ["image"]
    assert list(arguments(ImagePredictor.set_image_batch)) == ["image_list"]


def test_one_prompt_has_no_prompt_axis(predictor: ImagePredictor, model: Model, picture: np.ndarray) -> None:
    masks, scores, logits = predictor.predict(POINT, LABEL)
    assert (masks.shape, scores.shape, logits.shape) == ((3, 48, 64), (3,), (3, 16, 16))
    assert (masks.dtype, scores.dtype, logits.dtype) == (np.bool_, np.float32, np.float32)
    result = model.decode(model.encode(picture), Prompts(POINT, LABEL))
    np.testing.assert_array_equal(masks, result.masks[0])
    np.testing.assert_array_equal(scores, result.scores[0])
    np.testing.assert_array_equal(logits, result.logits[0])


def test_single_mask_and_logits(predictor: ImagePredictor) -> None:
    masks, scores, logits = predictor.predict(POINT, LABEL, multimask_output=False)
    assert (masks.shape, scores.shape, logits.shape) == ((1, 48, 64), (1,), (1, 16, 16))
    values, _, _ = predictor.predict(POINT, LABEL, multimask_output=False, return_logits=True)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values > 0, masks)


def test_the_hq_mask_alone(hq_bundle_path: Path, picture: np.ndarray) -> None:
    prompts = Prompts(POINT, LABEL)
    with load(hq_bundle_path, threads=1) as model:
        predictor = ImagePredictor(model)
        predictor.set_image(picture)
        masks, scores, logits = predictor.predict(POINT, LABEL, hq_token_only=True)
        predictor.set_image_batch([picture, 255 - picture])
        batch = predictor.predict_batch([POINT] * 2, [LABEL] * 2, multimask_output=False, hq_token_only=True)
        expected = [
            model.decode(model.encode(one), prompts, multimask, hq_token_only=True)
            for one, multimask in ((picture, True), (picture, False), (255 - picture, False))
        ]
    assert (masks.shape, scores.shape, logits.shape) == ((1, 48, 64), (1,), (1, 16, 16))
    answers = ((masks, scores, logits), *zip(*batch, strict=True))
    for answer, result in zip(answers, expected, strict=True):
        for mine, theirs in zip(answer, (result.masks, result.scores, result.logits), strict=True):
            np.testing.assert_array_equal(mine, theirs[0])


def test_several_prompts_keep_their_axis(predictor: ImagePredictor) -> None:
    masks, scores, logits = predictor.predict(box=np.stack([BOX, BOX // 2]))
    assert (masks.shape, scores.shape, logits.shape) == ((2, 3, 48, 64), (2, 3), (2, 3, 16, 16))


def test_an_earlier_mask_comes_back(predictor: ImagePredictor) -> None:
    _, scores, logits = predictor.predict(POINT, LABEL)
    masks, _, _ = predictor.predict(POINT, LABEL, mask_input=logits[None, np.argmax(scores)], multimask_output=False)
    assert masks.shape == (1, 48, 64)
    predictor.predict(mask_input=logits[:1])


def test_relative_coordinates(predictor: ImagePredictor) -> None:
    size = np.array([64, 48])
    for mine, theirs in zip(
        predictor.predict(POINT, LABEL, BOX),
        predictor.predict(POINT / size, LABEL, BOX / np.tile(size, 2), normalize_coords=False),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_batches(model: Model, picture: np.ndarray) -> None:
    predictor = ImagePredictor(model)
    pictures = [picture, picture[:24]]
    predictor.set_image_batch(pictures)
    masks, scores, logits = predictor.predict_batch([POINT, POINT // 2], [LABEL, LABEL], [BOX, BOX // 2])
    assert [mask.shape for mask in masks] == [(3, 48, 64), (3, 24, 64)]
    assert predictor.get_image_embedding().shape == (2, 3, 4, 4)
    alone = ImagePredictor(model)
    alone.set_image(PIL.Image.fromarray(pictures[1]))
    expected = alone.predict(POINT // 2, LABEL, BOX // 2)
    for mine, theirs in zip((masks[1], scores[1], logits[1]), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ImageError, match=r"point_coords_batch does not match the pictures \| got: 1 entries"):
        predictor.predict_batch([POINT], [LABEL, LABEL])


def test_state(model: Model, picture: np.ndarray) -> None:
    predictor = ImagePredictor(model)
    with pytest.raises(ImageError, match=r"got: nothing set \| fix: predictor.set_image\(image\) first"):
        predictor.predict(POINT, LABEL)
    predictor.set_image(picture)
    assert predictor.get_image_embedding().shape == (1, 3, 4, 4)
    assert predictor.device == "cpu"
    with pytest.raises(ImageError, match=r"got: a single picture \| fix: predictor.set_image_batch"):
        predictor.predict_batch([POINT], [LABEL])
    predictor.set_image_batch([picture])
    with pytest.raises(ImageError, match="got: a batch"):
        predictor.predict(POINT, LABEL)
    predictor.reset_predictor()
    with pytest.raises(ImageError, match="nothing set"):
        predictor.get_image_embedding()


def test_a_failed_picture_leaves_none(predictor: ImagePredictor) -> None:
    with pytest.raises(ImageError):
        predictor.set_image(np.zeros((0, 3)))
    with pytest.raises(ImageError, match="nothing set"):
        predictor.predict(POINT, LABEL)


def test_thresholds_and_areas_are_used(model: Model, picture: np.ndarray) -> None:
    predictor = ImagePredictor(model, mask_threshold=100.0, max_hole_area=5, max_sprinkle_area=10_000)
    predictor.set_image(picture)
    masks, _, _ = predictor.predict(POINT, LABEL)
    assert not masks.any()


def test_no_prompt(predictor: ImagePredictor) -> None:
    with pytest.raises(PromptError, match="there is no prompt"):
        predictor.predict()
