"""The cache: whole folders or none, one maker, edits noticed."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from data import cache as module
from data import lock
from data.cache import Cache, code_fingerprint, open_cache


def write(text: str, folder: Path) -> None:
    (folder / "text").write_text(text)


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.folder("kind", "key", lambda folder: write("first", folder))
    again = cache.folder("kind", "key", lambda folder: write("second", folder))
    assert first == again == tmp_path / "kind/key"
    assert (first / "text").read_text() == "first"


def test_a_folder_that_could_not_be_made_is_not_there(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        write("half", folder)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        Cache(tmp_path).folder("kind", "key", fails)
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["key.lock"]


def test_what_is_no_longer_valid_is_made_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def make(text: str) -> str:
        folder = cache.folder(
            "kind",
            "key",
            lambda folder: write(text, folder),
            is_valid=lambda folder: (folder / "text").read_text() == text,
        )
        return (folder / "text").read_text()

    assert [make("old"), make("old"), make("new")] == ["old", "old", "new"]


def test_without_locks_what_another_has_made_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in use; the second one's work is thrown away."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    cache = Cache(tmp_path)

    def make(folder: Path) -> None:
        cache.folder("kind", "key", lambda other: write("faster", other))
        write("slower", folder)

    assert (cache.folder("kind", "key", make) / "text").read_text() == "faster"
    assert sorted(path.name for path in (tmp_path / "kind").iterdir()) == ["key", "key.lock"]


def slow_maker(root: Path) -> None:
    def make(folder: Path) -> None:
        with (root / "makers").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        write("whole", folder)

    assert (Cache(root).folder("kind", "key", make) / "text").read_text() == "whole"


def test_of_several_processes_one_makes_it_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=slow_maker, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "makers").read_text().splitlines()) == 1


def test_who_waits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: object) -> None:
    monkeypatch.setattr(lock, "TELL_SECONDS", 0.05)
    context = multiprocessing.get_context("fork")
    other = context.Process(target=slow_maker, args=(tmp_path,))
    other.start()
    while not (tmp_path / "makers").is_file():
        time.sleep(0.005)
    Cache(tmp_path).folder("kind", "key", lambda folder: write("mine", folder))
    other.join()
    assert f"waits for process {other.pid} on " in caplog.text  # type: ignore[attr-defined]
    assert "which makes kind/key since" in caplog.text  # type: ignore[attr-defined]


@pytest.mark.parametrize("whole_bytes", [1 << 20, 16])
def test_a_file_is_known_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 4)
    cache, path = Cache(tmp_path / "cache"), tmp_path / "rows.jsonl"
    path.write_text("one line of it\n" * 10)
    before, stat = cache.file_fingerprint(path), path.stat()
    path.write_text("one LINE of it\n" * 10)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.file_fingerprint(path) != before  # same size, same time


def test_a_copy_of_a_file_is_the_same_and_an_unchanged_one_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, path = Cache(tmp_path / "cache"), tmp_path / "rows.jsonl"
    path.write_text("text")
    copy = tmp_path / "copy.jsonl"
    copy.write_text("text")
    assert cache.file_fingerprint(path) == cache.file_fingerprint(copy)
    monkeypatch.setattr(module, "_file_digest", None)  # calling it would fail
    cache.file_fingerprint(path)


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = open_cache(str(tmp_path / "file/cache"))
    assert (cache.folder("kind", "key", lambda folder: write("made", folder)) / "text").is_file()
    assert "cannot be written" in caplog.text
    assert "measured anew at each start" in caplog.text


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONGRAFT_CACHE", str(tmp_path / "by_environment"))
    assert open_cache(None).root == tmp_path / "by_environment"
    assert open_cache(str(tmp_path / "given")).root == tmp_path / "given"
    monkeypatch.delenv("VISIONGRAFT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache(None).root == tmp_path / ".cache/visiongraft"


def test_the_code_is_part_of_every_key() -> None:
    assert len(code_fingerprint()) == 32
