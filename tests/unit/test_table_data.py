"""Tables read from files, frames, mappings and arrays, and what is said about tables that are none."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from penlight.errors import BadInput
from penlight.inputs import Column, TableContract, batches
from penlight.inputs.table_data import open_table, read_row

COLUMNS = (Column("age", "years", 40.0, 10.0), Column("colour", values=("red", "green", "blue")), Column("size"))
CONTRACT = TableContract.of(COLUMNS, target="kind")
LABELS = ("cat", "dog")
TEXT = "size,kind,age,extra,colour\n1.5,dog,30,x,green\n-2,cat,41,y,red\n"
ROWS = [[30, 1, 1.5], [41, 0, -2]]


def write(tmp_path, text, name="pets.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TEXT, "pets.csv"),
        (TEXT.replace(",", ";"), "pets.csv"),
        (TEXT.replace(",", "\t"), "pets.csv"),
        (TEXT.replace(",", "\t"), "pets.tsv"),
        ("\ufeff" + TEXT, "pets.csv"),
        (TEXT.replace("\n", "\r\n"), "pets.csv"),
        (TEXT.replace(",x,", ',"a, ""b""\nc",') + "\n\n", "pets.csv"),
    ],
    ids=["comma", "semicolon", "tab", "tsv", "byte-order-mark", "crlf", "quoted"],
)
def test_columns_are_found_by_name_in_any_order(tmp_path, text, name):
    data = open_table(write(tmp_path, text, name), CONTRACT, LABELS)
    np.testing.assert_array_equal(data.rows, ROWS)
    np.testing.assert_array_equal(data.truth, [1, 0])
    assert data.classes == LABELS
    assert data.label(1) == (f"{name}:1", 0)
    assert data.read(0).dtype == np.float64


class Frame:
    """As much of a data frame as is needed."""

    def __init__(self, columns):
        self._columns, self.columns = columns, list(columns)

    def __getitem__(self, name):
        return self._columns[name]


MAPPING = {"kind": ["dog", "cat"], "size": [1.5, -2], "colour": ["green", "red"], "age": (30, 41)}


def test_frames_mappings_records_and_arrays_are_the_same_table():
    records = [dict(zip(MAPPING, values, strict=True)) for values in zip(*MAPPING.values(), strict=True)]
    structured = np.array([(30, "green", 1.5), (41, "red", -2)], [("age", "f8"), ("colour", "U9"), ("size", "f8")])
    for source in (MAPPING, Frame(MAPPING), records, structured, np.array(ROWS), [list(row) for row in ROWS]):
        np.testing.assert_array_equal(open_table(source, CONTRACT, LABELS).rows, ROWS)
    assert open_table(MAPPING, CONTRACT, LABELS).label(0) == ("table[0]", 1)
    assert open_table(np.array(ROWS), CONTRACT).truth is None


def test_rows_that_cannot_be_read_are_told_and_skipped(tmp_path):
    text = "age,colour,size\n30,red,1\n,red,1\n30,pink,1\n30,red,big\n30,red\n41,blue,2\n30,red,inf\n"
    data = open_table(write(tmp_path, text), CONTRACT)
    for row, told in [
        (1, "line 3 has no value in column 'age'"),
        (2, "line 4: 'pink' is no value of 'colour'; it takes red, green, blue"),
        (3, "line 5: 'big' in column 'size'"),
        (4, "line 6 has 2 cells, the header 3"),
        (6, "line 8: 'inf' in column 'size'"),
    ]:
        with pytest.raises(BadInput, match=f"pets.csv, {told}"):
            data.read(row)
    (batch,) = batches(data, 10)
    assert batch.index == (0, 5)
    assert [name for _, name, _ in batch.skipped] == [f"pets.csv:{n}" for n in (1, 2, 3, 4, 6)]
    assert np.isnan(data.rows[3, 2])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("age,colour,size\n", "has a header line and no rows"),
        (b"PK\x00\x01\x00", "binary file"),
        (b"\xff\xfe\x00a", "no UTF-8 text"),
        ("age,colour,size,age\n1,red,2,3\n", "more than one column 'age'"),
        ("age|colour|size\n1|red|2\n", "parted by commas, semicolons or tabs"),
        ("30,1,1.5\n41,0,-2\n", "no header line"),
        ("aage,colour,size\n1,red,2\n", "no column 'age', which the network takes; did you mean 'aage'\\? It has 3"),
        ("kind,colour\ndog,red\n", "no column 'age', nor 1 more"),
        (
            "age,colour,size,kind\n1,red,2,horse\n",
            "line 2: 'horse' in column 'kind' is no class; the model's are cat, dog",
        ),
        ("age,colour,size,kind\n1,red,2,2\n", "'2' in column 'kind' is no class"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, text, told):
    with pytest.raises(BadInput, match=told) as caught:
        open_table(write(tmp_path, text), CONTRACT, LABELS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere.csv", "there is no file"),
        (3, "a int is no table"),
        ({"age": [1, 2], "colour": ["red"], "size": [1, 2]}, "'age' has 2 values, 'colour' 1"),
        ({"age": [], "colour": [], "size": []}, "holds no rows"),
        (np.zeros((2, 4)), "the network takes 3 columns"),
        (np.array([[1, 5, 1.0]]), "5 is no value of 'colour'"),
        (np.array([["a", "b", "c"]]), "give numbers"),
        (Frame({"age": [1], "colour": ["red"]}), "no column 'size'"),
    ],
)
def test_what_is_no_table_in_memory_is_told(source, told):
    with pytest.raises(BadInput, match=told):
        open_table(source, CONTRACT)


def test_an_array_with_a_gap_is_read_but_for_that_row():
    data = open_table(np.array([[1, 0, np.nan], [1, 1, 2]]), CONTRACT)
    np.testing.assert_array_equal(data.read(1), [1, 1, 2])
    with pytest.raises(BadInput, match=r"array\[0\] has no finite number in column 'size'"):
        data.read(0)


def test_classes_are_names_numbers_or_unknown(tmp_path):
    text = "age,colour,size,kind\n1,red,2,1\n1,red,2,\n1,red,2,cat\n1,red,2,0.0\n"
    assert open_table(write(tmp_path, text), CONTRACT, LABELS).truth.tolist() == [1, -1, 0, 0]
    assert open_table(write(tmp_path, text), CONTRACT, LABELS).label(1)[1] is None
    free = open_table(write(tmp_path, text.replace("cat", "2")), CONTRACT)
    assert (free.classes, free.truth.tolist()) == (("0", "1", "2"), [1, -1, 2, 0])


def test_a_column_of_different_names_names_the_rows(tmp_path):
    text = "ID,age,colour,size\np1,1,red,2\np2,1,red,2\n"
    assert open_table(write(tmp_path, text), CONTRACT).label(1) == ("p2", None)
    assert open_table(write(tmp_path, text.replace("p2", "p1")), CONTRACT).label(1) == ("pets.csv:1", None)


def test_one_row_from_whatever_there_is(tmp_path):
    path = write(tmp_path, TEXT)
    data = open_table(path, CONTRACT, LABELS)
    series = types.SimpleNamespace(to_dict=lambda: {"age": 41, "colour": "red", "size": -2})
    for source in (
        "data:1", f"{path}:1", {"age": 41, "colour": "red", "size": -2}, series, (41, "red", -2), np.array(ROWS[1]),
        [41.0, 0, "-2"],
    ):  # fmt: skip
        np.testing.assert_array_equal(read_row(source, CONTRACT, data), ROWS[1])
    one = write(tmp_path, "age,colour,size\n41,red,-2\n", "one.csv")
    np.testing.assert_array_equal(read_row(one, CONTRACT), ROWS[1])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("data:0", "there is no data for 'data:0'"),
        ("{}", "pets.csv has 2 rows; name one of them"),
        ("{}:2", "pets.csv has rows 0 to 1; there is no 2"),
        ("none.csv:2", "there is no file none.csv"),
        ((1, 2), "the row has 2 values, the network takes 3"),
        ((1, "pink", 2), "the row: 'pink' is no value of 'colour'"),
        ((1, 7, 2), "7 is no value of 'colour'"),
        ({"age": 1, "colour": "red", "size": None}, "the row has no value in column 'size'"),
        ({"age": 1, "color": "red", "size": 2}, "did you mean 'color'"),
        (7, "a int is no row"),
    ],
)
def test_what_is_no_row_is_told(tmp_path, source, told):
    path = write(tmp_path, TEXT)
    with pytest.raises(BadInput, match=told):
        read_row(source.format(path) if isinstance(source, str) else source, CONTRACT)


def test_parquet_is_read_where_pyarrow_is(tmp_path, monkeypatch):
    path = write(tmp_path, b"PAR1", "pets.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match=r"pip install 'penlight\[tables\]'"):
        open_table(path, CONTRACT)
    columns = {name: types.SimpleNamespace(to_pylist=lambda v=values: list(v)) for name, values in MAPPING.items()}
    table = types.SimpleNamespace(column_names=list(columns), column=columns.__getitem__)
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", types.SimpleNamespace(read_table=lambda path: table))
    np.testing.assert_array_equal(open_table(path, CONTRACT, LABELS).rows, ROWS)


def test_the_fingerprint_is_of_values_classes_and_names(tmp_path):
    first = open_table(write(tmp_path, TEXT), CONTRACT, LABELS).fingerprint()
    assert open_table(write(tmp_path, TEXT.replace(",x,", ",z,")), CONTRACT, LABELS).fingerprint() == first
    for changed in (TEXT.replace("41", "42"), TEXT.replace("cat", "dog"), TEXT.replace("41", "")):
        assert open_table(write(tmp_path, changed), CONTRACT, LABELS).fingerprint() != first


def test_pandas_frames_and_their_parquet_files_are_the_same_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: list(values) for name, values in MAPPING.items()})
    np.testing.assert_array_equal(open_table(frame, CONTRACT, LABELS).rows, ROWS)
    np.testing.assert_array_equal(open_table(frame.convert_dtypes(), CONTRACT, LABELS).rows, ROWS)
    np.testing.assert_array_equal(
        open_table(frame.sample(frac=1, random_state=0).sort_index(), CONTRACT, LABELS).rows, ROWS
    )
    row = read_row(frame.iloc[0], CONTRACT)
    np.testing.assert_array_equal(row, ROWS[0])
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "pets.parquet")
    found = open_table(tmp_path / "pets.parquet", CONTRACT, LABELS)
    np.testing.assert_array_equal(found.rows, ROWS)
    assert found.label(0)[0] == "pets.parquet:0"
    np.testing.assert_array_equal(read_row(f"{tmp_path / 'pets.parquet'}:1", CONTRACT), ROWS[1])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "pets.parquet").read_bytes()[:200])
    with pytest.raises(BadInput, match=r"cut\.parquet"):
        open_table(tmp_path / "cut.parquet", CONTRACT)
