from __future__ import annotations

import json

import pytest
import torch
from torchvision import tv_tensors

from dsgan_datasets import LabelSchema
from dsgan_datasets.transforms import RandomHorizontalFlip

FACE = LabelSchema(("background", "skin", "iris", "eye_white", "left_ear", "right_ear"), flip_pairs=((4, 5),))


def test_merge_gives_the_coarse_schema_and_the_map_to_it() -> None:
    groups = {"eye": ["iris", "eye_white"]}
    coarse = FACE.merge(groups)
    assert coarse.classes == ("background", "skin", "eye", "left_ear", "right_ear")
    assert FACE.class_map_to(groups) == (0, 1, 2, 2, 3, 4)
    assert coarse.flip_pairs == ((3, 4),)
    assert coarse.palette[2] == FACE.palette[2]


def test_maps_of_two_merges_follow_each_other() -> None:
    first, second = {"eye": ["iris", "eye_white"]}, {"head": ["skin", "eye"]}
    coarse = FACE.merge(first)
    assert [coarse.class_map_to(second)[i] for i in FACE.class_map_to(first)] == [0, 1, 1, 1, 2, 3]
    assert coarse.merge(second).classes == ("background", "head", "left_ear", "right_ear")


def test_merging_a_pair_drops_it() -> None:
    assert FACE.merge({"ear": ["left_ear", "right_ear"]}).flip_pairs == ()


@pytest.mark.parametrize(
    "groups", [{"x": ["nothing"]}, {"a": ["skin"], "b": ["skin"]}, {"skin": ["iris"]}, {"skin": []}]
)
def test_bad_merges_name_the_class(groups: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="nothing|skin"):
        FACE.merge(groups)


def test_json_round_trip() -> None:
    schema = FACE.merge({"eye": ["iris", "eye_white"]})
    assert LabelSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_schemas_of_format_1_are_read() -> None:
    old = {key: value for key, value in FACE.to_dict().items() if key not in ("kind", "field")}
    assert LabelSchema.from_dict({**old, "class_map": [0, 0, 1]}) == FACE


def test_colors_differ_when_none_are_given() -> None:
    assert len(set(LabelSchema(tuple(f"c{i}" for i in range(60))).palette)) == 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ()}, "at least one"),
        ({"classes": (None, "a")}, "must be words"),
        ({"classes": ("a", "a")}, "repeated: \\['a'\\]"),
        ({"classes": tuple(map(str, range(256)))}, "at most 255"),
        ({"classes": ("a", "b"), "ignore_index": 1}, "outside the class ids"),
        ({"classes": ("a", "b"), "palette": ((1, 2, 3),)}, "2 RGB colors"),
        ({"classes": ("a",), "palette": ((1, 2, 300),)}, "0-255"),
        ({"classes": ("a", "b"), "flip_pairs": ((0, 2),)}, "flip_pairs"),
        ({"classes": ("a", "b", "c"), "flip_pairs": ((0, 1), (1, 2))}, "at most one pair"),
    ],
)
def test_bad_schemas_say_what_is_allowed(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSchema(**fields)  # type: ignore[arg-type]


def test_flip_moves_pixels_and_swaps_sides() -> None:
    image = torch.arange(3 * 2 * 4, dtype=torch.uint8).view(3, 2, 4)
    mask = torch.tensor([[4, 0, 1, 255], [4, 5, 0, 0]])
    flipped_image, flipped_mask = RandomHorizontalFlip(FACE, p=1.0)(tv_tensors.Image(image), tv_tensors.Mask(mask))
    assert torch.equal(torch.as_tensor(flipped_image), image.flip(-1))
    assert flipped_mask.tolist() == [[255, 1, 0, 5], [0, 0, 4, 5]]
    assert isinstance(flipped_mask, tv_tensors.Mask) and isinstance(flipped_image, tv_tensors.Image)


def test_flip_of_a_dict() -> None:
    image, mask = torch.arange(8, dtype=torch.uint8).view(1, 2, 4), torch.tensor([[4, 0, 1, 255], [4, 5, 0, 0]])
    given = {"image": image, "mask": tv_tensors.Mask(mask), "uncertainty": tv_tensors.Mask(mask / 2), "index": 7}
    flipped = RandomHorizontalFlip([FACE], p=1.0)(given)
    assert torch.equal(flipped["image"], image.flip(-1)) and flipped["index"] == 7
    assert isinstance(flipped["mask"], tv_tensors.Mask) and flipped["mask"].tolist() == [[255, 1, 0, 5], [0, 0, 4, 5]]
    assert torch.equal(torch.as_tensor(flipped["uncertainty"]), (mask / 2).flip(-1))
    assert RandomHorizontalFlip(FACE, p=0.0)(given) is given


def test_flip_twice_is_nothing() -> None:
    mask = torch.randint(0, 6, (5, 7))
    flip = RandomHorizontalFlip(FACE, p=1.0)
    assert torch.equal(flip(*flip(torch.zeros(3, 5, 7), mask))[1], mask)


def test_flip_probability() -> None:
    image, mask = torch.zeros(3, 2, 2), torch.tensor([[4, 0], [0, 0]])
    assert torch.equal(RandomHorizontalFlip(FACE, p=0.0)(image, mask)[1], mask)
    with pytest.raises(ValueError, match="probability"):
        RandomHorizontalFlip(FACE, p=2)
