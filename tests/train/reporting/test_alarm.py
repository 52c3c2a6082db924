"""The report tells where text lost more than it may, and that the run ended there."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_runs import make_run

from train.reporting.run_report import write_run_report


def alarmed(folder: Path, evaluation: dict[str, Any], *, finished: bool = False) -> str:
    """Write a run that lost text from step 4 on in `udhr`; return its report.md."""
    make_run(folder, codes=["en", "fr"], num_steps=8, every=2, finished=finished)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "evaluation": evaluation}))
    for path in (folder / "evaluation").glob("step-*.json"):
        content = json.loads(path.read_text())
        step = content["step"]
        lost = 0.02 * step + 0.01 if step >= 4 else 0.0  # 0.09, 0.13, 0.17; 0.01 more in fr
        increases = {"udhr": {"en": lost, "fr": lost + 0.01}, "numbers": {"en": 0.3, "fr": -0.3}}
        for group, found in increases.items():
            content["groups"][group]["by_language"]["nll_increase"] = found
        path.write_text(json.dumps(content))
    write_run_report(folder)
    return (folder / "report.md").read_text().replace("\\", "")


def test_the_headline_tells_how_often_and_where(tmp_path: Path) -> None:
    text = alarmed(tmp_path / "run", {"max_text_loss_increase": 0.05}, finished=True)
    assert "| Text loss above its limit | **3 of 4** |" in text
    assert "above 0.05 nats a token, max_text_loss_increase: udhr at steps 4, 6, 8 |" in text
    assert "finished after 8 steps" in text
    charts = tmp_path / "run" / "report_charts"
    assert '<path class="limit"' in (charts / "retention-nll_increase.svg").read_text()
    others = [path for path in charts.iterdir() if path.name != "retention-nll_increase.svg"]
    assert not [path for path in others if '<path class="limit"' in path.read_text()]


def test_a_limit_that_was_kept_and_none_at_all(tmp_path: Path) -> None:
    kept = alarmed(tmp_path / "kept", {"max_text_loss_increase": 0.5})
    assert "| Text loss above its limit | **0 of 4** |" in kept
    off = alarmed(tmp_path / "off", {"max_text_loss_increase": None})
    assert "| Text alarm | **off** | evaluation.max_text_loss_increase is null |" in off
    assert "limit" not in (tmp_path / "off/report_charts/retention-nll_increase.svg").read_text(
    ).replace("svg.chart .limit", "")  # fmt: skip
    for strange in ("x", True, [1]):
        alarmed(tmp_path / str(strange), {"max_text_loss_increase": strange})


@pytest.mark.parametrize(
    ("limit", "action", "finished", "is_told"),
    [(0.05, "stop", False, True), (0.05, "warn", False, False), (0.5, "stop", False, False),
     (0.05, "stop", True, False), (None, "stop", False, False)],
)  # fmt: skip
def test_a_run_that_its_alarm_ended_says_so(
    tmp_path: Path, limit: float | None, action: str, finished: bool, is_told: bool
) -> None:
    evaluation = {"max_text_loss_increase": limit, "on_text_loss_increase": action}
    text = alarmed(tmp_path / "run", evaluation, finished=finished)
    assert ("stopped by its alarm at step 8" in text) is is_told
