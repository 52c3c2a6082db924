"""Where metrics go: metrics.jsonl always, Weights & Biases beside it."""

import json
import logging
import netrc
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from configs.errors import ConfigError, Preempted
from configs.schema import TrackerConfig, WandbMode
from train.saving.disk import told_when_full

log = logging.getLogger(__name__)
# Where `wandb login` writes its key: the default of wandb 0.31, and the one before.
WANDB_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
WANDB_INIT_SECONDS = 20
ID_FILE = "wandb_id.txt"
MODES: tuple[Literal["online", "offline", "disabled"], ...] = ("online", "offline", "disabled")


class Tracker:
    """Writes metrics of one run, from the first process. The others hold one that does nothing."""

    def __init__(self, path: Path | None, wandb_run: Any = None) -> None:
        """Append to `path`; None writes nothing."""
        self.path, self.wandb_run = path, wandb_run

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures in tables are kept."""
        return self.wandb_run is not None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers under their names at an optimizer step (or a point of a sweep)."""
        if self.path is None:
            return
        with (
            told_when_full("metrics", self.path),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self.wandb_run is not None:
            self.wandb_run.log(metrics, step=step)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table to W&B; PIL pictures in it are shown. Files of it are the caller's job."""
        if self.wandb_run is None:
            return
        import wandb
        from PIL import Image

        shown = [
            [wandb.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row]
            for row in rows
        ]
        self.wandb_run.log(
            {name: wandb.Table(columns=list[str | int](columns), data=shown)}, step=step
        )

    def save_file(self, path: Path) -> None:
        """Keep a small file with the W&B run."""
        if self.wandb_run is not None:
            shutil.copy(path, Path(self.wandb_run.dir) / path.name)

    def finish(self, *, failed: bool = False, preempted: bool = False) -> None:
        """Close the W&B run: finished, failed, or preempted, which is to be gone on with."""
        if self.wandb_run is None:
            return
        if preempted:
            self.wandb_run.mark_preempting()
        code = Preempted.exit_code if preempted else int(failed)
        self.wandb_run.finish(exit_code=code)


def start_tracker(
    config: TrackerConfig,
    run_dir: Path,
    *,
    job_type: str,
    run_config: dict[str, Any],
    first_process: bool,
) -> Tracker:
    """Open the run's metrics file and its W&B run, the same one after a resume."""
    if not first_process:
        return Tracker(None)
    path = run_dir / "metrics.jsonl"
    mode = resolve_mode(config.mode)
    if not config.wandb or mode == "disabled":
        return Tracker(path)
    try:
        run = _init_wandb(config, run_dir, job_type, run_config, mode)
    except Exception as error:  # wandb.errors.Error and what its service raises
        if config.mode is not WandbMode.auto or mode != "online":
            raise ConfigError(
                f"tracker.mode={config.mode.value}: W&B does not start: {error}; "
                "tracker.mode=offline needs no network"
            ) from error
        log.warning("wandb: no connection (%s); going on offline", error)
        mode = "offline"
        run = _init_wandb(config, run_dir, job_type, run_config, mode)
    where = run.url if mode == "online" else f"offline; later: wandb sync {run_dir}/wandb/offline-*"
    log.info("wandb: %s", where)
    return Tracker(path, run)


def _init_wandb(
    config: TrackerConfig,
    run_dir: Path,
    job_type: str,
    run_config: dict[str, Any],
    mode: Literal["online", "offline", "disabled"],
) -> Any:
    import wandb

    # Nothing asks, nothing waits, and the terminal belongs to the progress bar.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        init_timeout=WANDB_INIT_SECONDS,
    )
    return wandb.init(
        project=config.project,
        entity=config.entity,
        group=config.group,
        name=run_dir.name,
        job_type=job_type,
        id=_run_id(run_dir),
        resume="allow" if mode == "online" else None,
        dir=str(run_dir),
        mode=mode,
        config=run_config,
        settings=settings,
    )


def resolve_mode(mode: WandbMode) -> Literal["online", "offline", "disabled"]:
    """Return "online" or "offline"; `auto` is online when a key is at hand."""
    if mode is not WandbMode.auto:
        return "online" if mode is WandbMode.online else "offline"
    for named in MODES:
        if os.environ.get("WANDB_MODE") == named:
            return named
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def truncate_metrics(path: Path, step: int, *, is_last: bool = False) -> None:
    """Drop lines after `step`: what a killed run logged past the checkpoint it goes on from.

    At the last step the run measures once more, so what it measured there is dropped as well.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if is_last:
        kept = [line for line in kept if _step_of(line) < step or '"train/loss"' in line]
    staging = path.with_suffix(".jsonl.writing")
    staging.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    staging.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:  # a line that a kill cut short
        return float("inf")


def _netrc_has_key() -> bool:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    known = {*WANDB_HOSTS, urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname}
    return any(host in known and bool(entry[2]) for host, entry in hosts.items())


def _run_id(run_dir: Path) -> str:
    path = run_dir / ID_FILE
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
