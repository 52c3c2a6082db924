"""Another process is gone: what torch says of it becomes one message; a rank's own error stays."""

from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.distributed import distributed_c10d

from configs.errors import DataError, LostProcessError
from train.lost import lost_reason, set_group_timeouts, told_when_lost, what_to_do

# As torch 2.13 words them; those of NCCL from its sources, for there is none here.
LOST = {
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
    "[10.77.0.2]:17608. This is typically caused by a remote worker crashing. Check the logs": (
        "Connection closed by peer [10.77.0.2]:17608"
    ),
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
    "15000ms for recv operation to complete": (
        "Timed out waiting 15000ms for recv operation to complete"
    ),
    "Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.h:311] "
    "Connect timeout [none]": "Gloo connectFullMesh failed with Connect timeout [none]",
    "NCCL error in: ../NCCLUtils.hpp:275, remote process exited or there was a network error": (
        "NCCL error in: ../NCCLUtils.hpp:275, remote process exited or there was a network error"
    ),
}
TOLD = (lambda: "after step 3", lambda: "run the same command again")
OWN = [
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"),
    RuntimeError("DataLoader worker (pid 4) is killed by signal: Killed."),
    ConnectionResetError("Connection reset by peer"),  # the hub's, or a worker's
]


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("socket.gethostname", lambda: "n2")


@pytest.mark.parametrize("text", LOST)
def test_what_torch_says_of_a_lost_process(text):
    assert lost_reason(RuntimeError(text)) == LOST[text]
    assert lost_reason(distributed.DistBackendError(text)) == LOST[text]


@pytest.mark.parametrize("error", OWN, ids=str)
def test_what_is_no_lost_process_stays_as_it_is(error, two_ranks):
    with pytest.raises(type(error)) as caught, told_when_lost(*TOLD):
        raise error
    assert caught.value is error


def test_the_message(two_ranks):
    message = (
        r"^rank 1 of 2 on n2 has lost another process after step 3: Connection reset by peer\n"
        r"  another process has died, .* the first error of all logs is the cause\n"
        r"  run the same command again$"
    )
    with pytest.raises(LostProcessError, match=message), told_when_lost(*TOLD):
        raise RuntimeError("Connection reset by peer")
    with (
        pytest.raises(LostProcessError, match=r"after step 3: .*\n.*_seconds=0\.5"),
        told_when_lost(*TOLD, timeout_seconds=0.5),
    ):
        raise distributed.DistStoreError("wait timeout after 500ms")


def test_what_to_do_without_a_checkpoint(tmp_path):
    assert what_to_do(tmp_path).startswith(
        "all processes start anew, for there is no checkpoint yet: torchrun does that itself while "
    )


def test_a_ranks_own_error_is_its_own(two_ranks):
    with pytest.raises(DataError, match="row 7"), told_when_lost(*TOLD):
        raise DataError("row 7: Connection closed by peer")


def test_one_process_has_lost_nobody():
    with pytest.raises(RuntimeError, match="reset"), told_when_lost(*TOLD):
        raise RuntimeError("Connection reset by peer")


def test_every_group_waits_as_long(monkeypatch):
    """Also those that are made without a time, as DeepSpeed makes its own."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):  # put back afterwards
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    set_group_timeouts(7.5)
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for group in (distributed.group.WORLD, distributed.new_group(backend="gloo")):
            backend = group._get_backend(torch.device("cpu"))
            assert backend.options._timeout == timedelta(seconds=7.5)
    finally:
        distributed.destroy_process_group()
