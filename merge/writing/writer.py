"""Streams all inputs, stretch by stretch, into the files of `output`, on several threads.

Bytes that only move are copied by the kernel, in a thread of its own; what is computed goes through
memory that stays in the cache. Where the output folder comes from and goes to is `staging`'s job.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from merge.reading.checkpoint import CHUNK_ELEMENTS, DTYPE_BYTES
from merge.recipe.interface import MergeMethod, Settings
from merge.recipe.linear import LINEAR
from merge.writing.copies import Range, copy_range, ranges, write_at
from merge.writing.output import OutputFile, OutputTensor, Piece, pieces

if TYPE_CHECKING:
    from merge.writing.compute import Computed, Computer

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes total) from any thread, one call at a time."""

# What keeps private memory below 256 MiB: torch takes 150; a thread 3 without it, 13 with it.
MAX_THREADS, MAX_TORCH_THREADS = 8, 4
JOB_ELEMENTS = 32 * CHUNK_ELEMENTS  # what a thread takes at a time
NUM_FLUSHERS = 4
FLUSH_BYTES = 256 << 20  # what may wait in the page cache before the disk is told to write
MAX_FACTOR_BYTES = 48 << 20  # of low-rank factors, held by all threads together


Job = tuple[OutputTensor, list[Piece]]
"""What one thread does in one go: pieces of one tensor, in order."""


class _StoppedError(Exception):
    """Ends a thread because another one has failed."""


@dataclass
class Work:
    """What is to be done for one file."""

    file: OutputFile
    copied: list[Range] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    """What one thread does in one go: pieces to compute, copied pieces to look through."""


def plan_work(
    files: Sequence[OutputFile], method: MergeMethod, settings: Mapping[str, Settings]
) -> list[Work]:
    """What is copied and what is computed, by file.

    Args:
        files: from `plan_output`.
        method: of all decoder tensors.
        settings: {canonical name: settings} of every decoder tensor.
    """
    return [_plan_file(file, method, settings) for file in files]


class FilesWriter:
    """Open output files, and threads that copy, compute and flush. Use as a context.

    `start_copies`, then `compute`, which waits for neither. Leaving the context without an
    error forces all to disk.
    """

    def __init__(
        self,
        work: Sequence[Work],
        folder: Path,
        method: MergeMethod,
        *,
        num_threads: int | None = None,
        progress: Progress | None = None,
        stop_when: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stop_when = stop_when
        self._work, self._progress, self._lock = work, progress, threading.Lock()
        self._method, self._uses_torch = method, uses_torch(work, method)
        self._num_threads = num_threads or choose_threads(work, self._uses_torch)
        self._done = self._flushed = 0
        self._total = sum(item.file.num_bytes - len(item.file.header) for item in work)
        self._stopped = threading.Event()
        self._copier = ThreadPoolExecutor(1, "copy")
        self._flusher = ThreadPoolExecutor(NUM_FLUSHERS, "flush")
        self._copies: list[Future[None]] = []
        self._flushes: list[Future[None]] = []
        self._targets = [_create(folder / item.file.name, item.file) for item in work]

    def __enter__(self) -> "FilesWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None or kind is _StoppedError:
                _finish(self._copies)  # whose failure may be what has stopped the others
            if kind is None:
                self._flushes += [self._flusher.submit(os.fsync, item) for item in self._targets]
                _finish(self._flushes)
        finally:
            self._stopped.set()
            for pool in (self._copier, self._flusher):
                pool.shutdown(wait=True, cancel_futures=True)
            for target in self._targets:
                os.close(target)

    def start_copies(self) -> None:
        """Begins to copy what only moves, in the background."""
        for item, target in zip(self._work, self._targets, strict=True):
            for piece in item.copied:
                self._copies.append(self._copier.submit(self._copy, piece, target))

    def compute(
        self,
        settings: Mapping[str, Settings],
        *,
        allow_nonfinite: bool,
        beside: Callable[[], None] = lambda: None,
    ) -> "Computed":
        """Computes and writes everything else. Returns what was counted.

        Args:
            settings: {canonical name: settings} of every decoder tensor.
            allow_nonfinite: count NaN and Inf instead of refusing them.
            beside: done first, by one of the threads; its error ends all.

        Raises CheckpointError for NaN or Inf in an input (unless allowed) and for results that
        overflow their dtype.
        """
        from merge.writing.compute import Computer

        computer = Computer(self._method, settings, allow_nonfinite=allow_nonfinite)
        pool = ThreadPoolExecutor(self._num_threads, "merge")
        with self._calm_torch():
            try:
                _finish(
                    [pool.submit(beside)]
                    + [
                        pool.submit(self._run, computer, job, target)
                        for job, target in self._jobs()
                    ]
                )
            except BaseException:
                self._stopped.set()
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return computer.counted

    def _calm_torch(self) -> AbstractContextManager[None]:
        """Torch on one thread, where it is needed."""
        if not self._uses_torch:
            return nullcontext()
        from merge.recipe.torch_dtypes import one_thread

        return one_thread()

    def _jobs(self) -> Iterator[tuple[Job, int]]:
        """Jobs and their files, a job of each file in turn.

        Threads then mostly write to different files; the kernel lets one write to a file at a time.
        """
        queues = [
            [(job, target) for job in item.jobs]
            for item, target in zip(self._work, self._targets, strict=True)
        ]
        for turn in itertools.zip_longest(*queues):
            yield from (entry for entry in turn if entry is not None)

    def _run(self, computer: "Computer", job: Job, target: int) -> None:
        def write(data: memoryview, offset: int) -> None:
            self._go_on()
            write_at(target, data, offset)
            self._tell(len(data), target)

        computer.run(*job, write)

    def _copy(self, item: Range, target: int) -> None:
        def told(count: int) -> None:
            self._go_on()
            self._tell(count, target)

        try:
            copy_range(item, target, told)
        except BaseException:
            self._stopped.set()  # what is computed meanwhile would be for nothing
            raise

    def _go_on(self) -> None:
        """Raises where another thread has failed or the process is to end."""
        if self._stopped.is_set() or self._stop_when():
            raise _StoppedError

    def _tell(self, count: int, target: int) -> None:
        """Counts bytes written, tells of them, and sends them to the disk now and then."""
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)
            if self._done - self._flushed >= FLUSH_BYTES:
                self._flushed = self._done
                self._flushes.append(self._flusher.submit(os.fdatasync, target))


def _plan_file(file: OutputFile, method: MergeMethod, settings: Mapping[str, Settings]) -> Work:
    work, copied = Work(file), []
    for tensor in file.tensors:
        is_decoder = tensor.plan.text is not None
        copies = method.copies(settings[tensor.plan.name]) if is_decoder else None
        found = list(pieces(tensor, copies))
        copied += [piece for piece in found if piece.action == "copy"]
        work.jobs += [(tensor, job) for job in _cut(found, _is_whole(tensor, method, copies))]
    work.copied = list(ranges(copied))
    return work


def _is_whole(tensor: OutputTensor, method: MergeMethod, copies: object) -> bool:
    """Whether one thread has to do the whole tensor: it is gone over first, or shares a factor."""
    prepares = tensor.plan.text is not None and copies is None and method.prepare is not None
    return prepares or tensor.plan.low_rank is not None


def _cut(found: list[Piece], whole: bool) -> Iterator[list[Piece]]:
    """The pieces of one tensor as jobs of about JOB_ELEMENTS."""
    if whole:
        yield found
        return
    for piece in found:
        for start in range(piece.start, piece.stop, JOB_ELEMENTS):
            yield [replace(piece, start=start, stop=min(piece.stop, start + JOB_ELEMENTS))]


def uses_torch(work: Sequence[Work], method: MergeMethod) -> bool:
    """Whether torch computes anything: other methods than linear, and adapters' products."""
    plans = (tensor.plan for item in work for tensor in item.file.tensors)
    return method is not LINEAR or any(plan.low_rank is not None for plan in plans)


def choose_threads(work: Sequence[Work], with_torch: bool) -> int:
    """One a core, as far as memory allows; fewer where each would hold a large factor."""
    factors = [
        tensor.plan.low_rank.a.num_elements * DTYPE_BYTES["F32"]
        for item in work
        for tensor in item.file.tensors
        if tensor.plan.low_rank is not None
    ]
    most = MAX_TORCH_THREADS if with_torch else MAX_THREADS
    return max(
        1, min(most, len(os.sched_getaffinity(0)), MAX_FACTOR_BYTES // max(factors, default=1))
    )


def _create(path: Path, file: OutputFile) -> int:
    """An open file of its final size, header written."""
    target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.ftruncate(target, file.num_bytes)
        write_at(target, file.header, 0)
    except BaseException:
        os.close(target)
        raise
    return target


def _finish(futures: Sequence[Future[None]]) -> None:
    """Waits for all, or raises the first error that is not the echo of another one."""
    done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
    if waiting:
        for future in waiting:
            future.cancel()
    errors = [e for e in (f.exception() for f in done if not f.cancelled()) if e is not None]
    first = next((e for e in errors if not isinstance(e, _StoppedError)), None)
    if errors:
        raise first or errors[0]
