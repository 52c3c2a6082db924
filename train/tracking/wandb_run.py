"""One Weights & Biases run: never asks, never waits, and offline nothing of it is lost."""

import logging
import netrc
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from configs.errors import ConfigError, Preempted
from configs.schema import Artifacts, TrackerConfig, WandbMode
from train.measuring.results import measure_of
from train.measuring.shown import LOSSLESS_SIDE
from train.tracking.artifacts import ModelFolder, folder_of, recorded_folder

log = logging.getLogger(__name__)
# Where `wandb login` writes its key: the default of wandb 0.31, and the one before.
WANDB_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
WANDB_INIT_SECONDS = 20
ID_FILE = "wandb_id.txt"
CONFIG_FILE = "resolved_config.yaml"  # W&B writes a config.yaml of its own over ours
NOT_DECLARED = "wandb: %s is not told of as an artifact: %s"
STAGING = "WANDB_DATA_DIR"
OURS: dict[str, str] = {}  # what we have set, and may set anew for another run of this process
MODES: tuple[Literal["online", "offline", "disabled"], ...] = ("online", "offline", "disabled")


class WandbRun:
    """Sends metrics, tables, files and models to a W&B run."""

    shows_pictures = True

    def __init__(self, run: Any, name: str, artifacts: Artifacts = Artifacts.none) -> None:
        """Take an open run; `name` begins the names of its models."""
        self.run, self.name, self.artifacts = run, name, artifacts
        self.files: dict[str, Path] = {}  # name in the run -> file that is kept with it
        self.inputs: dict[str, dict[str, str]] = {}
        self.defined: set[str] = set()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers."""
        for name in metrics.keys() - self.defined:
            self.defined.add(name)
            if (summary := summary_of(name)) is not None:
                self.run.define_metric(name, summary=summary)
        self.run.log(metrics, step=step)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table; PIL pictures in it are shown."""
        import wandb
        from PIL import Image

        shown = [
            [_shown(cell) if isinstance(cell, Image.Image) else cell for cell in row]
            for row in rows
        ]
        self.run.log({name: wandb.Table(columns=list[str | int](columns), data=shown)}, step=step)

    def save_file(self, path: Path) -> None:
        """Keep a small file with the run: as it is now, and as it is at the end.

        It is copied, for a link would lead nowhere where the folder is synced from another machine.
        """
        name = CONFIG_FILE if path.name == "config.yaml" else path.name
        self.files[name] = path
        copy = Path(self.run.dir) / name
        shutil.copy(path, copy)
        self.run.save(str(copy), base_path=self.run.dir, policy="live", glob=False)

    def use_model(self, role: str, path: str) -> None:
        """Tell what the run reads: a folder of a model, or the name of one on the hub."""
        told = {"path": path}
        if Path(path).is_dir():
            told["path"] = str(Path(path).resolve())
            if self.artifacts is not Artifacts.none:
                told |= self._declare_input(Path(path))
        self.inputs[role] = told
        self.run.config.update({"inputs": self.inputs}, allow_val_change=True)

    def _declare_input(self, path: Path) -> dict[str, str]:
        try:
            folder = recorded_folder(path)
            return {"artifact": folder.name, "digest": self._declare(folder, is_input=True)}
        except Exception as error:  # of files, of W&B, of the network
            log.warning(NOT_DECLARED, path, error)
            return {}

    def log_model(
        self, path: Path, kind: str, *, label: str, aliases: tuple[str, ...] = ()
    ) -> None:
        """Tell of a folder that the run has written; a later run finds its artifact there."""
        if self.artifacts is Artifacts.none:
            return
        try:
            folder = folder_of(path, f"{self.name}-{label}", kind)
            self._declare(folder, aliases=("latest", *aliases))
            folder.record()
        except Exception as error:  # the model is there; its name in W&B is not worth a run
            log.warning(NOT_DECLARED, path, error)

    def _declare(
        self, folder: ModelFolder, *, is_input: bool = False, aliases: tuple[str, ...] = ()
    ) -> str:
        """Make an artifact, or say that one is used; return the digest that W&B knows it by.

        `Run.use_artifact` refuses offline. What it does with an artifact that is no server's yet is
        to log it with the mark that it is an input, and this the offline file holds: W&B takes
        the same name and digest for the version that is there, and otherwise makes it.
        """
        import wandb

        artifact = wandb.Artifact(folder.name, folder.kind, metadata={"path": str(folder.path)})
        upload = self.artifacts is Artifacts.upload and not is_input
        for name, digest in folder.digests.items():
            _add_file(artifact, folder.path / name, name, digest, upload=upload)
        if upload:  # read whole just now
            folder.digests.update(
                {str(name): str(entry.digest) for name, entry in artifact.manifest.entries.items()}
            )
        # Contract: of wandb >= 0.31, held by tests/train/tracking/test_offline.py
        self.run._log_artifact(
            artifact, aliases=list(aliases), is_user_created=is_input, use_after_commit=is_input
        )
        return str(artifact.manifest.digest())

    def finish(self, *, failed: bool = False, preempted: bool = False) -> None:
        """Close the run: finished, failed, or preempted, which is to be gone on with."""
        for name, path in self.files.items():
            if path.is_file():
                shutil.copy(path, Path(self.run.dir) / name)
        if preempted:
            self.run.mark_preempting()
        self.run.finish(exit_code=Preempted.exit_code if preempted else int(failed))


def _add_file(artifact: Any, path: Path, name: str, digest: str, *, upload: bool) -> None:
    if upload:
        artifact.add_file(str(path), name=name, policy="immutable")
        return
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.paths import LogicalPath

    artifact.manifest.add_entry(
        ArtifactManifestEntry(
            path=LogicalPath(name),
            digest=digest,
            ref=path.resolve().as_uri(),
            size=path.stat().st_size,
        )
    )


def open_wandb(
    config: TrackerConfig,
    run_dir: Path,
    *,
    job_type: str,
    run_config: dict[str, Any],
    keeps_id: bool = True,
    name: str | None = None,
) -> WandbRun | None:
    """Open a W&B run, the same one after a resume; None where $WANDB_MODE is disabled.

    Args:
        config: tracker keys.
        run_dir: folder that `wandb/` goes into.
        job_type: such as "sft".
        run_config: what W&B shows as the run's config.
        keeps_id: whether a run in `run_dir` is gone on with.
        name: of the run; None: that of `run_dir`.
    """
    mode = resolve_mode(config.mode)
    if mode == "disabled":
        return None
    name = name or run_dir.name
    run_id = _run_id(run_dir) if keeps_id else None
    try:
        run = _init_wandb(config, run_dir, job_type, run_config, mode, name, run_id)
    except Exception as error:  # wandb.errors.Error and what its service raises
        if config.mode is not WandbMode.auto or mode != "online":
            raise ConfigError(
                f"tracker.mode={config.mode.value}: W&B does not start: {error}; "
                "tracker.mode=offline needs no network"
            ) from error
        log.warning("wandb: no connection (%s); going on offline", error)
        mode = "offline"
        run = _init_wandb(config, run_dir, job_type, run_config, mode, name, run_id)
    if run is None:
        return None
    where = run.url if mode == "online" else f"offline; later: visiongraft sync {run_dir}"
    log.info("wandb: %s", where)
    if job_type == "sweep":
        # A schedule has no alpha: not drawn over another candidate's, as the last one would be.
        run.define_metric("sweep/alpha")
        run.define_metric("sweep/*", step_metric="sweep/alpha", step_sync=False)
    label = "-".join(part for part in (config.group, name) if part)
    return WandbRun(run, label, config.artifacts)


def _init_wandb(
    config: TrackerConfig,
    run_dir: Path,
    job_type: str,
    run_config: dict[str, Any],
    mode: Literal["online", "offline"],
    name: str,
    run_id: str | None,
) -> Any:
    import wandb

    if mode == "offline" and os.environ.get(STAGING, OURS.get(STAGING)) == OURS.get(STAGING):
        # Where pictures of tables wait for the sync: by default in the home folder. W&B reads the
        # variable at each artifact, and has no argument for it.
        os.environ[STAGING] = OURS[STAGING] = str((run_dir / "wandb").resolve())
    # Nothing asks, nothing waits, and the terminal belongs to the progress bar.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        init_timeout=WANDB_INIT_SECONDS,
    )
    # Of an agent's run project, entity and id are the agent's; W&B would leave ours out.
    is_agents = _agent_run_id() is not None
    return wandb.init(
        project=None if is_agents else config.project,
        entity=None if is_agents else config.entity,
        group=config.group,
        name=name,
        job_type=job_type,
        id=None if is_agents else run_id,
        resume="allow" if mode == "online" else None,
        dir=str(run_dir),
        mode=mode,
        config=run_config,
        settings=settings,
    )


def summary_of(name: str) -> str | None:
    """Return what W&B keeps of a curve beside its last value; None: the last value alone.

    Of captioning the best; of forgetting the worst, whose end may look harmless. A sweep's agent
    is served plain values: its goal is one.
    """
    prefix, _, rest = name.partition("/")
    if _agent_run_id() or prefix not in ("retention", "caption") or rest.count("/") != 1:
        return "min,last" if name == "train/loss" and not _agent_run_id() else None
    try:
        measure = measure_of(rest.split("/")[1])
    except KeyError:  # of a later version
        return None
    is_forgetting = measure.name in ("nll_increase", "kl")
    return "max,last" if measure.is_highest_best or is_forgetting else "min,last"


def resolve_mode(mode: WandbMode) -> Literal["online", "offline", "disabled"]:
    """Return "online" or "offline"; `auto` is online when a key is at hand."""
    if mode is not WandbMode.auto:
        return "online" if mode is WandbMode.online else "offline"
    for named in MODES:
        if os.environ.get("WANDB_MODE") == named:
            return named
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether somebody is logged in to W&B here; nothing is asked of its server."""
    return bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_key()


def _netrc_has_key() -> bool:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    known = {*WANDB_HOSTS, urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname}
    return any(host in known and bool(entry[2]) for host, entry in hosts.items())


def _agent_run_id() -> str | None:
    """Return the id that an agent of a W&B sweep has given this process."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _run_id(run_dir: Path) -> str:
    path = run_dir / ID_FILE
    if (given := _agent_run_id()) is not None:
        path.write_text(given, encoding="utf-8")
    elif not path.is_file():
        path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _shown(picture: Any) -> Any:
    """Return a picture for W&B; a photo as JPEG, for it is staged anew at each measurement."""
    import wandb

    return wandb.Image(picture, file_type="png" if max(picture.size) <= LOSSLESS_SIDE else "jpg")
