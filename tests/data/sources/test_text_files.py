"""Rows of JSONL, JSON and CSV files by number: what Python's own readers see, and bad rows."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from configs.errors import DataError
from data.cache import Cache
from data.sources import json_list, text_files, text_spans
from data.sources.records import Records
from data.sources.text_files import TextRecords, open_folder

PIECES = [
    "a",
    "Zoë",
    "猫",
    "🐈",
    '"',
    '""',
    ",",
    "\t",
    "\n",
    "\r\n",
    "\\",
    " ",
    "\u2028",
    "\x85",
    "",
    "'",
]
Write = Callable[..., TextRecords]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def write(tmp_path: Path, cache: Cache) -> Write:
    """Write files by name (`rows__jsonl`: rows.jsonl) and open them as one."""

    def opened(**files: str | bytes) -> TextRecords:
        paths = [tmp_path / name.replace("__", ".") for name in files]
        for path, content in zip(paths, files.values(), strict=True):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return TextRecords(paths, cache)

    return opened


@pytest.fixture(params=[1, 23, 1 << 20])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks so small that rows, quotes and characters lie across their ends."""
    monkeypatch.setattr(text_spans, "BLOCK_BYTES", request.param)
    return int(request.param)


def everything(records: Records) -> list[dict[str, Any]]:
    return [records.columns(index) for index in range(len(records))]


def places(records: Records) -> list[str]:
    return [records.place(index) for index in range(len(records))]


def outcome(columns: Callable[[], Any]) -> Any:
    """What a row holds, or what is wrong with it."""
    try:
        return columns()
    except DataError as error:
        return str(error)


def outcomes(records: Records) -> list[Any]:
    return [outcome(lambda index=index: records.columns(index)) for index in range(len(records))]


def random_text(random: Random) -> str:
    return "".join(random.choices(PIECES, k=random.randrange(6)))


def random_rows(seed: int, num_rows: int = 60) -> list[dict[str, str]]:
    random = Random(seed)
    return [{name: random_text(random) for name in ("a", "b", "c")} for _ in range(num_rows)]


def as_csv(rows: list[dict[str, Any]], **options: Any) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_jsonl(rows: list[Any], **options: Any) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


# ------------------------------------------------------------------- as Python's readers see it


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_is_what_json_reads(
    write: Write, block_bytes: int, seed: int, ascii_only: bool
) -> None:
    rows = random_rows(seed)
    records = write(rows__jsonl=as_jsonl(rows, ensure_ascii=ascii_only))
    assert everything(records) == rows
    order = Random(seed).sample(range(len(rows)), len(rows))
    assert [records.columns(index) for index in order] == [rows[index] for index in order]
    assert places(records) == [f"rows.jsonl:{line}" for line in range(1, len(rows) + 1)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("lineterminator", ["\n", "\r\n"])
def test_csv_is_what_csv_reads(
    write: Write, block_bytes: int, seed: int, suffix: str, lineterminator: str
) -> None:
    rows = random_rows(seed)
    delimiter = "," if suffix == "csv" else "\t"
    text = as_csv(rows, delimiter=delimiter, lineterminator=lineterminator)
    assert list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)) == rows
    records = write(**{f"rows__{suffix}": text})
    assert everything(records) == rows
    lines, reader = [1], csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for _ in reader:
        lines.append(reader.line_num + 1)
    assert places(records) == [f"rows.{suffix}:{line}" for line in lines[1:-1]]


@pytest.mark.parametrize("seed", range(20))
def test_csv_rows_end_where_csv_ends_them_past_stray_quotes(
    write: Write, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(text_spans, "BLOCK_BYTES", 1 + seed)
    random = Random(seed)
    body = "".join(random.choices(['"', '"', ",", "x", "\n"], k=120)) + "\n"
    reader = csv.reader(io.StringIO("a,b\n" + body, newline=""))
    lines, before = [], 0
    for row in reader:
        lines += [f"rows.csv:{before + 1}"] * bool(row)
        before = reader.line_num
    assert places(write(rows__csv="a,b\n" + body)) == lines[1:]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_json_list_is_what_json_reads(write: Write, indent: int | None, ascii_only: bool) -> None:
    rows = [{"row": row, "n": [1.5, -2e9, None, True]} for row in random_rows(3)]
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    records = write(rows__json=text)
    assert everything(records) == json.loads(text) == rows
    assert len(set(places(records))) == len(rows)
    for index in range(len(rows)) if indent else ():  # two elements never share a line then
        line = int(records.place(index).removeprefix("rows.json:"))
        assert text.split("\n")[line - 1] == " {"


def test_elements_of_a_list_that_share_a_line_are_told_apart(write: Write) -> None:
    records = write(rows__json='\ufeff [{}, {"a":\n1},\n {},{}\n, {}]\n')
    assert everything(records) == [{}, {"a": 1}, {}, {}, {}]
    wanted = ["1[0]", "1[1]", "3[2]", "3[3]", "4"]
    assert places(records) == [f"rows.json:{place}" for place in wanted]


@pytest.mark.parametrize("text", ["[]", " [\n] \n"])
def test_an_empty_list_has_no_rows(write: Write, text: str) -> None:
    assert len(write(rows__json=text)) == 0
    assert len(write(rows__json=text)) == 0  # from the cache too


def test_the_places_of_a_list_are_worked_out_once(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(rows__json='[{"a": 1}, {"a": 2}]')
    monkeypatch.setattr(json_list, "_walk", None)
    second = TextRecords(first._paths, first._cache)
    assert everything(second) == everything(first)
    with pytest.raises(TypeError, match="not callable"):  # what it holds has changed: walked again
        write(rows__json='[{"a": 1}, {"a": 3}]')


def test_surrogates_and_constants_are_left_to_json(write: Write) -> None:
    lines = [r'{"a": "\ud83d\ude00"}', r'{"a": "\ud83d"}', '{"a": Infinity}', '{"a": 1, "a": 2}']
    assert everything(write(rows__jsonl="\n".join(lines))) == [json.loads(line) for line in lines]


# --------------------------------------------------------------------------------- what is a row


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_blank_lines_are_no_rows_but_count(
    write: Write, block_bytes: int, newline: str, mark: str, end: str
) -> None:
    text = mark + '\n{"a": 1}\n\n  \t\n{"a": 2}' + end
    records = write(rows__jsonl=text.replace("\n", newline))
    assert everything(records) == [{"a": 1}, {"a": 2}]
    assert places(records) == ["rows.jsonl:2", "rows.jsonl:5"]
    text = mark + '\na,b\n\n1,"2\n\n3"\n\n,' + end.replace(" ", "")
    records = write(rows__csv=text.replace("\n", newline))
    assert everything(records) == [{"a": "1", "b": f"2{newline * 2}3"}, {"a": "", "b": ""}]
    assert places(records) == ["rows.csv:4", "rows.csv:8"]


def test_spaces_are_a_field_of_csv_but_no_row_of_jsonl(write: Write) -> None:
    assert everything(write(rows__csv="a\n  \n\n")) == [{"a": "  "}]
    assert len(write(rows__jsonl="  \n\n")) == 0
    assert outcomes(write(rows__jsonl="\0\n")) == ["is not JSON: Expecting value at column 1"]


def test_a_header_may_take_several_lines(write: Write) -> None:
    records = write(rows__csv='"a\n\nb",c\n1,2\n')
    assert everything(records) == [{"a\n\nb": "1", "c": "2"}]
    assert places(records) == ["rows.csv:4"]


def test_empty_files_have_no_rows(write: Write) -> None:
    assert len(write(rows__jsonl="")) == 0
    assert len(write(rows__csv="a,b\n")) == 0
    with pytest.raises(DataError, match=r"rows\.csv: is empty; its first row must name the col"):
        write(rows__csv="\n\n")


def test_files_follow_one_another(write: Write, tmp_path: Path, cache: Cache) -> None:
    records = write(
        b__jsonl='{"a": 1}\n{"a": 2}', none__jsonl="", a__csv="a\n3\n", c__json='[{"a": 4}]'
    )
    assert everything(records) == [{"a": 1}, {"a": 2}, {"a": "3"}, {"a": 4}]
    assert places(records) == ["b.jsonl:1", "b.jsonl:2", "a.csv:2", "c.json:1"]
    assert records.root == tmp_path
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"row {index} of 4"):
            records.columns(index)


def test_files_of_one_name_are_called_by_their_folders(tmp_path: Path, cache: Cache) -> None:
    paths = [tmp_path / "set" / name / "rows.jsonl" for name in ("en", "hi/old")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("{}\n")
    assert places(TextRecords(paths, cache)) == ["en/rows.jsonl:1", "hi/old/rows.jsonl:1"]
    with pytest.raises(DataError, match=r"rows\.jsonl' is given 2 times"):
        TextRecords([paths[0], paths[0]], cache)


def num_open(folder: Path) -> int:
    """How many files of a folder this process holds open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.lexists(link))


def test_more_files_than_may_be_open(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(text_files, "MAX_OPEN", 3)
    records = write(**{f"f{number}__jsonl": f'{{"a": {number}}}' for number in range(9)})
    assert num_open(tmp_path) == 0
    for _ in range(2):
        assert everything(records) == [{"a": number} for number in range(9)]
    assert num_open(tmp_path) == 3
    del records
    assert num_open(tmp_path) == 0


# -------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"a": 1', "is not JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": 1} {"a": 2}', "is not JSON: Extra data at column 10"),
        ('{"é": ]}'.encode(), "is not JSON: Expecting value at column 7"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 8 of the row"),
        (b"[1]", "is a list, not an object"),
        (b'"a"', "is a string, not an object"),
        (b"null", "is null, not an object"),
        (b"true", "is true or false, not an object"),
        (b"1.5", "is a number, not an object"),
        (b"[" * 100_000, "is JSON that cannot be read: maximum recursion depth"),
        (b"9" * 5_000, "is JSON that cannot be read: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_that_row_alone(write: Write, line: bytes, what: str) -> None:
    records = write(rows__jsonl=b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    assert [records.columns(0), records.columns(2)] == [{"a": 1}, {"a": 2}]
    assert records.place(1) == "rows.jsonl:3"
    with pytest.raises(DataError, match="^" + re.escape(what)):
        records.columns(1)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"1,2,3", "has 3 fields where the header has 2 (a, b)"),
        (b"1", "has 1 fields where the header has 2 (a, b)"),
        (b'"1"x,2', "is not CSV: ',' expected after '\"'"),
        (b"1,\xe9", "is not UTF-8 at byte 3 of the row"),
    ],
)
def test_a_bad_row_of_csv_is_that_row_alone(write: Write, line: bytes, what: str) -> None:
    records = write(rows__csv=b"a,b\n" + b'1,"\n"\n' + line + b'\n3,"4"\n')
    assert [records.columns(0), records.columns(2)] == [{"a": "1", "b": "\n"}, {"a": "3", "b": "4"}]
    assert records.place(1) == "rows.csv:4"
    with pytest.raises(DataError, match="^" + re.escape(what)):
        records.columns(1)


def test_a_quote_that_is_never_closed_says_what_it_takes(write: Write) -> None:
    records = write(rows__csv='a,b\n1,2\n3,"4\n5,6\n7,8\n')
    assert len(records) == 2
    assert records.columns(0) == {"a": "1", "b": "2"}
    with pytest.raises(DataError, match="opens a quote that is never closed; 4 lines are taken"):
        records.columns(1)


def test_a_quote_within_a_field_is_a_character(write: Write) -> None:
    rows = [{"a": '5" pipe', "b": "x"}, {"a": "y", "b": "6'"}]
    assert everything(write(rows__csv="a,b\n5\" pipe,x\ny,6'\n")) == rows


def test_a_long_field_of_csv_is_read(write: Write) -> None:
    long = "x" * (csv.field_size_limit() + 1)
    assert write(rows__csv=f"a\n{long}\n").columns(0) == {"a": long}


def test_an_element_that_is_no_object_is_that_row_alone(write: Write) -> None:
    records = write(rows__json=b'[{"a": 1}, [2],\n "\xff", ' + b"9" * 5_000 + b', {"a": 3}]')
    assert [records.columns(0), records.columns(4)] == [{"a": 1}, {"a": 3}]
    assert outcomes(records)[1:3] == [
        "is a list, not an object",
        "is not UTF-8 at byte 2 of the row",
    ]
    with pytest.raises(DataError, match="Exceeds the limit"):
        records.columns(3)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            "[{},\n {'a': 1}]",
            "Expecting property name enclosed in double quotes at line 2, column 3",
        ),
        ('[{},\n {"é": "ü" 1}]', "Expecting ',' delimiter at line 2, column 12"),
        ("[{}\n\n {}]", "Expecting ',' or ']' at line 3, column 2"),
        ("[{},\n]", "Expecting value at line 2, column 1"),
        ("[{},", "Expecting value at line 1, column 5"),
        ("[", "Expecting value at line 1, column 2"),
        ("[{}", "Expecting ',' or ']' at line 1, column 4"),
        ("[{}]\n[]", "Extra data behind the list at line 2, column 1"),
        ("[{},\n" + "[" * 100_000, "Nested too deeply at line 2, column 1"),
    ],
)
def test_a_broken_list_names_line_and_column(write: Write, text: str, what: str) -> None:
    with pytest.raises(DataError, match=r"rows\.json: is not JSON: " + re.escape(what) + "$"):
        write(rows__json=text)


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '{"rows": [{}]}', "", "3"])
def test_a_json_file_without_a_list_says_so(write: Write, text: str) -> None:
    with pytest.raises(DataError, match=r"rows\.json: has no list at its top.*name it \.jsonl"):
        write(rows__json=text)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"a,b,a\n1,2,3\n", r":1: the header has columns 'a' twice"),
        (b"\n\xff\n", r":2: the header, which names the columns, is not UTF-8 at byte 1"),
        (b'"a\n1\n', r":1: the header, .* opens a quote that is never closed; 3 lines"),
    ],
)
def test_a_bad_header_is_an_error_at_once(write: Write, header: bytes, what: str) -> None:
    with pytest.raises(DataError, match=r"rows\.csv" + what):
        write(rows__csv=header)


def test_other_files_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: is compressed.*unpack.*streaming=true"):
        write(rows__jsonl__gz=gzip.compress(b"{}\n"))
    with pytest.raises(DataError, match=r"suffix '\.txt' is none of \.jsonl, \.ndjson, \.csv"):
        write(rows__txt="{}")


def test_a_row_without_end_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_spans, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_spans, "MAX_ROW_BYTES", 100)
    with pytest.raises(
        DataError, match=r"row on line 2 is longer than 100 .* closing quote missing"
    ):
        write(rows__csv='a\n"b\n' + "c\n" * 200)
    with pytest.raises(DataError, match=r"row on line 2 is longer than 100 .* newline missing"):
        write(rows__jsonl="{}\n{" + " " * 400)


def test_a_long_row_is_not_searched_in_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_spans, "BLOCK_BYTES", 16)
    stream = io.BytesIO(b"x" * 100_000 + b"\n")
    blocks = list(text_spans.find_rows(stream, text_spans.START, ",", Path("rows.csv")))
    assert [row for block in blocks for row in block.rows()] == [(b"x" * 100_000, 0, 1)]
    assert sum(len(block.data) for block in blocks) < 5 * 100_000  # a block each time: 3,000 times


def test_a_file_that_was_cut_since_is_told(write: Write, tmp_path: Path) -> None:
    records = write(rows__jsonl='{"a": 1}\n{"a": 2}\n')
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a"')
    assert records.columns(0) == {"a": 1}
    with pytest.raises(DataError, match="is cut short: its file has changed"):
        records.columns(1)


# --------------------------------------------------------------------- memory, processes, digests


def test_of_each_row_its_place_alone_is_in_memory(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "some short line"}\n' * 200_000)
    tracemalloc.start()
    records = TextRecords([path], cache)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == 200_000
    assert 16 < kept / len(records) < 24  # 20 bytes of SPAN; 200,000 of the lines would be 73


def test_records_pickle_and_survive_a_fork(write: Write) -> None:
    rows = random_rows(1, num_rows=20)
    records = write(a__jsonl=as_jsonl(rows), b__csv=as_csv(rows), c__json=json.dumps(rows))
    assert everything(records) == rows * 3  # opens the files, which the fork inherits
    copy = pickle.loads(pickle.dumps(records))
    assert not copy._files  # numbers of open files mean nothing elsewhere
    assert everything(copy) == rows * 3 and places(copy) == places(records)
    assert copy.fingerprint() == records.fingerprint()
    with multiprocessing.get_context("fork").Pool(2, _inherit, (records,)) as pool:
        assert pool.map(_read_inherited, range(len(records)), chunksize=1) == rows * 3
    assert everything(records) == rows * 3  # the workers closed what is theirs alone


_inherited: list[TextRecords] = []


def _inherit(records: TextRecords) -> None:
    _inherited.append(records)


def _read_inherited(index: int) -> dict[str, Any]:
    return _inherited[0].columns(index)


def test_the_fingerprint_changes_with_what_rows_say(write: Write, tmp_path: Path) -> None:
    records = write(a__jsonl='{"a": 1}\n', b__jsonl='{"a": 2}\n')
    first = records.fingerprint()
    assert records.fingerprint() == first
    path = tmp_path / "b.jsonl"
    stat = path.stat()
    path.write_text('{"a": 3}\n')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert records.fingerprint() != first
    path.write_text('{"a": 2}\n')
    assert records.fingerprint() == first
    # The same bytes are other rows under another suffix, and ids begin with the name.
    assert write(a__csv="a\n1,2\n").fingerprint() != write(a__tsv="a\n1,2\n").fingerprint()


# ---------------------------------------------------------------------------- folders of pictures


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_is_read_by_its_metadata(tmp_path: Path, cache: Cache, name: str) -> None:
    rows = [{"file_name": "a.png", "text": "A"}, {"file_name": "sub/b.png", "text": "B"}]
    (tmp_path / name).write_text(as_csv(rows) if name.endswith("csv") else as_jsonl(rows))
    records = open_folder(tmp_path, cache)
    wanted = [{"image": "a.png", "text": "A"}, {"image": "sub/b.png", "text": "B"}]
    assert everything(records) == wanted
    assert records.root == tmp_path
    first = 1 if name.endswith("jsonl") else 2
    assert places(records) == [f"{name}:{first}", f"{name}:{first + 1}"]
    before = records.fingerprint()
    (tmp_path / name).write_text("file_name\n" if name.endswith("csv") else "{}\n")
    assert records.fingerprint() != before


def test_file_names_become_images_where_there_are_none(tmp_path: Path, cache: Cache) -> None:
    rows = [{"file_names": ["a.png", "b.png"]}, {"file_name": "a.png", "image": "b.png"}, {"c": 1}]
    (tmp_path / "metadata.jsonl").write_text(as_jsonl(rows))
    assert everything(open_folder(tmp_path, cache)) == [{"image": ["a.png", "b.png"]}, *rows[1:]]


def test_a_folder_needs_one_metadata_file(tmp_path: Path, cache: Cache) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(DataError, match=r"one of metadata\.jsonl or metadata\.csv.*is nothing$"):
        open_folder(folder, cache)
    for number in range(7):
        (folder / f"{number}.png").touch()
    with pytest.raises(DataError, match=r"there is 0\.png, 1\.png, .*, 4\.png and 2 more$"):
        open_folder(folder, cache)
    for name in ("metadata.jsonl", "metadata.csv"):
        (folder / name).touch()
    with pytest.raises(DataError, match=r"there is metadata\.jsonl and metadata\.csv$"):
        open_folder(folder, cache)
