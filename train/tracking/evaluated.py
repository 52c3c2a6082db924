"""A stand-alone evaluation as a W&B run: models side by side, and the file of what was measured."""

from pathlib import Path

from configs.schema import EvaluateConfig
from train.measuring.results import Results, stable_metrics
from train.saving.run_folder import to_plain
from train.tracking.wandb_run import open_wandb

COLUMNS = ["model", "group", "measure", "language", "value", "rows"]
FILES = ("evaluation.json", "report.md", "report.html")


def track_evaluation(config: EvaluateConfig, results: dict[str, Results]) -> None:
    """Tell W&B of models that are measured: `evaluate/<model>/<stable name>`, and a table."""
    out = Path(config.out)
    run = open_wandb(
        config.tracker, out, job_type="evaluate", run_config=to_plain(config), keeps_id=False
    )
    if run is None:
        return
    for name, path in config.models.items():
        run.use_model(name, path)
    run.log(
        {
            f"evaluate/{model}/{name}": value
            for model, found in results.items()
            for name, value in stable_metrics(found).items()
        },
        0,
    )
    rows = [
        [model, group, measure, code, value, result.num_rows[measure][code]]
        for model, groups in results.items()
        for group, result in groups.items()
        for measure, values in result.by_language.items()
        for code, value in values.items()
    ]
    run.log_table("evaluate/results", COLUMNS, rows, 0)
    for file in (out / name for name in FILES):
        if file.is_file():
            run.save_file(file)
    run.finish()
