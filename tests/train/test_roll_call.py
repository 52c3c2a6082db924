"""Processes that have not met yet: all come, one ends, one is silent, the first is gone."""

import multiprocessing
import os
import signal
import socket
import time
from datetime import timedelta
from typing import Any

import pytest
from torch import distributed

from configs.errors import DataError
from train.leave import leave_together
from train.roll_call import roll_call
from train.store import open_store

pytestmark = pytest.mark.timeout(60)
SECONDS = 3.0  # of silence
HOST = socket.gethostname()


def member(rank: int, fate: str, port: int, results: Any) -> None:
    """Be one of two processes. `fate` happens to the one whose number it ends with."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "2"}  # each on a machine of its own
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    open_store.cache_clear()
    try:
        with roll_call(SECONDS) as tell:
            tell("reading data")
            time.sleep(1.5)
            if fate == f"error {rank}":
                raise DataError("row 7 is empty\n  and more")
            if fate == f"killed {rank}":
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == f"slow {rank}":
                time.sleep(2 * SECONDS)
        distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
        distributed.barrier()
        if fate == "export":
            time.sleep(2 * (1 - rank))  # the first one exports
            begun = time.monotonic()
            leave_together(SECONDS)
            assert (time.monotonic() - begun > 1.5) is (rank == 1)
        results.put((rank, "met"))
    except Exception as error:
        results.put((rank, f"{type(error).__name__}: {error}"))


def told(fate: str) -> tuple[dict[int, str], float]:
    """What each of two processes tells in the end, and how long that took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = [(rank, fate, port, results) for rank in (0, 1)]
    processes = [context.Process(target=member, args=each) for each in arguments]
    begun = time.monotonic()
    for process in processes:
        process.start()
    count = 1 if fate.startswith("killed") else 2
    found = dict(results.get(timeout=40) for _ in range(count))
    for process in processes:
        process.join(20)
        assert process.exitcode is not None
    return found, time.monotonic() - begun


def test_all_come_and_form_the_group():
    """On the same port."""
    assert told("nothing")[0] == {0: "met", 1: "met"}


def test_a_machine_stays_while_the_first_exports():
    """Else the torchrun that leaves may be the rendezvous host."""
    assert told("export")[0] == {0: "met", 1: "met"}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_slow_but_gives_signs_is_waited_for(rank):
    assert told(f"slow {rank}")[0] == {0: "met", 1: "met"}


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_ends_the_wait_of_the_other(rank):
    found, seconds = told(f"error {rank}")
    assert found[rank] == "DataError: row 7 is empty\n  and more"
    assert found[1 - rank].startswith(
        f"LostProcessError: the run cannot begin without rank {rank} on {HOST}: "
        "ended by DataError: row 7 is empty ("
    )
    assert seconds < 10


@pytest.mark.slow
def test_who_is_silent_is_given_up():
    found, seconds = told("killed 1")
    assert found[0].startswith(
        f"LostProcessError: the run cannot begin without rank 1 on {HOST}: reading data ("
    )
    assert "nothing came for engine.timeout_seconds=3" in found[0]
    assert SECONDS < seconds < SECONDS + 10


def test_the_first_one_is_gone():
    """With it the store: its connection is closed."""
    found, seconds = told("killed 0")
    assert found[1].startswith(
        f"LostProcessError: the run cannot begin without rank 0 on {HOST}: reading data ("
    )
    assert seconds < 10
