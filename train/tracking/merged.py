"""A merge as a W&B run: its report, and from which models which one came."""

from pathlib import Path
from typing import Any

from configs.schema import MergeConfig
from train.saving.run_folder import to_plain
from train.tracking.wandb_run import open_wandb

FILES = ("merge_report.json", "README.md")


def track_merge(config: MergeConfig, report: dict[str, Any]) -> None:
    """Tell W&B of a merge that is written; the folder `wandb/` lies beside the model's."""
    out = Path(config.out)
    run = open_wandb(
        config.tracker, out.parent, job_type="merge", run_config=to_plain(config),
        keeps_id=False, name=out.name,
    )  # fmt: skip
    if run is None:
        return
    for role in ("vlm", "text", "base", "lora"):
        if (path := getattr(config, role)) is not None:
            run.use_model(role, path)
    changes, rounding = report["changes"], report["rounding"].get("all", {})
    numbers = {
        "merge/seconds": report["seconds"],
        "merge/changed_ratio": changes["changed_ratio"],
        "merge/kept_ratio": rounding.get("kept_ratio"),
    }
    run.log({name: value for name, value in numbers.items() if value is not None}, 0)
    for name in FILES:
        run.save_file(out / name)
    run.log_model(out, "model", label="merged")
    run.finish()
