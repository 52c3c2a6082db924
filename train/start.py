"""What `train/main.py` calls: the plan with `dry_run=true`, else the run.

The plan imports nothing that only training needs: TRL, DeepSpeed, W&B.
"""

import sys

from configs.schema import TrainConfig


def start(config: TrainConfig) -> None:
    """Plan the stage that `config` describes, or train it."""
    if config.dry_run:
        # PEFT imports it where it is installed, and it torch's compiler: a sixth of all the time.
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
        from train.planning.plan import plan_run

        plan_run(config)
        return
    from train.run import train

    train(config)
