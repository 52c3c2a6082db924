"""What a report says, apart from how it looks: sections of facts, tables, charts and examples.

`page.py` makes HTML of it and `markdown.py` Markdown, so that both tell the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

ABSENT = "–"


def told(form: str, value: float) -> str:
    """Return a value as it is shown; what rounds to nothing has no sign."""
    text = form.format(value)
    return text if any(digit in text for digit in "123456789") else text.lstrip("+-")


def counted(number: int, what: str) -> str:
    """Return "1 model", "2 models"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Fact:
    """A headline figure."""

    label: str
    value: str
    note: str = ""
    tone: str = ""  # "text": of text retention; "captions": of captions


@dataclass(frozen=True)
class Facts:
    """Headline figures side by side."""

    items: Sequence[Fact]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Cell:
    """A cell that is more than its text."""

    text: str
    language: str = ""  # of foreign text: it may run from right to left
    mark: str = ""  # "better" or "worse"
    href: str = ""  # relative path


@dataclass(frozen=True)
class Column:
    """A column; those with the same group have a heading in common."""

    title: str
    group: str = ""
    is_number: bool = True

    @property
    def full_title(self) -> str:
        """The title where there is one line of headings."""
        return f"{self.group}: {self.title}" if self.group else self.title


@dataclass(frozen=True)
class Table:
    """Cells as they are shown."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    num_strong: int = 0  # first rows that stand out: means
    is_folded: bool = False
    kind: ClassVar[str] = "table"

    def groups(self) -> list[tuple[str, int]]:
        """Return the headings in common, with the columns that each spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    role: str = "rest"  # "main", "flag" (told by name), "rest" (thin), "blind" (dashed)


@dataclass(frozen=True)
class LineChart:
    """Values over steps, or over alpha."""

    name: str  # of its file
    title: str
    unit: str
    series: Sequence[Series]
    form: str = "{:.3g}"  # of a value
    x_title: str = "step"
    tone: str = ""
    note: str = ""
    mark: tuple[float, str] | None = None  # a place on the x axis, and what is there
    limit: float | None = None  # a value that is not to be exceeded
    most: float | None = None  # the highest there can be
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class DotChart:
    """One row a language, one dot a model."""

    name: str
    title: str
    unit: str
    models: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]  # language, a value of each model
    form: str = "{:.3g}"
    tone: str = ""
    note: str = ""
    most: float | None = None
    marks: Sequence[int] = ()  # of each model, the same on a page; by default by its place
    kind: ClassVar[str] = "chart"


Chart = LineChart | DotChart


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    items: Sequence[Chart]
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Said:
    """An answer, by whom or when, and whether it is better than the one before it."""

    label: str
    text: str
    is_exact: bool = False
    change: str = ""  # "better", "worse", "same", "other words"


@dataclass(frozen=True)
class Example:
    """A held-out question with its picture, what was wanted, and what was answered."""

    row_id: str
    language: str
    question: str
    reference: str
    answers: Sequence[Said]
    picture: Path | None = None


@dataclass(frozen=True)
class Examples:
    """Held-out questions, and how many more there are."""

    title: str
    items: Sequence[Example]
    note: str = ""
    kind: ClassVar[str] = "examples"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    """Something to be copied: a command, a config."""

    title: str
    text: str
    is_folded: bool = False
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Problems:
    """What could not be read."""

    items: Sequence[str]
    kind: ClassVar[str] = "problems"


@dataclass(frozen=True)
class Heading:
    """A heading below that of the section."""

    text: str
    kind: ClassVar[str] = "heading"


Block = Facts | Table | Charts | Examples | Text | Code | Problems | Heading


@dataclass(frozen=True)
class Section:
    """A part of the report; without blocks it is left out."""

    title: str
    blocks: Sequence[Block]
    tone: str = ""


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    subtitle: str
    lead: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def charts(self) -> list[Chart]:
        """Return every chart, for those who keep them as files."""
        blocks = [*self.lead, *(block for section in self.sections for block in section.blocks)]
        return [chart for block in blocks if isinstance(block, Charts) for chart in block.items]
