"""Two lists compared by key, whatever their order and the number of buckets."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq.run import join
from latentq.run.join import added_samples, compare_lists, updated_units
from latentq.run.sample_list import SampleList, cut_into_units, list_parts, write_list
from latentq.sources import Sample

SAMPLES = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 3)).map(lambda sample: Sample(str(sample[0]), sample[1])),
    min_size=1,
    max_size=60,
)


def listed(folder, samples):
    write_list(folder, list_parts((unit, 0) for unit in cut_into_units(samples, 4)))
    return SampleList(folder)


@settings(max_examples=100, deadline=None)
@given(old=SAMPLES, new=SAMPLES, bucket=st.integers(1, 70), batch=st.integers(1, 70))
def test_an_updated_list_has_the_samples_of_the_source(tmp_path_factory, old, new, bucket, batch):
    folder = tmp_path_factory.mktemp("join")
    before, after = listed(folder / "old", old), listed(folder / "new", new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join, "_BUCKET", bucket)
        patch.setattr(join, "_DISTRIBUTED", batch)
        difference = compare_lists(before, after, folder)
    units = [*updated_units(before, after, difference, 1)]
    added = [*added_samples(after, difference)]
    assert Counter(sample for unit, _ in units for sample in unit) + Counter(added) == Counter(new)
    by_key = defaultdict(lambda: ([], []))
    for side, samples in enumerate((old, new)):
        for sample in samples:
            by_key[sample.key][side].append(sample)
    pairs = [pair for sides in by_key.values() for pair in zip(*sides, strict=False)]
    assert difference.changes.changed == sum(one != other for one, other in pairs)
    assert difference.changes.removed == len(old) - len(pairs)
    assert difference.changes.added == len(new) - len(pairs) == len(added)
    for unit, (samples, revision) in zip(before.units(), units, strict=True):
        assert (revision == 0) == (samples == before.samples(unit))
