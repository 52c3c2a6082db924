"""The ledger: used, bad, why; an error or a count, and never silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import DataError
from data.ledger import NUM_SHOWN, BadRow, Ledger

EMPTY = "has an empty answer"


def rows(number: int, source: str = "bad") -> list[BadRow]:
    return [BadRow(source, str(i), EMPTY) for i in range(number)]


def filled(num_good: int, num_bad: int, max_bad_ratio: float = 0.5) -> Ledger:
    ledger = Ledger(skip=True, max_bad_ratio=max_bad_ratio)
    ledger.add("good", num_good, rows(num_bad, "good"))
    return ledger


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_without_skip_a_bad_row_stops_and_is_named() -> None:
    with pytest.raises(DataError) as caught:
        Ledger(skip=False, max_bad_ratio=1.0).add("captions", 5, [BadRow("captions", "12", EMPTY)])
    assert str(caught.value).splitlines() == [
        "row captions/12: has an empty answer",
        "  mend the row, or leave such rows out with data.on_bad_row=skip",
    ]


def test_without_skip_many_bad_rows_are_told_together() -> None:
    with pytest.raises(DataError) as caught:
        Ledger(skip=False, max_bad_ratio=1.0).add("bad", 5, rows(7))
    assert str(caught.value).splitlines() == [
        "7 rows cannot be used:",
        *(f"  bad/{number}: has an empty answer" for number in range(NUM_SHOWN)),
        "  and 2 more",
        "  mend them, or leave such rows out with data.on_bad_row=skip",
    ]


def test_with_skip_rows_are_counted() -> None:
    ledger = filled(7, 2)
    ledger.check()
    assert ledger.num_used == {"good": 7}
    assert ledger.bad == rows(2, "good")
    assert ledger.num_bad == 2


@pytest.mark.parametrize(("num_bad", "passes"), [(0, True), (5, True), (6, False), (50, False)])
def test_the_share_of_bad_rows_is_limited(num_bad: int, passes: bool) -> None:
    ledger = filled(95, num_bad, max_bad_ratio=0.05)
    if passes:
        ledger.check()
        return
    with pytest.raises(DataError) as caught:
        ledger.check()
    lines = str(caught.value).splitlines()
    total = 95 + num_bad
    assert lines[0] == (
        f"{num_bad} of {total} rows are bad ({num_bad / total:.1%}), more than "
        "data.max_bad_ratio=0.05"
    )
    assert lines[1:] == [f"  good/{number}: {EMPTY}" for number in range(NUM_SHOWN)] + [
        f"  and {num_bad - NUM_SHOWN} more"
    ]


def test_rows_met_while_training_count_too() -> None:
    ledger = filled(95, 4, max_bad_ratio=0.05)
    ledger.check()
    ledger.meet(3, [BadRow("good", "late", "cannot be decoded")])
    with pytest.raises(DataError, match="5 of 99 rows are bad"):
        ledger.check_ratio()


@pytest.mark.parametrize(
    ("num_bad", "num_read", "passes"),
    [(3, 17, True), (6, 14, False), (65, 935, True), (70, 930, True), (72, 928, False)],
)
def test_a_stream_is_judged_beyond_chance(num_bad: int, num_read: int, passes: bool) -> None:
    """Of 1,000 rows 50 may be bad, and 21 more by three deviations of chance."""
    ledger = Ledger(skip=True, max_bad_ratio=0.05)
    ledger.meet(1, rows(num_bad))
    if passes:
        ledger.check_stream(num_read)
    else:
        with pytest.raises(DataError, match=f"{num_bad} of {num_bad + num_read} rows are bad"):
            ledger.check_stream(num_read)


def test_a_row_met_in_every_epoch_is_one_bad_row() -> None:
    ledger = filled(95, 3, max_bad_ratio=0.05)
    for step in range(1, 9):
        told = ledger.meet(step, [BadRow("good", "late", "cannot be decoded")])
        assert len(told) == (1 if step == 1 else 0)
    ledger.check_ratio()
    assert ledger.num_bad == 4


def test_a_line_that_was_cut_off_by_a_kill_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, ledger = tmp_path / "rows.jsonl", filled(9, 1)
    ledger.write(path)
    Ledger.append(path, ledger.meet(2, [BadRow("good", "at\u2028two", "broken")]))
    whole = path.read_text()
    path.write_text(whole + '{"step": 3, "sour')
    again = filled(9, 1)
    again.write(path)
    again.resume(path, 4)
    assert path.read_text() == whole
    assert "the last line is cut off" in caplog.text


def test_half_a_character_can_be_written(tmp_path: Path) -> None:
    ledger = Ledger(skip=True, max_bad_ratio=1.0)
    ledger.add("a", 1, [BadRow("a", "\ud800", "bad")])
    ledger.write(tmp_path / "rows.jsonl")
    assert lines_of(tmp_path / "rows.jsonl")[1]["id"] == "\ud800"


def test_held_out_rows_are_told_apart(tmp_path: Path) -> None:
    filled(9, 1).write(tmp_path / "rows.jsonl", rows(1, "kept"))
    assert lines_of(tmp_path / "rows.jsonl")[-1] == {
        "group": "held_out", "source": "kept", "id": "0", "reason": EMPTY,
    }  # fmt: skip


def test_nothing_usable_is_an_error_whatever_the_limit() -> None:
    with pytest.raises(DataError, match="no usable row: all 3 rows are bad\n  good/0: has an empt"):
        filled(0, 3, max_bad_ratio=1.0).check()
    with pytest.raises(DataError, match="no usable row: the sources hold no rows"):
        Ledger(skip=False, max_bad_ratio=0.0).check()


def test_a_source_of_which_nothing_is_left_is_named() -> None:
    ledger = filled(100, 0)
    ledger.add("other", 0, rows(2, "other"))
    with pytest.raises(DataError, match=r"no usable row in the source other; .*\n  other/0: has"):
        ledger.check()


def test_what_was_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    filled(9, 1).check()
    assert "left out 1 of 10 rows\n  good/0: has an empty answer" in caplog.text


def test_the_file_counts_sources_and_names_bad_rows(tmp_path: Path) -> None:
    ledger = filled(3, 1)
    ledger.add("bad", 0, [BadRow("bad", "0", "größer")])
    ledger.write(tmp_path / "rows.jsonl")
    assert lines_of(tmp_path / "rows.jsonl") == [
        {"source": "bad", "used": 0, "bad": 1},
        {"source": "good", "used": 3, "bad": 1},
        {"source": "good", "id": "0", "reason": "has an empty answer"},
        {"source": "bad", "id": "0", "reason": "größer"},
    ]
    assert "größer" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_a_run_that_goes_on_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = filled(9, 1)
    first.write(path)
    for step in (2, 4, 6):
        Ledger.append(path, first.meet(step, [BadRow("good", f"at-{step}", "broken")]))
    whole = lines_of(path)
    again = filled(9, 1)
    again.write(path)
    assert lines_of(path) == whole
    again.resume(path, 4)
    assert [line["id"] for line in again.met] == ["at-2", "at-4"]
    Ledger.append(path, again.meet(6, [BadRow("good", "at-6", "broken")]))
    assert lines_of(path) == whole
    assert again.met == first.met


def test_the_order_of_ranks_does_not_show(tmp_path: Path) -> None:
    one, two = (Ledger(skip=True, max_bad_ratio=1.0) for _ in range(2))
    assert one.meet(1, rows(4)) == two.meet(1, rows(4)[::-1])
