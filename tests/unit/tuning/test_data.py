"""Rows are read as text from every kind of file, or refused with the place of what is wrong."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.objects.memory import shared_memory_store
from promptstore.tuning.data import load_rows, load_task_rows
from promptstore.tuning.row_formats import read_csv, read_jsonl
from promptstore.tuning.rows import Rows

ROWS = [{"text": "good, even great", "label": "yes"}, {"text": 'a "bad"\nfilm — naïve', "label": "no"}]


def jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def csv_file(path: Path) -> str:
    path.write_text('text,label\n"good, even great",yes\n"a ""bad""\nfilm — naïve",no\n', encoding="utf-8")
    return str(path)


def parquet(path: Path) -> str:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return str(path)


def test_every_format_gives_the_same_rows_and_digest(tmp_path: Path) -> None:
    sources = [jsonl(tmp_path / "a.jsonl", ROWS), csv_file(tmp_path / "a.csv"), parquet(tmp_path / "a.parquet")]

    loaded = [load_rows(source) for source in sources]

    assert [list(rows) for rows in loaded] == [ROWS] * 3
    assert len({rows.digest for rows in loaded}) == 1


def test_the_digest_tells_rows_and_their_order_apart() -> None:
    changed = [{**ROWS[0], "label": "no"}, ROWS[1]]

    assert len({Rows.of(rows).digest for rows in (ROWS, ROWS[::-1], changed, ROWS[:1])}) == 4


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}\n')

    assert load_rows(str(tmp_path / "a.jsonl")).numbers == (2, 4)
    assert load_rows(csv_file(tmp_path / "a.csv")).numbers == (2, 4), "the second row ends on line 4"


def test_rows_of_an_object_store_are_read_through_its_driver() -> None:
    shared_memory_store("data").put("sets/a.jsonl", b'{"text": "good"}\n')

    assert list(load_rows("memory://data/sets/a.jsonl")) == [{"text": "good"}]
    with pytest.raises(NotFoundError, match=r"sets/b\.jsonl"):
        load_rows("memory://data/sets/b.jsonl")


def test_numbers_and_booleans_become_text_and_nulls_are_absent(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"a": 1, "b": True, "c": 0.5, "d": None, "e": ["x", {"y": 1}]}])

    assert list(load_rows(source)) == [{"a": "1", "b": "true", "c": "0.5", "e": '["x", {"y": 1}]'}]


def test_a_task_reads_the_fields_it_uses_and_no_others(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", [{**row, "id": str(index)} for index, row in enumerate(ROWS)])
    validation = jsonl(tmp_path / "b.jsonl", ROWS[:1])
    labels = (Label("yes", "yes"), Label("no", "no"))
    task = TaskSpec("t", "classification", "{text}", DataSource(train, validation), labels)

    read = load_task_rows(task)

    assert [list(rows) for rows in read] == [ROWS, ROWS[:1]]
    assert read[0].digest == Rows.of(ROWS).digest, "a column that nobody reads does not change the data"


def test_a_row_that_lacks_a_field_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [*ROWS, {"text": "x", "lable": "no"}])

    with pytest.raises(InvalidInputError, match=r"a\.jsonl, row 3: field 'label' is missing; the row has lable, text"):
        load_rows(source, fields=("text", "label"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', r"line 2: not a line of UTF-8 JSON"),
        (b'{"text": "a"}\n["b"]\n', r"line 2: expected a JSON object, found list"),
        (b'{"text": "caf\xe9"}\n', r"line 1: not a line of UTF-8 JSON"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)

    with pytest.raises(InvalidInputError, match=rf"a\.jsonl, {message}"):
        load_rows(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,yes\nb,c,no\n", r"line 3: 3 fields, the header has 2"),
        (b"text,label\na\n", r"line 2: 1 fields, the header has 2"),
        (b'text,label\n"a,yes\n', r"not valid CSV"),
        (b"text,text\na,b\n", r"line 1: a column name is repeated"),
        (b"text,label\na,yes\ncaf\xe9,no\n", r"line 3: not UTF-8"),
    ],
)
def test_a_broken_csv_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    with pytest.raises(InvalidInputError, match=message):
        load_rows(str(tmp_path / "a.csv"))


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,yes\r\n")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a", "label": "yes"}\r\n')

    assert list(load_rows(str(tmp_path / "a.csv"))) == list(load_rows(str(tmp_path / "a.jsonl")))


def test_a_file_that_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")

    with pytest.raises(InvalidInputError, match="is not a Parquet file"):
        load_rows(str(tmp_path / "a.parquet"))


def test_a_file_that_does_not_exist_and_a_kind_nobody_reads_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no data file"):
        load_rows(str(tmp_path / "a.jsonl"))
    with pytest.raises(InvalidInputError, match=r"data source 'a\.xlsx' is of unknown kind"):
        load_rows("a.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InvalidInputError, match=r"folder\.csv cannot be read"):
        load_rows(str(tmp_path / "folder.csv"))


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["text", "label", "naïve"]), st.text(st.characters(exclude_categories=["Cs"]))),
        max_size=5,
    )
)
def test_any_text_survives_jsonl(rows: list[dict[str, str]]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

    assert [row for _, row in read_jsonl(data, "a")] == rows


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("abc,\"'\n ")), max_size=5))
def test_any_text_survives_csv(pairs: list[tuple[str, str]]) -> None:
    import csv
    import io

    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *pairs])

    read = [row for _, row in read_csv(out.getvalue().encode(), "a")]

    assert read == [{"a": first, "b": second} for first, second in pairs]


def test_rows_can_be_sliced_and_keep_their_places() -> None:
    rows = Rows.of(ROWS * 3, "a.jsonl")

    part = rows[2:4]

    assert (list(part), part.numbers, part.source) == (ROWS, (3, 4), "a.jsonl")
    assert rows[-1] == ROWS[1]


@pytest.mark.parametrize("source", ["hf:sst2", "hf:/train", "hf:", "hf:a:b"])
def test_a_hub_source_without_split_is_refused_with_the_form(source: str) -> None:
    with pytest.raises(InvalidInputError, match="expected hf:<data set>"):
        list(load_rows(source))


def test_without_the_datasets_library_a_hub_source_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(NotFoundError, match="needs the datasets library"):
        load_rows("hf:sst2/train")


def test_class_ids_of_a_hub_become_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    table = datasets.Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    asked: list[object] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> object:
        asked.append((name, config, split, revision))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    rows = load_rows("hf:nyu-mll/glue@v1:sst2/train[:10%]")

    assert asked == [("nyu-mll/glue", "sst2", "train[:10%]", "v1")]
    assert list(rows) == [
        {"sentence": "a", "label": "positive"},
        {"sentence": "b", "label": "negative"},
        {"sentence": "c"},
    ]
