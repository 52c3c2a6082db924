"""Fixtures for tests of what starts runs."""

from collections.abc import Iterator

import pytest
import slurm_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    """A SLURM of two nodes; skips where there can be none."""
    if (reason := slurm_cluster.why_not()) is not None:
        pytest.skip(reason)
    with slurm_cluster.made_cluster() as made:
        yield made
