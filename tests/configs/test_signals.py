"""Signals that come while threads work take effect afterwards, and lose nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from configs.signals import HELD, held_back


class ToldError(Exception):
    pass


@pytest.fixture(params=HELD, ids=lambda s: s.name)
def raising(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal whose handler raises."""

    def handler(signum: int, _: object) -> None:
        raise ToldError(signum)

    before = signal.signal(request.param, handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_takes_effect_after_the_block(raising):
    told = []

    def block() -> None:
        with held_back() as has_come:
            told.append(has_come())
            os.kill(os.getpid(), raising)
            told.append(has_come())

    with pytest.raises(ToldError):
        block()
    assert told == [False, True]
    with pytest.raises(ToldError):  # as before
        signal.raise_signal(raising)


def test_it_comes_before_an_error_of_the_block(raising):
    def block() -> None:
        with held_back():
            os.kill(os.getpid(), raising)
            raise ValueError("an echo of it")

    with pytest.raises(ToldError) as caught:
        block()
    assert isinstance(caught.value.__context__, ValueError)


def test_what_has_no_python_handler_stays_as_it_is():
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    with held_back():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_threads_are_left_alone():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: list(map(bool, [held_back().__enter__()]))).result() == [True]


def test_no_thread_outlives_its_pool(raising):
    """Without the block this ends, after some tries, with a RuntimeError of Python's own locks."""

    def work(has_come: Callable[[], bool]) -> None:
        if not has_come():
            time.sleep(2e-4)

    def work_until_it_comes(delay: float) -> None:
        with held_back():
            threading.Timer(delay, os.kill, [os.getpid(), raising]).start()
        while True:
            with held_back() as has_come, ThreadPoolExecutor(2) as pool:
                list(pool.map(work, [has_come] * 8))

    others = threading.active_count()  # of the test runner
    for attempt in range(300):
        with pytest.raises(ToldError):
            work_until_it_comes(attempt * 2e-5)
        assert threading.active_count() <= others + 1  # the timer may be at its end
