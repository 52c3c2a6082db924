"""One process at a time: who waits for whom is told, and the dead are not waited for."""

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from configs.errors import BusyError, CacheError
from data import lock as module
from data.lock import alone, only_one

FORK = multiprocessing.get_context("fork")


def hold(place: Path, beats: bool) -> None:
    os.environ["RANK"] = "3"
    module.BEAT_SECONDS = 0.05 if beats else 60
    with only_one(place, "downloads ORG/NAME"):
        Path(f"{place}.held").touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A process that holds the lock of tmp_path/place, with or without signs of life."""
    process = FORK.Process(target=hold, args=(tmp_path / "place", getattr(request, "param", True)))
    process.start()
    while not (tmp_path / "place.held").is_file():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("holder", [False], indirect=True)
def test_a_holder_without_a_sign_of_life_is_given_up_by_name(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONGRAFT_CACHE_TIMEOUT", "0.6")
    monkeypatch.setenv("RANK", "5")
    started = time.monotonic()
    host = re.escape(socket.gethostname())
    message = (
        rf"^rank 5 \(process {os.getpid()} on {host}\) has waited 1 s for rank 3 \(process "
        rf"{holder.pid} on {host}\), which downloads ORG/NAME since \d\d:\d\d:\d\d, which has "
        r"given no sign of life for 1 s \(cache.timeout_seconds=0.6\).*\n.*place.lock"
    )
    with pytest.raises(CacheError, match=message), only_one(tmp_path / "place", "waits"):
        pass
    assert 0.6 < time.monotonic() - started < 5


def test_a_holder_that_lives_is_waited_for(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VISIONGRAFT_CACHE_TIMEOUT", "0.4")
    os.kill(holder.pid, 0)
    ended = []

    def end(*_: Any) -> None:
        ended.append(time.monotonic())
        holder.kill()

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 1.5)  # nearly four times the limit
    try:
        with only_one(tmp_path / "place", "takes it"):
            assert ended
            assert time.monotonic() - ended[0] < 2  # free as soon as its holder is dead
    finally:
        signal.signal(signal.SIGALRM, before)
    assert f"waits for rank 3 (process {holder.pid} on {socket.gethostname()})" in caplog.text
    assert "which downloads ORG/NAME since" in caplog.text


def test_one_line_a_machine(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(module, "TELL_SECONDS", 0.05)
    signal.signal(signal.SIGALRM, lambda *_: holder.kill())
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    with only_one(tmp_path / "place", "takes it"):
        assert not caplog.text


def test_an_error_frees_the_lock_and_takes_the_note_away(tmp_path: Path) -> None:
    def fails() -> None:
        with only_one(tmp_path / "place", "fails"):
            assert (tmp_path / "place.holder").is_file()
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fails()
    assert not (tmp_path / "place.holder").exists()
    with FileLock(tmp_path / "place.lock", timeout=0):
        pass


def test_without_locks_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with only_one(tmp_path / "place", "goes on"):
        assert "no locks here" in caplog.text


def test_a_lock_that_is_a_file_is_freed_when_its_holder_was_killed_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on Lustre without `-o flock`."""
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("VISIONGRAFT_CACHE_TIMEOUT", "0.4")
    here = socket.gethostname()

    def hold_elsewhere() -> None:
        socket.gethostname = lambda: f"not-{here}"
        hold(tmp_path / "place", beats=True)

    process = FORK.Process(target=hold_elsewhere)
    process.start()
    while not (tmp_path / "place.held").is_file():
        time.sleep(0.01)
    process.kill()
    process.join()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the soft lock
        with only_one(tmp_path / "place", "takes it"):
            assert f"left by rank 3 (process {process.pid} on not-{here})" in caplog.text
    assert not (tmp_path / "place.softlock").exists()


def test_who_waits_asks_seldom(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds may wait, on one file system."""
    asked: list[float] = []
    acquire = FileLock._acquire

    def note(self: FileLock) -> None:
        asked.append(time.monotonic())
        acquire(self)

    monkeypatch.setattr(FileLock, "_acquire", note)
    before = signal.signal(signal.SIGALRM, lambda *_: holder.kill())
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with only_one(tmp_path / "place", "takes it"):
            assert len(asked) <= 3
    finally:
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------- one writer of a folder


def keep(note: Path) -> None:
    os.environ["RANK"] = "0"
    module.BEAT_SECONDS = 0.05
    with alone(note, "trains here"):
        Path(f"{note}.held").touch()
        time.sleep(60)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A process that keeps tmp_path/note."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "WATCH_SECONDS", 1.0)
    process = FORK.Process(target=keep, args=(tmp_path / "note",))
    process.start()
    while not (tmp_path / "note.held").is_file():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def enter(note: Path) -> None:
    with alone(note, "trains here"):
        assert note.is_file()
    assert not note.exists()


def test_a_folder_where_another_process_lives_is_refused(keeper: Any, tmp_path: Path) -> None:
    message = rf"is in use by rank 0 \(process {keeper.pid} on .*\), which trains here since"
    with pytest.raises(BusyError, match=message):
        enter(tmp_path / "note")
    assert (tmp_path / "note").is_file()  # it is still the other's


def test_what_a_dead_process_of_this_host_has_left_is_taken_at_once(
    keeper: Any, tmp_path: Path
) -> None:
    keeper.kill()
    keeper.join()
    started = time.monotonic()
    enter(tmp_path / "note")
    assert time.monotonic() - started < 0.9


def test_what_another_host_has_left_is_watched_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.3)
    note = {"who": "rank 0", "doing": "trains here", "since": "", "host": "n7", "pid": 1, "beat": 0}
    (tmp_path / "note").write_text(json.dumps(note))
    started = time.monotonic()
    enter(tmp_path / "note")
    assert time.monotonic() - started > 0.3
    assert "was left by rank 0" in caplog.text


def test_an_empty_note_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.1)
    (tmp_path / "note").touch()
    enter(tmp_path / "note")
