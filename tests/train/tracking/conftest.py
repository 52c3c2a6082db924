"""Two stages whose runs are W&B's and TensorBoard's; the second is broken off and gone on with."""

from pathlib import Path
from typing import Any

import pytest
from pico_runs import SCENES, run, vlm

from train.watching.callbacks import RunCallback

SFT = [
    *SCENES, "data.held_out.numbers.num_rows=4", "stage=sft", "optim.max_steps=4",
    "checkpoint.save_steps=2", "evaluation.eval_steps=2", "evaluation.max_new_tokens=3",
    "tracker.wandb=true", "tracker.mode=offline", "tracker.group=pico", "tracker.tensorboard=true",
    "checkpoint.best_metric=eval/scenes/nll",
]  # fmt: skip


@pytest.fixture(scope="package")
def no_agent() -> Any:
    """Whatever machine this is, no sweep's agent has started us."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="package")
def stages(pipeline, no_agent, tmp_path_factory) -> dict[str, Path]:
    """A tuned model, from an aligned one that was W&B's too: broken off after step 3, gone on."""
    root = tmp_path_factory.mktemp("tracked")
    align = run(
        "model=compose", f"model.decoder.path={pipeline.text}", *SCENES, "stage=align",
        "model.vision_tower.hidden_size=64", "model.vision_tower.intermediate_size=64",
        "model.vision_tower.num_attention_heads=2", "model.vision_tower.image_size=32",
        "tracker.wandb=true", "tracker.mode=offline", "tracker.group=pico",
        "optim.max_steps=1", f"output_dir={root}/align",
    )  # fmt: skip
    tune = [*vlm(align / "export"), *SFT, f"output_dir={root}/sft"]
    inner = RunCallback.on_log

    def broken(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        inner(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCallback, "on_log", broken)
        with pytest.raises(KeyboardInterrupt):
            run(*tune)
    run(*tune)
    return {"align": align, "sft": root / "sft"}
