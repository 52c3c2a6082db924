"""Tables by language: start, end and change of every measure of a group of held-out rows."""

from collections.abc import Mapping, Sequence

from configs.languages import LANGUAGES
from train.measuring.results import BLIND, GroupResult, Measure, Results, in_order, measure_of
from train.reporting.content import ABSENT, Cell, Column, Table, told
from train.reporting.read import Measurement

CHANGES = ("nll_increase", "kl")  # are changes themselves: only their last value is shown
LIKELIHOODS = ("nll", "nll_increase", "kl", "picture_gap", "choice_accuracy")
BEST = ("Bold: the best of a row, here and in the tables by language; their first row, of means, "
        "is bold throughout.")  # fmt: skip
Values = Mapping[str, float]


def language_name(code: str) -> str:
    """Return "hi, Hindi", or the code alone."""
    return f"{code}, {LANGUAGES[code]}" if code in LANGUAGES else code


def group_tables(measurements: Sequence[Measurement], group: str) -> list[Table]:
    """Return the tables of a group: of likelihoods, and of what was generated."""
    there = [one for one in measurements if group in one.results]
    if not there:
        return []
    first, last = there[0], there[-1]
    names = in_order([m for one in there for m in one.results[group].by_language])
    seeing = list(dict.fromkeys(name.removeprefix(BLIND) for name in names))
    parts = {
        "likelihoods": [name for name in seeing if name in LIKELIHOODS],
        "answers": [name for name in seeing if name not in LIKELIHOODS],
    }
    when = f"step {first.step} to {last.step}" if len(there) > 1 else f"step {last.step}"
    return [
        _table(f"{group}: {title}, {when}", there, group, measures)
        for title, measures in parts.items()
        if measures
    ]


def _table(caption: str, there: Sequence[Measurement], group: str, names: Sequence[str]) -> Table:
    first, last = there[0].results[group], there[-1].results[group]
    codes = {code for result in (first, last) for v in result.by_language.values() for code in v}
    order = ["mean", *sorted(codes)]
    if len(there) > 1 and there[0].step == 0 and "nll" in names:
        names = [name for name in names if name != "nll_increase"]  # the loss's change
    columns = [Column("language", is_number=False)]
    stacks: list[list[Cell | str]] = [[Cell(language_name(code)) for code in order]]
    for name in names:
        measure = measure_of(name)
        start, end = _with_mean(first, name), _with_mean(last, name)
        blind = _with_mean(last, BLIND + name)
        found: dict[str, list[Cell | str]] = {}
        if len(there) > 1 and name not in CHANGES:
            found["start"] = [_value(start, code, measure) for code in order]
        found["end"] = [_value(end, code, measure) for code in order]
        if len(there) > 1 and name not in CHANGES:
            found["change"] = [change(start.get(c), end.get(c), measure) for c in order]
        if blind:
            found["blind"] = [_value(blind, code, measure) for code in order]
        columns += [Column(title, measure.title) for title in found]
        stacks += found.values()
    rows = [list(row) for row in zip(*stacks, strict=True)]
    return Table(caption, columns, rows, _rows_note(last, names), num_strong=1)


def side_by_side(models: Mapping[str, Results], group: str) -> list[Table]:
    """Return the tables of a group with a column for each model, a table for each measure."""
    there = {name: results[group] for name, results in models.items() if group in results}
    tables = []
    for measure in in_order([m for result in there.values() for m in result.by_language]):
        how = measure_of(measure)
        values = {name: _with_mean(result, measure) for name, result in there.items()}
        codes = sorted({code for found in values.values() for code in found if code != "mean"})
        columns = [Column("language", is_number=False), *(Column(name) for name in values)]
        rows = [[Cell(language_name(code)), *_best(values, code, how)] for code in ["mean", *codes]]
        tables.append(Table(f"{group}: {how.title}", columns, rows, num_strong=1))
    return tables


def means_table(models: Mapping[str, Results], caption: str) -> Table:
    """Return a row for each group and measure: the means over languages of each model."""
    rows: list[Sequence[Cell | str]] = []
    for group in dict.fromkeys(name for results in models.values() for name in results):
        there = {name: results.get(group) for name, results in models.items()}
        names = in_order([m for result in there.values() if result for m in result.by_language])
        for measure in names:
            values = {n: _with_mean(r, measure) if r else {} for n, r in there.items()}
            how = measure_of(measure)
            rows.append([group, how.title, *_best(values, "mean", how)])
    columns = [Column("held-out rows", is_number=False), Column("measure", is_number=False)]
    note = BEST if len(models) > 1 else ""
    return Table(caption, [*columns, *(Column(name) for name in models)], rows, note)


def change(start: float | None, end: float | None, measure: Measure) -> Cell:
    """Return the difference, and whether it is one for the better."""
    if start is None or end is None:
        return Cell(ABSENT)
    text = signed(measure.form, end - start)
    if end == start or not any(digit in text for digit in "123456789"):
        return Cell(text)
    return Cell(text, mark="better" if (end > start) is measure.is_highest_best else "worse")


def signed(form: str, value: float) -> str:
    """Return a difference with its sign."""
    text = told(form, value)
    rounds_to_nothing = not any(digit in text for digit in "123456789")
    return text if text[0] in "+-" or rounds_to_nothing else f"+{text}"


def _best(values: Mapping[str, Values], code: str, measure: Measure) -> list[Cell]:
    """Return a cell for each model; the best of several that differ is marked."""
    texts = [_value(found, code, measure) for found in values.values()]
    numbers = [found[code] for found in values.values() if code in found]
    is_blind = measure.name.startswith(BLIND)  # not a merit, whichever way it goes
    if is_blind or len({text for text in texts if text != ABSENT}) < 2:
        return [Cell(text) for text in texts]
    best = told(measure.form, (max if measure.is_highest_best else min)(numbers))
    return [Cell(text, mark="best" if text == best else "") for text in texts]


def _with_mean(result: GroupResult, measure: str) -> dict[str, float]:
    values = result.by_language.get(measure, {})
    return {"mean": sum(values.values()) / len(values), **values} if values else {}


def _value(values: Values, code: str, measure: Measure) -> str:
    return told(measure.form, values[code]) if code in values else ABSENT


def _rows_note(result: GroupResult, names: Sequence[str]) -> str:
    counts = [result.num_rows.get(name, {}) for name in names]
    numbers = [number for count in counts for number in count.values()]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low} to {high}'} rows a language."
