"""Sets of buckets, and the choice of one for each image."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import Recipe, RecipeError
from latentq.format.buckets import Buckets, Choice, parse_buckets


def buckets(**table):
    return Buckets.from_dict(table)


def recipe(**table):
    return {"name": "test", "columns": {"latent": {"from": "latent"}}, "buckets": table}


# Sets.


def test_buckets_by_area_are_the_largest_of_every_ratio():
    found = buckets(area=1 << 20, multiple=64, max_ratio=2.0).all
    sides = range(64, 4096, 64)
    fitting = [(h, w) for h in sides for w in sides if h * w <= 1 << 20]
    expected = sorted(
        (h, w) for h, w in fitting
        if (h + 64) * w > 1 << 20 and h * (w + 64) > 1 << 20 and max(h, w) <= 2 * min(h, w)
    )  # fmt: skip
    assert list(found) == expected
    assert (1024, 1024) in found
    assert (832, 1216) in found


@settings(max_examples=200, deadline=None)
@given(side=st.integers(8, 200), multiple=st.sampled_from([1, 8, 16]), ratio=st.sampled_from([1, 1.25, 2.0, 3]))
def test_buckets_by_area_hold_their_promises(side, multiple, ratio):
    area = max(side, multiple) ** 2
    square = math.isqrt(area) // multiple * multiple
    try:
        found = buckets(area=area, multiple=multiple, max_ratio=ratio).all
    except RecipeError as error:
        # The square is alone: no rectangle of the ratio fits the area unless the square can still grow.
        assert "the only one" in str(error)  # noqa: PT017
        sides = range(multiple, int(square * ratio) + multiple, multiple)
        fitting = [(h, w) for h in sides for w in sides if h * w <= area and max(h, w) <= Fraction(ratio) * min(h, w)]
        assert ratio > 1
        assert max(min(h, w) for h, w in fitting) == square
        assert not any((h + multiple) * w > area and h * (w + multiple) > area for h, w in fitting if h != w)
        return
    assert (square, square) in found
    assert list(found) == sorted(set(found))
    for height, width in found:
        assert height * width <= area
        assert (height % multiple, width % multiple) == (0, 0)
        assert max(height, width) <= Fraction(ratio) * min(height, width)
        assert (width, height) in found


def test_tiers_follow_each_other_largest_first():
    found = buckets(area=[512**2, 256**2], multiple=64)
    assert found.tiers == (buckets(area=512**2).all, buckets(area=256**2).all)
    assert found.all == found.tiers[0] + found.tiers[1]
    assert found.all.index((512, 512)) < found.all.index((256, 256))


def make_bucket_resolutions(side, min_size, max_size, divisible):
    """What library/model_util.py of kohya-ss sd-scripts computes, (width, height)."""
    area, found = side * side, set()
    width = int(math.sqrt(area) // divisible) * divisible
    found.add((width, width))
    width = min_size
    while width <= max_size:
        height = min(max_size, int((area // width) // divisible) * divisible)
        if height >= min_size:
            found |= {(width, height), (height, width)}
        width += divisible
    return found


@pytest.mark.parametrize(("side", "multiple"), [(1024, 64), (512, 64), (768, 32), (640, 64)])
def test_kohyas_set_is_kohyas(side, multiple):
    expected = make_bucket_resolutions(side, 256, 2 * side, multiple)
    assert set(buckets(set="kohya", area=side * side, multiple=multiple).all) == expected
    if (side, multiple) == (1024, 64):
        assert set(buckets(set="kohya").all) == expected


@pytest.mark.parametrize("side", [256, 512, 768, 1024, 1536])
def test_nemos_set_is_nemos(side):
    # The ratios of MultiTierBucketCalculator, in floats as it computes them.
    names = ["1:2", "9:16", "2:3", "3:4", "4:5", "1:1", "5:4", "4:3", "3:2", "16:10", "5:3", "16:9", "2:1", "21:9"]
    expected = set()
    for across, down in (map(int, name.split(":")) for name in names):
        ratio = across / down
        height = round(int(math.sqrt(side * side / ratio)) / 64) * 64
        width = round(int(height * ratio) / 64) * 64
        while width * height > side * side:
            width, height = (width - 64, height) if width >= height else (width, height - 64)
        expected.add((height, width))
    assert set(buckets(set="nemo", area=side * side).all) == expected
    assert len(buckets(set="nemo").all) == 10  # at 1024 x 1024, several of the 14 ratios round to the same size


def test_a_list_is_sorted_by_height_and_is_one_tier():
    found = buckets(sizes=[[64, 32], [32, 64], [48, 48], [32, 32]])
    assert found.tiers == (((32, 32), (32, 64), (48, 48), (64, 32)),)


# The choice.

SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12, unique=True)


def order(bucket, height, width):
    """The order of preference: the factor between the aspect ratios, then the larger, then the taller."""
    ratio = Fraction(width * bucket[0], height * bucket[1])
    return max(ratio, 1 / ratio), -bucket[0] * bucket[1], -bucket[0]


@settings(max_examples=500, deadline=None)
@given(
    tiers=SIZES, image=st.tuples(st.integers(1, 60), st.integers(1, 60)), small=st.sampled_from(["enlarge", "reject"])
)
def test_an_image_goes_to_the_bucket_of_the_nearest_ratio(tiers, image, small):
    found = buckets(sizes=[list(size) for size in tiers], small=small)
    best = min(tiers, key=lambda bucket: order(bucket, *image))
    covered = image[0] >= best[0] and image[1] >= best[1]
    assert found.choose(*image) == Choice(found.all.index(best), small == "enlarge" or covered)


@settings(max_examples=500, deadline=None)
@given(image=st.tuples(st.integers(1, 80), st.integers(1, 80)), areas=st.sampled_from([[64**2, 32**2, 16**2], [40**2]]))
def test_a_small_image_goes_to_a_bucket_that_it_covers(image, areas):
    found = buckets(area=areas, multiple=8, small="smaller")
    enlarged = buckets(area=areas, multiple=8).choose(*image)
    choice = found.choose(*image)
    covered = [bucket for bucket in found.all if image[0] >= bucket[0] and image[1] >= bucket[1]]
    assert choice.fits == bool(covered)
    if not covered:
        assert choice.bucket == enlarged.bucket
        return
    nearest = [min(tier, key=lambda bucket: order(bucket, *image)) for tier in found.tiers]
    expected = next((bucket for bucket in nearest if bucket in covered), None)
    assert found.all[choice.bucket] == (expected or min(covered, key=lambda bucket: order(bucket, *image)))


def test_ties_go_to_the_larger_then_to_the_taller():
    found = buckets(sizes=[[32, 64], [64, 32], [16, 32], [32, 16]])
    assert found.all[found.choose(50, 50).bucket] == (64, 32)
    assert found.all[found.choose(50, 51).bucket] == (32, 64)


def test_the_ratio_is_a_factor_not_a_difference():
    # 1:1 is 1.9 times as wide as 1:1.9, and 2:1 only 2 / 1 times; by difference of ratios 1.45 is nearer to 1.
    found = buckets(sizes=[[100, 100], [100, 200]])
    assert found.all[found.choose(100, 142).bucket] == (100, 200)
    assert found.all[found.choose(100, 141).bucket] == (100, 100)


# Recipes and options.


@pytest.mark.parametrize(
    "table",
    [
        {"area": 1 << 20}, {"area": [1 << 20, 1 << 18], "multiple": 32, "max_ratio": 3}, {"set": "kohya"},
        {"set": "nemo", "area": 1 << 18, "small": "smaller"}, {"sizes": [[64, 32], [32, 64]], "small": "reject"},
    ],
)  # fmt: skip
def test_a_recipe_with_buckets_is_read_back(table):
    loaded = Recipe.from_dict(recipe(**table))
    again = Recipe.from_dict(loaded.to_dict())
    assert again == loaded
    assert again.bucket_sizes() == loaded.bucket_sizes() == Buckets.from_dict(table).all
    assert "size" not in loaded.to_dict()["columns"]["latent"]
    assert loaded.sized(1)["latent"].pixels == loaded.bucket_sizes()[1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "buckets need one of area, set and sizes"),
        ({"area": 0}, "area is a number of pixels from 1 to 4294967296"),
        ({"area": 1 << 33}, "area is a number of pixels from 1 to 4294967296"),
        ({"area": [1 << 18, 1 << 20]}, "falling numbers"),
        ({"area": 100}, "100 pixels has no bucket whose sides are multiples of 64: use a larger area"),
        ({"area": 128 * 128}, "the only one is 128 x 128"),
        ({"area": 1 << 20, "multiple": 0}, "multiple must be"),
        ({"area": 1 << 20, "multiple": 1, "max_ratio": 9}, "more than 999"),
        ({"area": [1 << 20, (1 << 20) - 1], "max_ratio": 1.3}, "is there twice"),
        ({"area": 1 << 20, "max_ratio": 0.5}, "max_ratio must be"),
        ({"area": 1 << 20, "max_ratio": float("nan")}, "max_ratio must be"),
        ({"set": "other"}, "set must be one of kohya, nemo"),
        ({"set": "kohya", "max_ratio": 2.0}, "max_ratio and buckets.set exclude each other"),
        ({"sizes": [[64, 64]], "area": 4096}, "area and buckets.sizes exclude each other"),
        ({"sizes": []}, "sizes must be a list"),
        ({"sizes": [[64]]}, "sizes must be a list"),
        ({"sizes": [[64, 64], [64, 64]]}, "64 x 64 is there twice"),
        ({"sizes": [[64, 0]]}, "sizes must be a list"),
        ({"area": 1 << 20, "small": "drop"}, "small must be one of"),
        ({"area": 1 << 20, "colour": 1}, "unknown field 'buckets.colour'"),
    ],
)
def test_buckets_that_cannot_be_are_refused(table, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(recipe(**table))


def test_size_and_buckets_exclude_each_other():
    both = recipe(area=1 << 20)
    both["columns"]["latent"]["size"] = 256
    with pytest.raises(RecipeError, match="exclude each other"):
        Recipe.from_dict(both)
    default = Recipe.load("default")
    with pytest.raises(RecipeError, match="exclude each other"):
        default.override(size=256, buckets="kohya")
    with_buckets = default.override(small="reject", buckets="64x32,32x64")
    assert with_buckets.buckets.small == "reject"
    assert with_buckets.override(buckets=[[8, 8]]).buckets == buckets(sizes=[[8, 8]], small="reject")
    assert with_buckets.override(size=(64, 32)).buckets is None
    with pytest.raises(RecipeError, match="has no buckets: small does not apply"):
        default.override(small="reject")


def test_a_column_of_a_bucket_has_no_shape_of_its_own():
    for field, value in (("shape", [16, 8, 8]), ("encoding", "ndarray:uint8:16,8,8")):
        shaped = recipe(area=1 << 20)
        shaped["columns"]["latent"][field] = value
        with pytest.raises(RecipeError, match="has that of its bucket"):
            Recipe.from_dict(shaped)


def test_sizes_are_squares_or_rectangles():
    columns = {"latent": {"from": "latent", "size": [64, 32]}}
    loaded = Recipe.from_dict({"name": "test", "columns": columns})
    assert loaded.columns["latent"].pixels == (64, 32)
    assert Recipe.from_dict(loaded.to_dict()) == loaded
    for size, kept in ((64, 64), ([64, 64], 64), ((64, 32), (64, 32))):
        columns["latent"]["size"] = size
        assert Recipe.from_dict({"name": "test", "columns": columns}).columns["latent"].size == kept
    for size in (0, -1, [64], [64, 0], [1, 2, 3], "64", 1.5, True, [64, True]):
        columns["latent"]["size"] = size
        with pytest.raises(RecipeError, match=r"columns\.latent\.size must be"):
            Recipe.from_dict({"name": "test", "columns": columns})


@pytest.mark.parametrize(
    ("option", "table"),
    [
        ("kohya", {"set": "kohya"}), ("NeMo", {"set": "nemo"}),
        ("1048576", {"area": [1048576]}), (1048576, {"area": [1048576]}),
        ("1048576,262144", {"area": [1048576, 262144]}), ("64x32", {"sizes": [(64, 32)]}),
        ("64x32,32X64", {"sizes": [(64, 32), (32, 64)]}), ([(64, 32)], {"sizes": [(64, 32)]}),
        ({"area": 4096}, {"area": 4096}),
    ],
)  # fmt: skip
def test_the_forms_of_the_option(option, table):
    assert parse_buckets(option) == table


@pytest.mark.parametrize("option", ["nobody", "64x", "64x32x16", "1.5", ""])
def test_other_forms_are_refused(option):
    with pytest.raises(RecipeError, match="name a set"):
        parse_buckets(option)


def test_conditioning_adds_three_columns():
    found = Recipe.load("default").override(buckets="nemo", conditioning=True).columns
    for name in ("original_size", "crop_top_left", "bucket"):
        assert (found[name].content, found[name].encoding) == (name, "ndarray:int32:2")
    columns = {"bucket": {"from": "bucket", "encoding": "json"}}
    with pytest.raises(RecipeError, match="must be ndarray:int32:2"):
        Recipe.from_dict({"name": "test", "columns": columns | {"latent": {"from": "latent"}}})
    columns = {f"latent_{size}": {"from": "latent", "size": size} for size in (32, 64)}
    with pytest.raises(RecipeError, match="of one size, and the recipe stores 2"):
        Recipe.from_dict({"name": "test", "columns": columns}).override(conditioning=True)
