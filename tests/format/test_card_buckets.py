"""Cards of datasets with buckets: a shape for each bucket, and the card of one."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import Card, FormatError, Quantizer
from latentq.format.facts import AutoencoderFacts, LatentFacts, SampleCounts, SourceFacts, TokenFacts
from latentq.format.normalization import Normalization
from latentq.format.recipe import Recipe

SHAPES = ((4, 3, 2), (4, 2, 3), (4, 5, 1))


def card_of(shapes=SHAPES, counts=(3, 0, 4), bits=8):
    columns = {"latent": "ndarray:uint8:4,3,2", "tokens": "ndarray:uint16:3,2", "key": "str"}
    if bits != 8:
        columns["latent"] = f"ndarray:uint8:{-(-4 * 3 * 2 * bits // 8)}"
    data = {"latent": {"from": "latent"}, "tokens": {"from": "tokens"}, "key": {"from": "key", "encoding": "str"}}
    return Card(
        source=SourceFacts("folder", 9, "0" * 64),
        recipe=Recipe.from_dict({"name": "test", "columns": data}),
        autoencoder=AutoencoderFacts("toy", "Toy", "", Normalization(), (-1.0, 1.0)),
        columns=columns,
        latents={
            "latent": LatentFacts(shapes[0], Quantizer.uniform(-1.0, 1.0, channels=4, bits=bits), shapes=tuple(shapes))
        },
        tokens={"tokens": TokenFacts(shapes[0][1:], "uint16", 100, tuple(shape[1:] for shape in shapes))},
        counts=SampleCounts(7, 2, buckets=counts),
        versions={},
    )


def test_a_card_with_buckets_is_read_as_it_was_written():
    card = card_of()
    data = tomllib.loads(card.to_toml().decode())
    assert data["counts"]["buckets"] == [3, 0, 4]
    assert data["latents"]["latent"]["shapes"] == [list(shape) for shape in SHAPES]
    assert "shape" not in data["latents"]["latent"] | data["tokens"]["tokens"]
    assert Card.from_dict(data) == card
    assert card.buckets == 3


@settings(max_examples=20, deadline=None)
@given(bucket=st.integers(0, 2), bits=st.integers(2, 8))
def test_the_card_of_a_bucket_has_its_shapes_and_encodings(bucket, bits):
    channels, height, width = SHAPES[bucket]
    card = card_of(bits=bits).for_bucket(bucket)
    assert card.latents["latent"].shape == SHAPES[bucket]
    assert card.latents["latent"].shapes == card.tokens["tokens"].shapes == ()
    packed = -(-channels * height * width * bits // 8)
    assert card.columns == {
        "latent": f"ndarray:uint8:{channels},{height},{width}" if bits == 8 else f"ndarray:uint8:{packed}",
        "tokens": f"ndarray:uint16:{height},{width}",
        "key": "str",
    }
    assert card.for_bucket(2) == card  # without buckets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["latents"]["latent"].update(shapes=[]), "shapes"),
        (lambda data: data["latents"]["latent"].update(shape=[4, 3, 2]), "next to shape"),
        (lambda data: data["latents"]["latent"]["shapes"].pop(), r"3 buckets, other columns 2"),
        (lambda data: data["latents"]["latent"]["shapes"].append([4, 0, 1]), r"must be \(C, h, w\)"),
        (lambda data: data["latents"]["latent"]["shapes"].append([3, 1, 1]), "4 and 3 channels"),
        (lambda data: data["tokens"]["tokens"]["shapes"].append([3]), r"must be \(h, w\)"),
        (lambda data: data["counts"].pop("buckets"), "counts.buckets has 0 buckets, other columns 3"),
        (lambda data: data["counts"].update(buckets=[7]), "counts.buckets has 1 bucket, other columns 3"),
        (lambda data: data["counts"].update(buckets=[3, 0, 5]), "counts.buckets hold 8 of 7 samples"),
        (lambda data: data["counts"].update(buckets=[8, -1, 0]), "must be a count"),
        (lambda data: data["counts"].update(buckets=3), "cannot be understood"),
    ],
)
def test_a_card_whose_buckets_do_not_agree_is_refused(change, message):
    data = card_of().to_dict()
    change(data)
    with pytest.raises(FormatError, match=message):
        Card.from_dict(data)
