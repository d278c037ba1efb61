import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from prompt_tuning.data.tables import is_table, read_rows, read_tsv
from prompt_tuning.errors import DataError

EMPTY = "{path} is empty or has only the names of its columns: there are no examples in it."


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


@pytest.fixture
def parquet(tmp_path):
    def make(columns):
        path = str(tmp_path / "train.parquet")
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
        return path

    return make


def fields(path):
    return [dict(row.fields) for row in read_rows(path)]


@pytest.mark.parametrize(
    "name",
    [
        "a.tsv",
        "a.csv",
        "a.jsonl",
        "a.parquet",
        "a.txt",
        "a.TSV",
        "b/a.b.csv.gz",
        "a.txt.gz",
        "gs://b/a.jsonl.gz",
    ],
)
def test_a_table_is_known_by_its_ending(name):
    assert is_table(name)


@pytest.mark.parametrize(
    "name", ["tsv", "txt", "sst2", "a.md", "a.parquet.gz", "a.tsv.xz", "a.tsv/"]
)
def test_other_names_are_no_tables(name):
    assert not is_table(name)


def test_another_ending_is_refused():
    with pytest.raises(DataError) as caught:
        read_rows("a.md")
    assert str(caught.value) == (
        "a.md is no table. Its name should end with one of: .tsv, .csv, .jsonl, .txt, .parquet, "
        ".tsv.gz, .csv.gz, .jsonl.gz, .txt.gz."
    )


def test_tabs_separate_and_quotes_mean_nothing(write):
    path = write("train.tsv", 'a\tb\n"x\t"y, z"\n\u2028 \x0c\t\n')
    assert fields(path) == [{"a": '"x', "b": '"y, z"'}, {"a": "\u2028 \x0c", "b": ""}]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_every_line_of_a_text_is_an_input(write, packed):
    text = '\ufeffa\tb "c", d\r\n\n  \u2028 \x0c e \nlast'.encode()
    path = write("a.txt.gz" if packed else "a.txt", gzip.compress(text) if packed else text)
    rows = list(read_rows(path))
    lines = ['a\tb "c", d', "", "  \u2028 \x0c e ", "last"]
    assert [dict(row.fields) for row in rows] == [{"inputs": line} for line in lines]
    assert [row.place for row in rows] == [f"{path}, line {number}" for number in (1, 2, 3, 4)]


def test_csv_fields_may_hold_what_separates_them(write):
    path = write("train.csv", 'a,b\r\n"x, ""y""","1\r\n2"\r\nlast,\u2028\r\n')
    rows = list(read_rows(path))
    assert [dict(row.fields) for row in rows] == [
        {"a": 'x, "y"', "b": "1\r\n2"},
        {"a": "last", "b": "\u2028"},
    ]
    assert [row.place for row in rows] == [f"{path}, line 2", f"{path}, line 4"]


def test_a_csv_field_may_be_long(write):
    assert len(fields(write("train.csv", f"a\n{'x' * 200_000}\n"))[0]["a"]) == 200_000


def test_json_values_stay_as_they_are_written(write):
    line = '{"a": 1.10, "b": true, "c": null, "d": [1.10, {"e": "ü"}], "f": "1\\u00e9", "g": -0}'
    assert fields(write("train.jsonl", line)) == [
        {"a": "1.10", "b": "true", "c": None, "d": '[1.1, {"e": "ü"}]', "f": "1é", "g": "-0"}
    ]


def test_keys_of_json_lines_may_come_in_any_order(write):
    path = write("train.jsonl", '{"a": 1, "b": 2}\n{"b": 4, "a": 3}\n')
    assert fields(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_parquet_columns_become_text(parquet):
    path = parquet(
        {
            "text": ["é", None, "c"],
            "number": [1, 2, 3],
            "share": [0.5, 1.0, 2.25],
            "flag": [True, False, True],
            "kind": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "list": [[1], [], [2, 3]],
            "nothing": pyarrow.nulls(3),
        }
    )
    rows = list(read_rows(path))
    assert [row.place for row in rows] == [f"{path}, row {i}" for i in (1, 2, 3)]
    assert [list(row.fields.values()) for row in rows] == [
        ["é", "1", "0.5", "true", "x", "[1]", None],
        [None, "2", "1", "false", "y", "[]", None],
        ["c", "3", "2.25", "true", "x", "[2, 3]", None],
    ]


def test_a_byte_order_mark_is_no_part_of_a_name(write):
    assert fields(write("train.csv", "\ufeffa\n\ufeffb\n")) == [{"a": "\ufeffb"}]


@pytest.mark.parametrize(("name", "text"), [("t.tsv.gz", "a\n1\n"), ("t.jsonl.GZ", '{"a": 1}')])
def test_packed_files_are_unpacked(write, name, text):
    assert fields(write(name, gzip.compress(text.encode()))) == [{"a": "1"}]


def test_rows_are_read_as_they_are_asked_for(write):
    path = write("train.tsv", "a\n1\n2\t3\n")
    rows = read_rows(path)
    assert next(rows).fields == {"a": "1"}
    with pytest.raises(DataError, match="line 3 has 2 fields"):
        next(rows)


def test_a_tab_separated_file_may_have_any_name(write):
    assert [dict(row.fields) for row in read_tsv(write("data", "a\tb\r\n1\t2"))] == [
        {"a": "1", "b": "2"}
    ]


DAMAGED = {
    "empty": ("t.tsv", "", EMPTY),
    "empty csv": ("t.csv", "", EMPTY),
    "empty json": ("t.jsonl", "", EMPTY),
    "header only": ("t.csv", "a,b\n", EMPTY),
    "missing column": (
        "t.tsv",
        "a\tb\n1\t2\n3\n",
        "{path}, line 3 has 1 fields, but the first line names 2 columns: a, b.",
    ),
    "surplus column": (
        "t.csv",
        'a,b\n"1\n1",2\n3,4,5\n',
        "{path}, line 4 has 3 fields, but the first line names 2 columns: a, b.",
    ),
    "blank line": (
        "t.csv",
        "a,b\n1,2\n\n",
        "{path}, line 3 has 0 fields, but the first line names 2 columns: a, b.",
    ),
    "same name": ("t.tsv", "a\ta\n1\t2\n", "{path} has two columns named 'a'. Rename one."),
    "not UTF-8": (
        "t.tsv",
        "a\nb\ncafé\n".encode("latin-1"),
        "{path}, line 3 is not UTF-8 text: byte 4 of the line is 0xe9. Save the file as UTF-8.",
    ),
    "UTF-16": (
        "t.csv",
        "a\n1\n".encode("utf-16"),
        "{path}, line 1 is not UTF-8 text: byte 1 of the line is 0xff. It looks like UTF-16. Save "
        "the file as UTF-8.",
    ),
    "quote that stays open": (
        "t.csv",
        'a\n1\n"x\ny\n',
        "{path}, line 3 is not CSV: unexpected end of data. A field with a comma, a quote or a "
        'line end stands in "quotes", with the quotes in it doubled; use .tsv for files that are '
        "never quoted.",
    ),
    "quote in a field": (
        "t.csv",
        'a\n"x" y\n',
        "{path}, line 2 is not CSV: ',' expected after '\"'. A field with a comma, a quote or a "
        'line end stands in "quotes", with the quotes in it doubled; use .tsv for files that are '
        "never quoted.",
    ),
    "bad JSON": (
        "t.jsonl",
        '{"a": 1}\n{"a": }\n',
        "{path}, line 2 is not JSON: Expecting value at character 7. Write one object a line.",
    ),
    "no number of JSON": (
        "t.jsonl",
        '{"a": NaN}\n',
        "{path}, line 1 is not JSON: NaN is no JSON value. Write one object a line.",
    ),
    "JSON over lines": (
        "t.jsonl",
        '{\n"a": 1}\n',
        "{path}, line 1 is not JSON: Expecting property name enclosed in double quotes at "
        "character 1. Write one object a line.",
    ),
    "no object": (
        "t.jsonl",
        "[1, 2]\n",
        "{path}, line 1 is not a JSON object, like {{...}}, but: [1, 2]",
    ),
    "other keys": (
        "t.jsonl",
        '{"a": 1, "b": 2}\n{"a": 1}\n',
        "{path}, line 2 has the keys a, but line 1 has a, b. All lines need the same; write null "
        "where a value is not known.",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_does_not_fit_is_refused(write, case):
    name, content, message = DAMAGED[case]
    path = write(name, content)
    with pytest.raises(DataError, match=f"^{re.escape(message.format(path=path))}$"):
        list(read_rows(path))


def test_half_a_character_is_no_text(write):
    path = write("t.jsonl", json.dumps({"a": "\ud800"}))
    with pytest.raises(DataError, match="line 1 is not JSON: 'utf-8' codec can't encode"):
        list(read_rows(path))


def test_deep_json_is_refused(write):
    path = write("t.jsonl", '{"a": ' + "[" * 100_000)
    with pytest.raises(DataError, match="line 1 is not JSON: "):
        list(read_rows(path))


@pytest.mark.parametrize("cut", [5, -9])
def test_a_damaged_packed_file_is_reported(write, cut):
    packed = gzip.compress(b"a\n" + b"12345\n" * 1000)
    path = write("t.tsv.gz", packed[:cut])
    with pytest.raises(DataError, match=f"^Cannot read the task file '{re.escape(path)}': "):
        list(read_rows(path))


def test_what_is_not_packed_is_reported(write):
    path = write("t.tsv.gz", "a\n1\n")
    with pytest.raises(DataError, match="Not a gzipped file"):
        list(read_rows(path))


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"^Cannot read the task file '.*': .*No such file"):
        read_rows(str(tmp_path / "t.tsv"))


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense PAR1", b"a,b\n1,2\n"])
def test_what_is_no_parquet_file_is_reported(write, content):
    path = write("t.parquet", content)
    with pytest.raises(DataError, match=f"^Cannot read the Parquet file {re.escape(path)}: "):
        list(read_rows(path))


def test_an_empty_parquet_file_is_reported(parquet):
    path = parquet({"a": pyarrow.array([], pyarrow.string())})
    with pytest.raises(DataError, match=f"^{re.escape(EMPTY.format(path=path))}$"):
        read_rows(path)


def test_bytes_that_are_no_text_are_reported(parquet):
    path = parquet({"image": [b"\xff\xd8"]})
    with pytest.raises(DataError, match=r"column 'image' holds binary, which cannot be read as te"):
        list(read_rows(path))
