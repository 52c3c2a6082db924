"""The panels of the W&B workspace, under the names that runs log, and how it is saved."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

from configs.errors import ConfigError
from configs.schema import DashboardConfig
from train.tracking.wandb_run import has_key

log = logging.getLogger(__name__)
# (section, [(title, metric or metrics, or a regular expression of them)])
Panels = Sequence[tuple[str, "str | list[str] | re.Pattern[str]"]]


def by_language(prefix: str, measure: str) -> re.Pattern[str]:
    """Return what names a measure of all languages, and their mean."""
    return re.compile(f"^{prefix}/[^/]+/{measure}$")


def seeing_and_blind(measure: str) -> list[str]:
    """Return the means over languages of a measure, with pictures and with them blanked."""
    return [f"caption/mean/{measure}", f"caption/mean/blind_{measure}"]


SECTIONS: dict[str, Panels] = {
    "Training": [
        ("loss, nats a token", "train/loss"),
        ("loss by language", re.compile("^train/loss/language/.+$")),
        ("loss by source", re.compile("^train/loss/source/.+$")),
        ("gradient norm", re.compile("^train/grad_norm(/.+)?$")),
        ("learning rates", re.compile("^train/learning_rate/.+$")),
    ],
    "Retention": [
        ("text: loss over step 0, nats a token", by_language("retention", "nll_increase")),
        ("text: KL to the original, nats a token", by_language("retention", "kl")),
        ("text: loss, nats a token", by_language("retention", "nll")),
        ("text: loss, mean over languages", "retention/mean/nll"),
    ],
    "Captioning": [
        ("picture gap, nats a token", by_language("caption", "picture_gap")),
        ("chrF", by_language("caption", "chrf")),
        ("loss, nats a token", by_language("caption", "nll")),
        ("right caption chosen", by_language("caption", "choice_accuracy")),
        ("BLEU", by_language("caption", "bleu")),
        ("CIDEr-D", by_language("caption", "cider")),
        ("answered exactly", by_language("caption", "exact_match")),
        ("chrF, seeing and blind", seeing_and_blind("chrf")),
        ("CIDEr-D, seeing and blind", seeing_and_blind("cider")),
        ("right caption chosen, seeing and blind", seeing_and_blind("choice_accuracy")),
        ("loss, seeing and blind", seeing_and_blind("nll")),
        ("chrF by language, blind", by_language("caption", "blind_chrf")),
    ],
    "Speed": [
        ("tokens a second", ["perf/tokens_per_second", "perf/supervised_tokens_per_second"]),
        ("MFU", "perf/mfu"),
        ("share of time that waits for data", "perf/data_wait_ratio"),
        ("peak memory, GiB", re.compile("^perf/memory_peak_gib/.+$")),
        ("pictures and tiles a second", ["perf/images_per_second", "perf/tiles_per_second"]),
        ("seconds an evaluation", "perf/evaluation_seconds"),
    ],
    "Data": [
        ("epoch", "data/epoch"),
        ("padding", "data/padding_ratio"),
        ("rows left out", "data/rows_left_out"),
    ],
}
SWEEP = {  # against alpha
    "text: loss, nats a token": "sweep/text_nll",
    "captions: chrF": "sweep/caption_chrf",
    "captions: loss, nats a token": "sweep/caption_nll",
    "picture gap, nats a token": "sweep/picture_gap",
}
CURVE = ("text loss against captions' chrF", "sweep/caption_chrf", "sweep/text_nll")
SWEEP_TABLES = ("sweep/points", "sweep/languages")
OPEN = ("Training", "Retention", "Captioning", "Sweep")
COLUMNS = 3


def save_workspace(config: DashboardConfig) -> None:
    """Save the workspace, or print its specification."""
    workspace = build_workspace(config)
    if config.dry_run:
        sys.stdout.write(json.dumps(specification(workspace), indent=1) + "\n")
        return
    if not has_key():
        raise ConfigError(
            "a workspace is saved in an account, and nobody is logged in here: `wandb login` or "
            "$WANDB_API_KEY; dry_run=true prints it without one"
        )
    if not workspace.entity:
        workspace.entity = _default_entity()
    try:
        workspace.save()
    except Exception as error:  # of wandb's service, or of its answer
        raise ConfigError(
            f"W&B did not save the workspace in {workspace.entity}/{config.project}: {error}"
        ) from error
    log.info("saved: %s", workspace.url)


def specification(workspace: Any) -> dict[str, Any]:
    """Return what is sent: the view's names and its sections."""
    view: dict[str, Any] = workspace._to_model().model_dump(by_alias=True, exclude_none=True)
    return view


def build_workspace(config: DashboardConfig) -> Any:
    """Return the `wandb_workspaces.workspaces.Workspace`.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ConfigError(
            'the dashboard needs wandb-workspaces: pip install "wandb-workspaces>=0.4"'
        ) from error
    found = {
        name: [_line(wr, title, what) for title, what in panels]
        for name, panels in SECTIONS.items()
    }
    title, x, y = CURVE
    found["Sweep"] = [
        wr.LinePlot(title=title, x=x, y=[y]),
        *(wr.LinePlot(title=title, x="sweep/alpha", y=[name]) for title, name in SWEEP.items()),
    ]
    tables = [f"eval/{name}/answers" for name in config.held_out]
    found["Tables"] = [
        wr.WeavePanelSummaryTable(table_name=name) for name in (*tables, *SWEEP_TABLES)
    ]
    return ws.Workspace(
        name=config.name,
        entity=config.entity or "",
        project=config.project,
        auto_generate_panels=False,
        sections=[_section(ws, name, panels) for name, panels in found.items()],
    )


def _section(ws: Any, name: str, panels: list[Any]) -> Any:
    columns = 1 if name == "Tables" else COLUMNS
    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    return ws.Section(name=name, panels=panels, is_open=name in OPEN, layout_settings=layout)


def _line(wr: Any, title: str, what: str | list[str] | re.Pattern[str]) -> Any:
    if isinstance(what, re.Pattern):
        return wr.LinePlot(title=title, metric_regex=what.pattern)
    return wr.LinePlot(title=title, y=[what] if isinstance(what, str) else what)


def _default_entity() -> str:
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:  # a key that is not valid, or no network
        raise ConfigError(f"W&B does not answer: {error}; entity=... names the account") from error
    if not entity:
        raise ConfigError("entity: required, as the account has no default one: entity=...")
    return str(entity)
