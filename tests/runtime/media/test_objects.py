"""Objects as pictures: the palette, planes of ids, overlays."""

from __future__ import annotations

import numpy as np
import pytest

from samrt import InputError
from samrt.draw import PALETTE
from samrt.media.objects import colour_of, davis_palette, draw_objects, id_plane


def test_the_palette_is_that_of_davis() -> None:
    """Against the published one: ids 0 to 15, and some further on."""
    palette = davis_palette()
    assert palette.shape == (256, 3)
    low = "000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 400080 c00080 408080 c08080"
    assert [bytes(colour).hex() for colour in palette[:16]] == low.split()
    known = {16: "004000", 19: "80c000", 20: "004080", 63: "c0c0c0", 64: "200000", 128: "002000", 255: "e0e0c0"}
    assert {index: bytes(palette[index]).hex() for index in known} == known
    assert len({bytes(colour) for colour in palette}) == 256


def test_where_masks_overlap_the_lower_id_wins() -> None:
    masks = np.zeros((3, 1, 6), bool)
    masks[0, 0, 0:4], masks[1, 0, 2:6], masks[2, 0, 3:5] = True, True, True
    assert id_plane(masks, [7, 2, 255]).tolist() == [[7, 7, 2, 2, 2, 2]]
    assert id_plane(masks[:0], []).tolist() == [[0] * 6]


@pytest.mark.parametrize("obj_id", [0, -1, 256])
def test_ids_that_do_not_fit(obj_id: int) -> None:
    with pytest.raises(InputError, match=rf"object id {obj_id} does not fit .* 1 to 255; .*jsonl"):
        id_plane(np.zeros((1, 2, 2), bool), [obj_id])


def test_each_object_keeps_its_colour_and_only_it_changes() -> None:
    image = np.full((90, 120, 3), 100, np.uint8)
    masks = np.zeros((2, 90, 120), bool)
    masks[0, 50:80, 10:50], masks[1, 50:80, 70:110] = True, True
    both = draw_objects(image, masks, [3, 1])
    alone = draw_objects(image, masks[1:], [1])
    swapped = draw_objects(image, masks[::-1], [1, 3])
    np.testing.assert_array_equal(both, swapped)
    np.testing.assert_array_equal(both[:, 60:], alone[:, 60:])
    for obj_id, x in ((3, 30), (1, 90)):  # half the colour, half the picture
        np.testing.assert_allclose(both[70, x], (np.array(colour_of(obj_id)) + 100) / 2, atol=1)
    assert (both[:30] == 100).all()  # chips and outlines are near their masks
    assert (both[30:50, 10:50] != 100).any()  # the id
    assert (image == 100).all()
    assert colour_of(11) == colour_of(1) == PALETTE[0]


def test_nothing_to_draw() -> None:
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(draw_objects(image, np.zeros((0, 3, 3), bool), []), image)
    np.testing.assert_array_equal(draw_objects(image, np.zeros((2, 3, 3), bool), [1, 2]), image)
