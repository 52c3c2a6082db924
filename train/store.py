"""The store by which torchrun's processes find each other, before and after they are a group."""

import functools
import logging
import os
from datetime import timedelta
from typing import Any

from torch import distributed

from train.ranks import rank

log = logging.getLogger(__name__)
CONNECT_SECONDS = 30.0  # of one try


def has_store() -> bool:
    """Whether torchrun names a store that no earlier start has written to (launch/torchrun.sh)."""
    is_old = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if is_old and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        log.warning(
            "torchrun's store keeps what was written before it started the processes again, which "
            "may look for each other in vain: use launch/torchrun.sh, or set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
        return False
    return "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ


@functools.cache  # kept open: the group finds it by its port
def open_store() -> Any:
    """Return the store; where torchrun does not serve it the first process does."""
    store = distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return distributed.PrefixStore("visiongraft", store)
