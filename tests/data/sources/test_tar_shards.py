"""Tar shards: every row that a naive reader of the webdataset convention sees, and no silence."""

import gzip
import io
import json
import multiprocessing
import pickle
import re
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_pico import MAX_BYTES, MAX_PIXELS, encode, noise

from configs.errors import DataError
from data.cache import Cache
from data.images import FileImage, ImageRules
from data.sources.records import Columns, FilePart, Found
from data.sources.tar_shards import TarRecords, TarShard

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "a folder/" * 9 + "with " * 12 + "end"  # of 144 letters, in parts that USTAR can hold
Members = Sequence[tuple[str, bytes]]


def write(path: Path, members: Members, mode: str = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def rows_of(*keys: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.{field}", f"{key} {field}".encode()) for key in keys for field in ("a", "txt")]


def naive(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """(key, bytes by field) of each row: the whole tar in memory, and webdataset's own pattern."""
    rows: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(path) as tar:
        for info in tar.getmembers():
            match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", info.name)
            if not info.isreg() or match is None:
                continue
            key, field = match.groups()
            if not rows or rows[-1][0] != key:
                rows.append((key, {}))
            rows[-1][1][field.lower()] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return rows


def plain(columns: Columns) -> tuple[str, dict[str, bytes]]:
    """A row as `naive` gives it: pictures and texts as bytes again, and nothing derived."""
    kept = {key: value for key, value in columns.items() if key not in ("image", "caption")}
    return kept.pop("__key__"), {key: raw(value) for key, value in kept.items()}


def raw(value: Any) -> bytes:
    if isinstance(value, FilePart):
        return value.path.read_bytes()[value.offset : value.offset + value.size]
    if isinstance(value, dict):
        return bytes(value["bytes"])
    return value.encode() if isinstance(value, str) else bytes(value)


def random_members(seed: int, num_rows: int) -> list[tuple[str, bytes]]:
    """Rows of any fields and sizes, their keys in no order."""
    rng = np.random.default_rng(seed)
    fields = ["jpg", "seg.PNG", "txt", "cls", "npy", "en.text"]
    folders = ["", "b/", "a.b/c d/", "./", f"{LONG}/", "हिन्दी/"]
    members = []
    for number in rng.permutation(num_rows):
        folder = folders[rng.integers(len(folders))]
        for field in rng.permutation(fields)[: rng.integers(1, len(fields))]:
            size = int(rng.choice([0, 1, 511, 512, 513, 1024, rng.integers(9000)]))
            data = rng.integers(0, 128, size, dtype=np.uint8).tobytes()
            members.append((f"{folder}{number:04d}.{field}", data))
    return members


def records(tmp_path: Path, *paths: Path) -> TarRecords:
    return TarRecords(paths, Cache(tmp_path / "cache"))


def all_columns(rows: TarRecords) -> list[Columns]:
    return [rows.columns(index) for index in range(len(rows))]


def one_row(tmp_path: Path, *members: tuple[str, bytes]) -> Columns:
    """The only row of a shard, the same by number and in order."""
    path = write(tmp_path / "one.tar", members)
    (row,) = all_columns(records(tmp_path, path))
    (found,) = TarShard(path).read()
    assert found.columns() == row
    return row


def places(rows: TarRecords) -> list[str]:
    return [rows.place(index) for index in range(len(rows))]


def refused(do: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        do()
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_those_of_a_naive_reader(kind: str, tmp_path: Path) -> None:
    members = random_members(len(kind), 40)
    path = write(tmp_path / "s.tar", members, format=FORMATS[kind])
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    wanted = naive(path)
    assert len(wanted) == 40
    rows = records(tmp_path, path)
    assert [plain(columns) for columns in all_columns(rows)] == wanted
    for index in np.random.default_rng(0).permutation(40):
        assert plain(rows.columns(int(index))) == wanted[index]
    for shard in (path, packed):
        found = list(TarShard(shard).read())
        assert [plain(row.columns()) for row in found] == wanted
        assert [row.place for row in found] == [f"{shard.name}/{key}" for key, _ in wanted]
        assert [row.number for row in found] == list(range(40))
    assert places(rows) == [f"s.tar/{key}" for key, _ in wanted]


def test_rows_are_those_of_datasets(tmp_path: Path) -> None:
    """Hugging Face's own builder reads text, JSON and pictures; it gives numbers for `.cls`."""
    from datasets import Image, load_dataset

    members = []
    for number in (3, 1, 2):
        members += [(f"b/{number}.jpg", encode(noise(8, 8, number), "JPEG"))]
        members += [(f"b/{number}.seg.png", encode(noise(4, 4, number)))]
        members += [(f"b/{number}.txt", f"¿{number}?".encode()), (f"b/{number}.cls", b"7")]
        members += [(f"b/{number}.json", json.dumps({"id": number, "w": [1, 2]}).encode())]
    path = write(tmp_path / "s.tar", members)
    table = load_dataset("webdataset", data_files=[str(path)], split="train", streaming=True)
    table = table.cast_column("jpg", Image(decode=False)).cast_column(
        "seg.png", Image(decode=False)
    )
    theirs = list(table)
    assert len(theirs) == 3
    for row, columns in zip(theirs, all_columns(records(tmp_path, path)), strict=True):
        assert row["__key__"] == columns["__key__"] and row["txt"] == columns["txt"]
        assert row["cls"] == int(columns["cls"])
        assert row["json"] == {"id": columns["id"], "w": columns["w"]}
        for name in ("jpg", "seg.png"):
            assert row[name]["bytes"] == raw(columns[name])


def test_pictures_lie_in_the_shard_and_are_decoded_from_there(tmp_path: Path) -> None:
    drawn = [noise(20, 10, 1), noise(10, 30, 2)]
    path = write(
        tmp_path / "s.tar",
        [("x/1.right.png", encode(drawn[0])), ("x/1.txt", b""), ("x/1.PNG", encode(drawn[1]))],
    )
    columns = records(tmp_path, path).columns(0)
    assert columns["image"] == [columns["right.png"], columns["png"]]
    assert [part.name for part in columns["image"]] == ["s.tar/x/1.right.png", "s.tar/x/1.PNG"]
    for part, image in zip(columns["image"], drawn, strict=True):
        ref = FileImage(part.path, ImageRules(MAX_PIXELS, MAX_BYTES), part)
        assert ref.size() == image.size
        assert np.array_equal(np.asarray(ref.load()), np.asarray(image))


def test_pictures_of_a_gzipped_shard_are_held(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tgz", [("1.jpg", b"J"), ("1.txt", b"t")], "w:gz")
    (found,) = TarShard(path).read()
    assert found.columns() == {
        "jpg": {"bytes": b"J", "path": "s.tgz/1.jpg"},
        "image": {"bytes": b"J", "path": "s.tgz/1.jpg"},
        "txt": "t",
        "caption": "t",
        "__key__": "1",
    }


def test_members_become_columns(tmp_path: Path) -> None:
    row = one_row(
        tmp_path,
        *[("k.txt", "\ufeffuñ".encode()), ("k.cls", b"3"), ("k.lang", b"es"), ("k.id", b"i-1")],
        *[("k.text", b"T"), ("k.npy", b"\x93N"), ("k.meta.json", b"[1]"), ("k.es.txt", b"E")],
    )
    assert row == {
        "txt": "uñ", "caption": "uñ", "cls": "3", "lang": "es", "id": "i-1", "text": "T",
        "npy": b"\x93N", "meta.json": [1], "es.txt": "E", "__key__": "k",
    }  # fmt: skip


def test_keys_of_json_win_over_what_is_derived(tmp_path: Path) -> None:
    said = json.dumps({"caption": "said", "txt": "also", "id": None, "language": "hi"}).encode()
    row = one_row(tmp_path, ("k.json", said), ("k.txt", b"t"), ("k.caption", b"c"), ("k.id", b"7"))
    assert row == {
        "caption": "said", "txt": "also", "id": "7", "language": "hi", "__key__": "k",
    }  # fmt: skip


def test_a_caption_member_wins_over_txt(tmp_path: Path) -> None:
    row = one_row(tmp_path, ("k.caption", b"c"), ("k.txt", b"t"), ("k.json", b'{"caption": null}'))
    assert (row["caption"], row["txt"]) == ("c", "t")


@pytest.mark.parametrize("value", ["cat.jpg", ["cat.jpg"], None])
def test_pictures_win_over_file_names_in_json(value: Any, tmp_path: Path) -> None:
    said = json.dumps({"image": value, "jpg": value}).encode()
    row = one_row(tmp_path, ("k.json", said), ("k.jpg", b"J"))
    assert raw(row["image"]) == raw(row["jpg"]) == b"J"


def test_json_names_its_own_picture_where_none_lies_here(tmp_path: Path) -> None:
    assert one_row(tmp_path, ("k.json", b'{"image": "cat.jpg"}'))["image"] == "cat.jpg"
    row = one_row(tmp_path, ("k.json", b'{"image": {"width": 3}}'), ("k.jpg", b"J"))
    assert row["image"] == {"width": 3}


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("b.json", b'{"a": }'), r"member 'b\.json' is not JSON: Expecting value: .*column 7"),
        (("b.json", b"[" * 99_999), r"member 'b\.json' is not JSON: maximum recursion"),
        (("b.json", b"[1]"), r"member 'b\.json' is a JSON list, not an object"),
        (("b.txt", b"ab\xff"), r"member 'b\.txt' is not UTF-8 at byte 2"),
        (("b.JPG", b""), r"has two members of the field 'jpg': 'b\.JPG'"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(
    member: tuple[str, bytes], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "s.tar", [("a.txt", b"1"), ("b.jpg", b""), member, ("c.txt", b"3")])
    rows, found = records(tmp_path, path), list(TarShard(path).read())
    assert [rows.columns(index)["txt"] for index in (0, 2)] == ["1", "3"]
    for read in (lambda: rows.columns(1), found[1].columns):
        assert re.match(message, refused(read))


def test_links_are_named_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", b"J")
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname, link.size = tarfile.LNKTYPE, "a.jpg", 700  # as old tars have it
        tar.addfile(link)
        add(tar, "c.txt", b"t")
    rows = records(tmp_path, path)
    assert "member 'b.jpg' is a link" in refused(lambda: rows.columns(1))
    assert rows.columns(2)["txt"] == "t"


def test_what_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "all", "path": "no.txt"}) as tar:
        add(tar, "d.d", type=tarfile.DIRTYPE)
        add(tar, "x/1.jpg", b"J")
        for name in ("README", "x/.hidden.txt", "x/._1.jpg", "__meta__.txt", "__MACOSX/1.jpg",
                     "x/__a.txt", "x/end."):  # fmt: skip
            add(tar, name, b"?")
        add(tar, "x/1.txt", b"t")
    (columns,) = all_columns(records(tmp_path, path))
    assert plain(columns) == ("x/1", {"jpg": b"J", "txt": b"t"})
    none = write(tmp_path / "none.tar", [("README", b"")])
    assert "no row in none.tar: a WebDataset shard has members named" in refused(
        lambda: records(tmp_path, none)
    )
    assert list(TarShard(none).read()) == []


def test_a_key_that_comes_back_has_its_own_place(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", rows_of("a", "b", "a", "a#2", "b", "a"))
    rows = records(tmp_path, path)
    assert places(rows) == [f"s.tar/{key}" for key in ("a", "b", "a#2", "a#2#2", "b#2", "a#3")]
    keys = [columns["__key__"] for columns in all_columns(rows)]
    assert keys == ["a", "b", "a", "a#2", "b", "a"]


@pytest.mark.parametrize("kind", FORMATS)
def test_names_that_are_not_utf8_stay_different_and_printable(kind: str, tmp_path: Path) -> None:
    members = [("a\udcff.txt", b"1"), ("a\udcfe.txt", b"2")]
    path = write(tmp_path / "s.tar", members, format=FORMATS[kind])
    rows = records(tmp_path, path)
    assert [place.encode().decode() for place in places(rows)] == ["s.tar/a\\xff", "s.tar/a\\xfe"]
    assert [columns["txt"] for columns in all_columns(rows)] == ["1", "2"]


def test_shards_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "en/0.tar", tmp_path / "es/0.tar", tmp_path / "1.tar"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write(path, rows_of("k"))
    rows = records(tmp_path, *paths)
    assert places(rows) == ["en/0.tar/k", "es/0.tar/k", "1.tar/k"]
    assert rows.root == tmp_path / "en"
    twice = refused(lambda: records(tmp_path, paths[0], paths[2], tmp_path / "es/../en/0.tar"))
    assert re.match(r"'.*en/0\.tar' is given 2 times; its rows would be counted as often", twice)


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 700, 1024, 1500, 2048, 2565, 3000, 4095, 4096, 6144]
)
def test_a_cut_shard_gives_the_rows_before_and_a_bad_one(size: int, tmp_path: Path) -> None:
    """Two blocks a member and two members a row: a row is whole when the next begins."""
    members = [(f"{key}.{field}", b"x" * 9) for key in "abc" for field in ("a", "txt")]
    path = write(tmp_path / "s.tar", members)
    path.write_bytes(path.read_bytes()[:size])
    num_whole = max(0, (size - 512) // 2048)
    rows, found = records(tmp_path, path), list(TarShard(path).read())
    assert places(rows) == [f"s.tar/{key}" for key in "abc"[:num_whole]] + ["s.tar/<truncated>"]
    assert [row.place for row in found] == places(rows)
    for index in range(num_whole):
        assert rows.columns(index)["txt"] == found[index].columns()["txt"] == "x" * 9
    message = refused(lambda: rows.columns(num_whole))
    assert message == refused(found[-1].columns)
    assert f"s.tar is cut off at byte {size:,}, where no end of the tar is marked" in message
    assert ("may be incomplete and is left out" in message) == (size >= 512)
    assert list(TarShard(path).read(found[-1].after)) == []


def test_a_tar_without_its_last_padding_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", rows_of("a", "b"))
    whole = path.read_bytes()
    for size in (8 * 512 + 512, 8 * 512 + 700):
        path.write_bytes(whole[:size])
        assert [found.place for found in TarShard(path).read()] == ["s.tar/a", "s.tar/b"]


def damaged(path: Path, damage: Callable[[bytearray], None]) -> list[Found]:
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    return list(TarShard(path).read())


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    """A header that is wrong, and a hole of zeros where headers should be."""

    def flip(data: bytearray) -> None:
        data[4 * 1024] ^= 1  # in the name of the first member of c

    def zero(data: bytearray) -> None:
        data[3 * 1024 : 5 * 1024 + 512] = bytes(2 * 1024 + 512)

    for damage, where in ((flip, "4,096"), (zero, "5,632")):
        path = write(tmp_path / "s.tar", rows_of("a", "b", "c", "d"))
        found = damaged(path, damage)
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) < 8  # and no word of the rest
        assert found[0].columns()["txt"] == "a txt"
        assert found[-1].place == "s.tar/<truncated>"
        message = refused(found[-1].columns)
        assert f"s.tar is damaged: at byte {where} is no tar header" in message
        assert "row 'b'" in message


def test_shards_put_together_with_cat_are_read_whole(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.tar", rows_of(name))
    path = tmp_path / "both.tar"
    path.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    assert places(records(tmp_path, path)) == ["both.tar/a", "both.tar/b"]


def test_what_is_no_plain_tar_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar.gz", rows_of("a"), "w:gz")
    message = refused(lambda: records(tmp_path, path))
    assert "s.tar.gz is compressed" in message and "set data.streaming=true" in message
    for refuse in (TarShard, lambda path: records(tmp_path, path)):
        assert "compressed with zstandard" in refused(lambda f=refuse: f(tmp_path / "s.tar.zst"))
        assert "s.zip is no tar shard" in refused(lambda f=refuse: f(tmp_path / "s.zip"))
    assert "cannot be opened: No such file" in refused(
        lambda: records(tmp_path, tmp_path / "n.tar")
    )
    path.rename(tmp_path / "named.tar")
    (found,) = TarShard(tmp_path / "named.tar").read()
    message = "is no tar header (compressed data; name the shard .tar.gz or .tar.zst)"
    assert message in refused(found.columns)


def test_a_gzipped_shard_that_is_cut_or_damaged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = [(f"{key}.npy", rng.bytes(5_000)) for key in "abcdef"]
    path = write(tmp_path / "s.tar.gz", members, "w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:16_000])
    found = list(TarShard(path).read())
    assert [row.place[-1] for row in found[:-1]] == ["a", "b", "c"]  # d has begun
    assert "s.tar.gz is cut off at byte" in refused(found[-1].columns)
    for flipped in (16_000, len(whole) - 6):  # pixels, which deflate stores, and the checksum
        data = bytearray(whole)
        data[flipped] ^= 1
        path.write_bytes(data)
        assert "s.tar.gz cannot be read at byte" in refused(list(TarShard(path).read())[-1].columns)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_reading_goes_on_behind_any_row(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.tar", random_members(5, 25), format=tarfile.PAX_FORMAT)
    if suffix == ".tar.gz":
        path = Path(shutil.move(path, tmp_path / "p"))
        (tmp_path / "p.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "p.tar.gz"
    found = list(TarShard(path).read())
    told = [(row.number, row.place, row.after, row.columns()) for row in found]
    for index, row in enumerate(found):
        cursor = json.loads(json.dumps(row.after))
        rest = list(TarShard(path).read(cursor))
        assert [(r.number, r.place, r.after, r.columns()) for r in rest] == told[index + 1 :]


def test_rows_are_read_only_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", [("a.json", b"no JSON"), ("b.txt", b"t")])
    assert [found.place for found in TarShard(path).read()] == ["s.tar/a", "s.tar/b"]


def test_pickled_and_forked_readers_see_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", random_members(6, 30))
    rows = records(tmp_path, path)
    wanted = all_columns(rows)
    assert all_columns(pickle.loads(pickle.dumps(rows))) == wanted
    shard = pickle.loads(pickle.dumps(TarShard(path)))
    assert [found.columns() for found in shard.read()] == wanted
    with multiprocessing.get_context("fork").Pool(2, forked.append, (rows,)) as pool:
        order = [int(index) for index in np.random.default_rng(1).permutation(30)] * 4
        assert pool.map(read_forked, order, chunksize=1) == [wanted[index] for index in order]


forked: list[TarRecords] = []


def read_forked(index: int) -> Columns:
    return forked[0].columns(index)


def many_members(num_members: int) -> np.ndarray:
    """Members 000000000.txt, 000000001.txt, ... of one letter, made at once: tarfile takes 1 s."""
    info = tarfile.TarInfo("000000000.txt")
    info.size = 1
    made = np.zeros((num_members, 1024), np.uint8)
    made[:, :512] = np.frombuffer(info.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    made[:, 512] = ord("x")
    digits = np.arange(num_members)[:, None] // 10 ** np.arange(8, -1, -1) % 10
    made[:, :9] += digits.astype(np.uint8)
    checksum = int(bytes(made[0, 148:154]), 8) + digits.sum(axis=1)
    made[:, 148:154] = (checksum[:, None] >> np.arange(15, -1, -3) & 7) + ord("0")
    return made


def test_the_index_is_small_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(many_members(20_000).tobytes() + bytes(1024))
    assert len(records(tmp_path, path)) == 20_000
    (folder,) = [entry for entry in (tmp_path / "cache/tar").iterdir() if entry.is_dir()]
    assert sum(file.stat().st_size for file in folder.iterdir()) / 20_000 < 60
    made = folder.stat().st_mtime_ns
    tracemalloc.start()
    rows = records(tmp_path, path)
    assert rows.place(19_999) == "s.tar/000019999"
    assert tracemalloc.get_traced_memory()[1] < 200_000  # bytes at most, 10 a row
    tracemalloc.stop()
    assert folder.stat().st_mtime_ns == made


def test_opening_reads_headers_alone(tmp_path: Path) -> None:
    """Members of 9 GiB, which nobody could read here; their size is told by PAX, or in base 256."""
    for kind in ("gnu", "pax"):
        path, size = tmp_path / f"{kind}.tar", 9 << 30
        with path.open("wb") as file:
            for key in "ab":
                info = tarfile.TarInfo(f"{key}.jpg")
                info.size = size
                file.write(info.tobuf(FORMATS[kind]))
                file.seek(size, 1)
            file.write(bytes(1024))
        rows = records(tmp_path, path)
        parts = [rows.columns(index)["image"] for index in range(2)]
        assert [part.size for part in parts] == [size, size]
        assert parts[1].offset - parts[0].offset > size


def test_an_edit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", rows_of("a", "b"))
    before = records(tmp_path, path)
    was = before.fingerprint()
    assert records(tmp_path, path).fingerprint() == was
    write(path, rows_of("a", "c"))  # as long as before
    after = records(tmp_path, path)
    assert places(after) == ["s.tar/a", "s.tar/c"] and after.fingerprint() != was
    assert refused(lambda: before.columns(1)) == "s.tar changed after it was opened; start again"
    path.unlink()
    assert "s.tar cannot be opened" in refused(lambda: after.columns(0))


def test_several_shards_are_one_source(tmp_path: Path) -> None:
    paths: Iterable[Path] = [
        write(tmp_path / f"{number}.tar", random_members(number, 7)) for number in range(3)
    ]
    wanted = [row for path in paths for row in naive(path)]
    assert [plain(columns) for columns in all_columns(records(tmp_path, *paths))] == wanted
