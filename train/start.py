"""What `train/main.py` calls: the plan with `dry_run=true`, else the run.

The plan imports nothing that only training needs: TRL, DeepSpeed, W&B.
"""

import gc
import sys

from configs.schema import Quantization, TrainConfig


def start(config: TrainConfig) -> None:
    """Plan the stage that `config` describes, or train it."""
    if config.dry_run:
        _plan(config)
        return
    from train.run import train

    train(config)


def _plan(config: TrainConfig) -> None:
    hides = config.adapter.quantization is Quantization.none and "bitsandbytes" not in sys.modules
    if hides:
        # PEFT imports it where it is installed; only 4 bits need it, and say where it is not.
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    # To look for garbage among a million objects that imports made, and that stay, is a fifth of
    # all the time.
    gc.disable()
    try:
        from train.planning.plan import plan_run

        gc.freeze()
        gc.enable()
        plan_run(config)
    finally:
        gc.enable()
        gc.unfreeze()
        if hides:
            del sys.modules["bitsandbytes"]
