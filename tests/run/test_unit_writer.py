"""Writing and publishing units."""

from latentq.run.unit_writer import publish_unit
from latentq.run.units import UnitFacts
from latentq.store.local import bytes_below
from latentq.system.progress import Progress


def test_bytes_of_a_unit_that_another_process_published_are_not_counted(tmp_path):
    with Progress(2, "encode", None) as bar:
        for _ in range(2):
            facts = UnitFacts(card="card", listing="list")
            publish_unit(tmp_path / "00000", {"x": "int"}, facts, bar, lambda writer: writer.write_sample({"x": 1}))
        assert bar._written == bytes_below(tmp_path / "00000")
