"""Tables as spreadsheets and other tools write them."""

import pytest

from latentq import LatentqError
from latentq.sources import Sample, open_source
from support.listing import listed

ROWS = (Sample("a.png", None, 1, caption="one"), Sample("b.png", None, 0, caption="two, three"))


def table(folder, text, name="t.csv"):
    (folder / name).write_bytes(text.encode())
    return listed(open_source(folder / name))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"], ids=["semicolon", "tab", "bar"])
def test_a_csv_may_have_another_delimiter(tmp_path, delimiter):
    text = "path,label,caption\na.png,1,one\nb.png,0,two§ three\n".replace(",", delimiter).replace("§", ",")
    assert table(tmp_path, text).samples == ROWS
    assert table(tmp_path, "\ufeff" + text.replace("\n", "\r\n")).samples == ROWS


def test_a_csv_without_a_header_is_separated_by_commas(tmp_path):
    assert [s.key for s in table(tmp_path, "a;b.png,5\nc|d.png,6\n").samples] == ["a;b.png", "c|d.png"]
    assert [s.key for s in table(tmp_path, "a;b.png\nc|d.png\n").samples] == ["a;b.png", "c|d.png"]


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_blank_rows_of_a_table_are_skipped(tmp_path, name, delimiter):
    text = 'path,label,caption\n,,\na.png,1,one\n\n , ,\nb.png,0,"two§ three"\n,,\n'
    if delimiter == "\t":
        text = text.replace('"', "")
    assert table(tmp_path, text.replace(",", delimiter).replace("§", ","), name).samples == ROWS


def test_a_row_with_cells_but_without_a_path_is_an_error(tmp_path):
    with pytest.raises(LatentqError, match="line 4: the row has no path"):
        table(tmp_path, "path,caption\na.png,one\n,\n,two\n")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("quote", ["", '"'], ids=["plain", "quoted"])
def test_lines_may_end_with_cr_alone_as_on_an_old_mac(tmp_path, name, quote):
    text = f"path,label,caption\na.png,1,{quote}one{quote}\nb.png,0,{quote}two{quote}\n"
    text = text.replace(",", "," if name == "t.csv" else "\t").replace("\n", "\r")
    assert table(tmp_path, text, name).samples == (ROWS[0], ROWS[1]._replace(caption="two"))


def test_a_cr_within_a_line_of_a_tsv_is_text(tmp_path):
    assert table(tmp_path, "path\tcaption\na.png\tone\rmore\n", "t.tsv").samples[0].caption == "one\rmore"


@pytest.mark.parametrize("first", ["sep=;", "# my list"])
def test_a_header_below_another_line_is_an_error(tmp_path, first):
    with pytest.raises(LatentqError, match=r"t\.csv, line 2: the header is not in the first line"):
        table(tmp_path, f"{first}\npath,caption\na.png,one\n")
    (tmp_path / first).touch()  # if there is such a file, the table has no header
    assert [s.key for s in table(tmp_path, f"{first}\npath\n").samples] == [first, "path"]
