"""Which members of a tar file make up a row of a WebDataset shard, and where their bytes lie.

Headers alone are read, and nothing is unpacked. What the members say is made into columns in
`tar_columns.py`. `tarfile` parses odd headers here but does not walk the file: it takes a damaged
header behind the first member for the end of the shard, without a word.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from configs.errors import DataError

BLOCK = 512  # bytes; tar counts in them
MAX_EXTENSION = 1 << 20  # bytes of a PAX or long name header, which hold a name and a few times
MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # of gzip and zstandard
ADLER = 65521  # modulus of Adler-32
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
ABOUT_THE_NEXT = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
WITHOUT_DATA = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.DIRTYPE, tarfile.FIFOTYPE),
)
ERRORS = "backslashreplace"  # names that are not UTF-8 stay readable, printable and different


class Member(NamedTuple):
    """One file of a row: `a/000123.seg.png` is the field `seg.png` of the key `a/000123`."""

    name: str
    key: str
    field: str  # in lower case, as webdataset has it
    offset: int  # bytes, of its data
    size: int  # bytes
    end: int  # bytes, where the next header lies
    is_file: bool  # False: a link, a device or sparse, whose bytes are not (so) in the tar
    data: bytes | None  # what it holds, of a gzipped shard


@dataclass(frozen=True, slots=True)
class TarRow:
    """Consecutive members of one key, in order."""

    start: int  # bytes, where the search for its first header may begin
    members: tuple[Member, ...]

    @property
    def key(self) -> str:
        """What its members are called up to the first dot."""
        return self.members[0].key

    @property
    def end(self) -> int:
        """Where reading goes on behind it, in bytes."""
        return self.members[-1].end


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int  # bytes of the data behind it


def open_shard(path: Path, name: str, *, unpack: bool = False, buffering: int = -1) -> BinaryIO:
    """Open a shard for one reader: forked workers that shared a file would share its position.

    With `buffering=0` headers alone are read, not 8 KiB at each; as fast on a local disk.

    Raises:
        DataError: it cannot be opened; `name` is what the message calls it.
    """
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if unpack else path.open("rb", buffering)
    except OSError as error:
        raise DataError(f"{name} cannot be opened: {error.strerror or error}") from error


def iterate_rows(file: BinaryIO, start: int = 0) -> Iterator[TarRow]:
    """Yield the rows from the header at byte `start` on.

    A gzipped file is read in order, so its members keep their data.

    Raises:
        DataError: the tar is cut off or damaged. Rows that end before are yielded first; the one
            that it happens in or right behind may lack members and is named in the error.
    """
    hold = isinstance(file, gzip.GzipFile)
    group: list[Member] = []
    behind = start
    try:
        for member in _members(file, start):
            if group and member.key != group[0].key:
                yield TarRow(behind, tuple(group))
                behind, group = group[-1].end, []
            group.append(member)
            if hold:
                group[-1] = member._replace(data=_read_whole(file, member.offset, member.size))
    except DataError as error:
        lost = f"; row {group[0].key!r} may be incomplete and is left out" if group else ""
        raise DataError(f"{error}{lost}") from error
    if group:
        yield TarRow(behind, tuple(group))


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the field of a member; None where it belongs to no row.

    The key ends at the first dot of the base name. Hidden files, names without a dot, and whatever
    begins with two underscores (`__MACOSX/`) belong to no row.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    if not stem or not field or name.startswith("__") or "/__" in name:
        return None
    return f"{folder}{slash}{stem}", field.lower()


def _members(file: BinaryIO, position: int) -> Iterator[Member]:
    """Yield the members that belong to a row.

    Zeros that mark an end are passed over, so tars that were put together with `cat` are read
    whole, and a hole in the middle of a shard is not taken for its end.
    """
    told: dict[str, str] = {}  # by the extension headers before the member
    ended = False
    while True:
        block = _read(file, position, BLOCK)
        if block[:1] in (b"", b"\0") and not block.strip(b"\0") and (block or ended):
            if len(block) < BLOCK:
                return
            position, ended = position + BLOCK, True
            continue
        if len(block) < BLOCK and not block.startswith(MAGIC):
            raise _cut(file, position + len(block))
        header = _parse(block, position)
        data, size = position + BLOCK, header.size
        if header.kind in ABOUT_THE_NEXT:
            told |= _extension(file, header, data)
        elif header.kind not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            size = _size(header, told, position)
            member = _member(header, told, data, size)
            if member is not None:
                yield member
            told = {}
        position, ended = data + _padded(size), False


def _member(header: _Header, told: dict[str, str], data: int, size: int) -> Member | None:
    name = told.get("GNU.sparse.name") or told.get("path") or header.name
    parts = split_name(name)
    if parts is None or header.kind == tarfile.DIRTYPE:
        return None
    is_file = header.kind in FILES and not any(key.startswith("GNU.sparse") for key in told)
    return Member(name, *parts, data, size, data + _padded(size), is_file, None)


def _size(header: _Header, told: dict[str, str], position: int) -> int:
    """Return the bytes of data behind a member's header; PAX tells those over 8 GiB."""
    if header.kind == tarfile.GNUTYPE_SPARSE:
        raise _damage(position, "a sparse file; write the shard without tar's option -S")
    if header.kind in WITHOUT_DATA:
        return 0
    told_size = told.get("size", str(header.size))
    if not (told_size.isascii() and told_size.isdigit()):
        raise _damage(position, f"a member of {told_size!r} bytes")
    return int(told_size)


def _parse(block: bytes, position: int) -> _Header:
    """Parse a header: the usual kind here (6 times as fast), all others by tarfile."""
    size, name = block[124:136].rstrip(b"\0 "), block[:100].rstrip(b"\0")
    plain = block[156:157] == b"0" and block[345:346] == b"\0" and b"\0" not in name
    try:
        if plain and size.isdigit() and _checksum_is_right(block):
            return _Header(name.decode("utf-8", ERRORS), tarfile.REGTYPE, int(size, 8))
        info = tarfile.TarInfo.frombuf(block, "utf-8", ERRORS)
    except (tarfile.HeaderError, ValueError) as error:
        packed = position == 0 and block.startswith(MAGIC)
        why = "compressed data; name the shard .tar.gz or .tar.zst" if packed else str(error)
        raise _damage(position, f"no tar header ({why})") from error
    return _Header(info.name, info.type, info.size)


def _checksum_is_right(block: bytes) -> bool:
    """Compare the sum of the header's bytes, its own field as spaces, with what it says.

    Adler-32's lower half is 1 plus that sum, modulo 65521: 2 us a header where `sum` takes 5.
    """
    field = block[148:156].strip(b"\0 ")
    found = zlib.adler32(b"%b        %b" % (block[:148], block[156:])) & 0xFFFF
    return field.isdigit() and (int(field, 8) + 1) % ADLER == found


def _extension(file: BinaryIO, header: _Header, data: int) -> dict[str, str]:
    """Return what a long name or PAX header says about the member behind it."""
    if not 0 <= header.size <= MAX_EXTENSION:
        raise _damage(data - BLOCK, f"a header of {header.size:,} bytes")
    said = _read_whole(file, data, header.size)
    if header.kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": said.rstrip(b"\0").decode("utf-8", ERRORS)}
    told = {}
    try:
        while said.strip(b"\0"):  # "<length> <keyword>=<value>\n", the length counts itself
            length = int(said[: said.index(b" ")])
            keyword, _, value = said[said.index(b" ") + 1 : length - 1].partition(b"=")
            told[keyword.decode("utf-8", ERRORS)] = value.decode("utf-8", ERRORS)
            said = said[max(length, 1) :]
    except ValueError as error:
        raise _damage(data - BLOCK, "a PAX header that is not understood") from error
    return told


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of the file."""
    try:
        file.seek(position)
        return file.read(size)
    except EOFError as error:  # a gzip stream without its end
        raise _cut(file, position) from error
    except (OSError, zlib.error) as error:  # also gzip.BadGzipFile
        raise DataError(f"cannot be read at byte {position:,}: {error}") from error


def _read_whole(file: BinaryIO, position: int, size: int) -> bytes:
    data = _read(file, position, size)
    if len(data) < size:
        raise _cut(file, position + len(data))
    return data


def _cut(file: BinaryIO, position: int) -> DataError:
    """Return the error of a file that ends before its tar does."""
    if not isinstance(file, gzip.GzipFile):
        position = min(position, file.seek(0, 2))  # what is missing may be padding
    return DataError(
        f"is cut off at byte {position:,}, where no end of the tar is marked; copy or write it anew"
    )


def _damage(position: int, what: str) -> DataError:
    return DataError(f"is damaged: at byte {position:,} is {what}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
