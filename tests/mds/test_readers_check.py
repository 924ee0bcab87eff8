"""The check of `make test-readers`: it fails if a reader reads something else than docs/mds.md says, and only then."""

import pytest

from readers import check


@pytest.fixture
def outcomes(monkeypatch):
    """Returns the rows that each reader reads according to docs/mds.md, by column of its table."""
    readers, cells = check.table()
    found = [{name: row[column] for name, row in cells.items()} for column in range(len(readers))]
    monkeypatch.setattr(check.datasets, "make_all", lambda _: None)
    monkeypatch.setattr(check, "python_of", lambda name, version: readers.index((name, version)))
    monkeypatch.setattr(check, "outcomes_of", lambda column, _: found[column])
    return found


def test_readers_that_read_what_the_page_says_pass(outcomes, capsys):
    assert check.main() is None
    assert len(capsys.readouterr().out.splitlines()) == len(outcomes) == 3


def test_a_reader_that_reads_less_fails(outcomes):
    outcomes[1]["buckets"] = "KeyError: latent"
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert str(ended.value) == "streaming-community 0.14, buckets: KeyError: latent; the table says yes"


def test_a_dataset_that_the_page_lacks_fails(outcomes):
    outcomes[0]["new"] = "yes"
    with pytest.raises(SystemExit, match="differ in new"):
        check.main()
