"""Packs to tensors, in worker processes: a job is a pack, a worker makes its batch.

The plan stays in the main process. Workers get numbers of samples (of a stream: the samples) and
give back tensors, which torch hands over in shared memory. What a worker is at work on stands in
shared memory too, so that one that dies can be told with its row.
"""

import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from configs.errors import DataError, first_line
from data.batches import BAD_ROWS, Batch, make_batch
from data.ledger import BadRow, refusal
from data.render import Sample
from data.samples import SampleTable

SIGNAL_SECONDS = 2.0  # within which the signal of a death comes
REMEMBERED = 1024  # jobs given out whose rows can still be named
DEAD = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)")
SHARED_MEMORY = (
    "\n  out of memory, or of shared memory (in a container: raise --shm-size or lower "
    "data.num_workers), or a picture that crashes its decoder"
)


@dataclass(frozen=True)
class Job:
    """A pack to make a batch of."""

    number: int  # of this rank's jobs, from the start of the run
    samples: Sequence[int] | Sequence[Sample]
    bad_rows: list[BadRow] = field(default_factory=list)  # met while the pack was put together


class PackDataset(Dataset[Batch]):
    """Makes the batch of a job."""

    def __init__(
        self, table: SampleTable | None, image_processor: Any, *, skip: bool, num_workers: int
    ) -> None:
        """Take the table that numbers of samples refer to; a stream has none."""
        self.table, self.image_processor, self.skip = table, image_processor, skip
        # [workers, 3]: process id, job, place in the pack of the sample at work; -1: none
        self.at_work = torch.full((max(num_workers, 1), 3), -1).share_memory_()

    def __getitem__(self, job: Job) -> Batch:
        worker = get_worker_info()
        mine = self.at_work[worker.id if worker else 0]
        mine[0] = os.getpid()
        samples, places, bad = [], [], list(job.bad_rows)
        for place in range(len(job.samples)):
            mine[1:] = torch.tensor([job.number, place])
            made = self._try_sample(job.samples[place])
            if isinstance(made, Sample):
                samples.append(made)
                places.append(place)
            elif self.skip:
                bad.append(made)
            else:
                raise DataError(refusal([made]))
        batch = make_batch(
            samples,
            self.image_processor,
            skip=self.skip,
            on_sample=lambda at: mine[2:].fill_(places[at]),
        )
        mine[1:] = -1
        if bad:
            batch[BAD_ROWS] = [*bad, *batch.get(BAD_ROWS, [])]
        return batch

    def _try_sample(self, sample: int | Sample) -> Sample | BadRow:
        if isinstance(sample, Sample):
            return sample
        assert self.table is not None
        return self.table.try_sample(sample)


class JobSampler(Sampler[Job]):
    """The jobs of a rank in order, remembered for a while."""

    def __init__(self, jobs: Callable[[], Iterator[Job]], num_jobs: int) -> None:
        """Take what starts the jobs, and the number of jobs of the whole run."""
        self.jobs, self.num_jobs = jobs, num_jobs
        self.given: deque[Job] = deque(maxlen=REMEMBERED)

    def __iter__(self) -> Iterator[Job]:
        for job in self.jobs():  # which may know no end
            if job.number >= self.num_jobs:
                return
            self.given.append(job)
            yield job

    def __len__(self) -> int:
        return self.num_jobs


def make_loader(dataset: PackDataset, sampler: JobSampler, *, num_workers: int) -> Any:
    """Return a DataLoader of one batch a job. It draws nothing from torch's global generator."""
    return Loader(
        dataset,
        batch_size=1,
        sampler=sampler,
        collate_fn=take_first,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),
    )


class Loader(DataLoader[Any]):
    """A DataLoader whose workers are started with SIGTERM and SIGUSR1 held back.

    Until `outlive_signals` has been called there, one would end a worker, and with it the run.
    """

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(worker: int) -> None:
    """Let SIGTERM and SIGUSR1 end a worker only where its own main process sends them.

    torchrun and SLURM send them to every process of a rank, and the main one still needs a batch to
    end its step before it writes a checkpoint.
    """
    signals, parent = {signal.SIGTERM, signal.SIGUSR1}, os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # threads to come inherit it

    def wait() -> None:
        while signal.sigwaitinfo(signals).si_pid != parent:
            pass
        os._exit(0)  # as torch's own handler does

    threading.Thread(target=wait, daemon=True).start()


def take_first(batches: list[Batch]) -> Batch:
    """Collate a list of one batch: the batch itself."""
    return batches[0]


def death_of_worker(error: Exception) -> RuntimeError | None:
    """Return torch's error of a worker that died, where that is the reason of `error`.

    torch raises it from a signal, wherever the main process happens to be. Where that is reading
    what the worker sends, the broken connection is met first and the signal comes in a moment.
    """
    if isinstance(error, ConnectionError | EOFError):
        try:
            time.sleep(SIGNAL_SECONDS)
        except RuntimeError as told:
            return death_of_worker(told)
        return None
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return error
    return None


def told_by_worker(error: RuntimeError, dataset: PackDataset, sampler: JobSampler) -> DataError:
    """Return the error of a worker that died, with the row it was on."""
    found = DEAD.search(str(error))
    pids = {int(pid) for pid in found.group(1).split(",")} if found else set()
    rows = []
    for pid, number, place in dataset.at_work.tolist():
        job = next((job for job in sampler.given if job.number == number), None)
        if pid in pids and job is not None:
            rows.append(_name(job.samples[place], dataset.table))
    where = f"while it prepared row {', '.join(rows)}" if rows else "between two rows"
    first = first_line(error)
    return DataError(f"a data worker died {where}: {first}{SHARED_MEMORY}")


def _name(sample: int | Sample, table: SampleTable | None) -> str:
    if isinstance(sample, Sample):
        return str(sample.row)
    assert table is not None
    return table.row_name(sample)
