import pytest

from prompt_tuning.cli.reports.layout import WIDTH, block, many, size, table


def test_lines_stand_beside_their_labels():
    rows = [("base", "one"), ("a longer label", ["two", "  up to  8", "three"])]
    assert block("Title", rows).split("\n") == [
        "Title",
        "  base            one",
        "  a longer label  two",
        "                    up to  8",
        "                  three",
    ]


def test_long_text_is_wrapped_and_paths_and_tables_are_not():
    path = "/a-folder" * 20
    text = f"words and more {'words ' * 30}{path}"
    columns = "8  16  24 " * 20
    lines = block("Title", [("data", [text, columns])]).split("\n")
    assert any(line.strip() == path for line in lines)
    assert lines[-1] == f"  data  {columns}".replace("data", "    ")
    prose = [line for line in lines[:-1] if path not in line]
    assert len(prose) > 2 and all(len(line) <= WIDTH for line in prose)


def test_numbers_of_a_table_stand_under_each_other():
    assert table(["", "step", "value"], [["loss", "5", "1.25"], ["accuracy", "1,000", "9"]]) == [
        "           step  value",
        "loss          5   1.25",
        "accuracy  1,000      9",
    ]


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (2_296_320, "2.2 MiB")],
)
def test_bytes_are_said_in_the_unit_that_fits(count, said):
    assert size(count) == said


def test_one_of_a_thing_is_not_many():
    assert many(1, "step") == "1 step"
    assert many(2000, "batch") == "2,000 batches"
