"""The steps of a run and how learning rates go over them: up in a line, then down by a cosine."""

from configs.schema import TrainConfig
from data.build import TrainingData

PAPER_WARMUP = 200  # steps; arXiv 2505.08751


def planned_steps(config: TrainConfig, data: TrainingData) -> int:
    """Return the optimizer steps of the run."""
    if config.optim.max_steps is not None:
        return config.optim.max_steps
    assert data.plan is not None  # streaming requires max_steps
    return data.plan.num_steps(config.optim.num_epochs)


def warmup_steps(wanted: int | None, num_steps: int) -> int:
    """Return the steps over which learning rates rise from 0 to their peak."""
    return min(wanted, num_steps) if wanted is not None else min(PAPER_WARMUP, num_steps // 10)
