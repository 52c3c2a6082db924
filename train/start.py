"""What `train/main.py` calls: the plan with `dry_run=true`, else the run.

The plan imports nothing that only training needs (TRL, DeepSpeed, W&B: a third of the time to the
first line).
"""

from configs.schema import TrainConfig


def start(config: TrainConfig) -> None:
    """Plan the stage that `config` describes, or train it."""
    if config.dry_run:
        from train.plan import plan_run

        plan_run(config)
        return
    from train.run import train

    train(config)
