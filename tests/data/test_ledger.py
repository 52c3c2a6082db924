"""The ledger: used, bad, why; an error or a count, and never silence."""

import json
from pathlib import Path
from typing import NoReturn

import pytest

from configs.errors import DataError
from data.ledger import NUM_SHOWN, Ledger


def bad() -> NoReturn:
    raise DataError("has an empty answer")


def filled(num_good: int, num_bad: int, max_bad_ratio: float = 0.5) -> Ledger:
    ledger = Ledger(skip=True, max_bad_ratio=max_bad_ratio)
    for number in range(num_good):
        ledger.attempt("good", str(number), lambda: 1)
    for number in range(num_bad):
        ledger.attempt("bad", str(number), bad)
    return ledger


def test_a_good_row_is_used_and_given_back() -> None:
    ledger = Ledger(skip=False, max_bad_ratio=0.0)
    assert ledger.attempt("a", "1", lambda: "made") == "made"
    assert ledger.num_used == {"a": 1}
    ledger.check()


def test_without_skip_a_bad_row_stops_and_is_named() -> None:
    ledger = Ledger(skip=False, max_bad_ratio=1.0)
    with pytest.raises(DataError) as caught:
        ledger.attempt("captions", "row-12", bad)
    assert str(caught.value).splitlines() == [
        "row captions/row-12: has an empty answer",
        "  mend the row, or leave such rows out with data.on_bad_row=skip",
    ]


def test_with_skip_it_is_counted_and_never_replaced() -> None:
    ledger = Ledger(skip=True, max_bad_ratio=1.0)
    assert ledger.attempt("a", "1", bad) is None
    assert ledger.refuse_or("a", "2", bad) is None
    assert ledger.bad == [
        {"source": "a", "id": "1", "reason": "has an empty answer"},
        {"source": "a", "id": "2", "reason": "has an empty answer"},
    ]
    assert ledger.num_used.total() == 0


def test_a_row_is_counted_as_used_only_when_it_is_rendered() -> None:
    ledger = Ledger(skip=True, max_bad_ratio=1.0)
    ledger.refuse_or("a", "1", lambda: 1)
    assert ledger.num_used.total() == 0


def test_other_errors_are_not_rows_faults() -> None:
    with pytest.raises(ZeroDivisionError):
        Ledger(skip=True, max_bad_ratio=1.0).attempt("a", "1", lambda: 1 // 0)


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
    assert lines[1:] == [f"  bad/{number}: has an empty answer" for number in range(NUM_SHOWN)] + [
        f"  and {num_bad - NUM_SHOWN} more"
    ]


def test_nothing_usable_is_an_error_whatever_the_limit() -> None:
    with pytest.raises(DataError, match="no usable row: all 3 rows are bad\n  bad/0: has an empty"):
        filled(0, 3, max_bad_ratio=1.0).check()
    with pytest.raises(DataError, match="no usable row: the sources hold no rows"):
        Ledger(skip=False, max_bad_ratio=0.0).check()


def test_what_was_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    filled(9, 1).check()
    assert "left out 1 of 10 rows\n  bad/0: has an empty answer" in caplog.text


def test_the_file_counts_sources_and_names_bad_rows(tmp_path: Path) -> None:
    ledger = filled(3, 2)
    ledger.bad[0]["reason"] = "größer"
    ledger.write(tmp_path / "rows.jsonl")
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"source": "bad", "used": 0, "bad": 2},
        {"source": "good", "used": 3, "bad": 0},
        {"source": "bad", "id": "0", "reason": "größer"},
        {"source": "bad", "id": "1", "reason": "has an empty answer"},
    ]
    assert "größer" in text
