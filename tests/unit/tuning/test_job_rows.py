"""No fit ever sees a row that judges it, whatever happens to the data."""

from hypothesis import assume, given
from hypothesis import strategies as st

from promptstore.errors import InvalidInputError
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.rows import Rows

texts = st.lists(st.text(max_size=5), min_size=30, max_size=80)


def rows_of(found: list[str]) -> Rows:
    return Rows.of([{"text": text, "label": "yes"} for text in found])


def said(rows: Rows) -> set[str]:
    return {row["text"] for row in rows}


@given(texts, texts, st.randoms())
def test_a_row_stays_on_its_side_when_rows_are_added_repeated_and_shuffled(first, second, draw) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    later = first + second
    draw.shuffle(later)
    try:
        selection, held_out = split_validation(rows_of(first))
        selection_later, held_out_later = split_validation(rows_of(later))
    except InvalidInputError:
        assume(False)
    assert said(selection) <= said(selection_later)
    assert said(held_out) <= said(held_out_later)
    assert not said(selection_later) & said(held_out_later)


def test_about_a_third_picks_steps_and_rows_keep_their_order_and_number() -> None:
    selection, held_out = split_validation(rows_of([str(number) for number in range(3000)]))
    assert 800 < len(selection) < 1200
    assert len(held_out) == 1000
    assert list(held_out.numbers) == sorted(held_out.numbers)
    assert all(row["text"] == str(number - 1) for row, number in zip(held_out, held_out.numbers, strict=True))


def test_a_bound_on_held_out_rows_keeps_the_same_ones_when_data_is_added() -> None:
    small = said(split_validation(rows_of([str(number) for number in range(300)]), most_held_out=50)[1])
    grown = said(split_validation(rows_of([str(number) for number in range(330)]), most_held_out=50)[1])
    assert len(small & grown) > 35


def test_a_column_that_no_fit_reads_moves_no_row_to_the_other_side() -> None:
    plain = rows_of([str(number) for number in range(300)])
    sliced = Rows.of([{**row, "language": "de" if at % 3 else "en"} for at, row in enumerate(plain)])
    sides = [side.numbers for side in split_validation(plain)]
    assert [side.numbers for side in split_validation(sliced, by={"text", "label"})] == sides
    assert [side.numbers for side in split_validation(sliced)] != sides
    assert set(split_validation(sliced, by={"text", "label"})[1][0]) == {"text", "label", "language"}
