"""Send offline W&B runs to the server: once, or again and again while they are written."""

import contextlib
import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from configs.errors import ConfigError, VisiongraftError, first_line
from configs.schema import SyncConfig
from launch.syncing.models import models_of
from launch.syncing.offline_runs import PREFIX, OfflineRun, find_runs
from launch.syncing.replay import run_record
from launch.syncing.sending import Sending
from launch.syncing.server import Server, SyncError
from launch.syncing.state import is_noted, is_sent, lost_parts, note_sent
from train.saving.disk import format_bytes

log = logging.getLogger(__name__)
MOST_FOLLOWED = 16  # runs with a process of their own; more are sent anew each time
Followed = dict[tuple[Path, str], Sending]


def sync(config: SyncConfig) -> None:
    """Do what `configs/schema.py` says of it.

    Raises:
        ConfigError: there is no such folder, or nobody is logged in.
        SyncError: a run was not sent; the others were.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise ConfigError(f"folder: {folder} is not a folder")
    if folder.resolve().name.startswith(PREFIX):  # a run is all that it left, not one part
        folder = folder.resolve().parent
    if config.dry_run:
        _list(folder)
        return
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, _end)
    server, followed = Server(), Followed()
    failed: dict[tuple[Path, str], str] = {}
    try:
        _send_all(folder, server, followed, failed, follows=config.watch_seconds is not None)
        while config.watch_seconds is not None:
            time.sleep(config.watch_seconds)
            _send_all(folder, server, followed, failed, follows=True)
    finally:
        for sending in followed.values():
            sending.stop()
    if failed:
        told = "\n  ".join(f"{key[0].parent} ({key[1]}): {why}" for key, why in failed.items())
        raise SyncError(f"{len(failed)} not sent; the next call tries again\n  {told}")


def _send_all(
    folder: Path,
    server: Server,
    followed: Followed,
    failed: dict[tuple[Path, str], str],
    *,
    follows: bool,
) -> None:
    """Look at every run once; one that fails leaves the others alone."""
    unreadable: list[OSError] = []
    runs = find_runs(folder, unreadable.append)
    for error in unreadable:
        failed[Path(str(error.filename)) / "wandb", "?"] = f"cannot be read: {error.strerror}"
    num_sent, missing = 0, dict[str, OfflineRun]()
    for run in runs:
        failed.pop(run.key, None)
        try:
            if missing:
                _check_models(run, missing, server)
            num_sent += _send(run, server, followed, follows=follows)
        except (VisiongraftError, OSError) as error:
            failed[run.key] = first_line(error)
            log.error("%s: %s", run, first_line(error))
            if (sending := followed.pop(run.key, None)) is not None:
                sending.stop()
            with contextlib.suppress(VisiongraftError, OSError):
                missing |= dict.fromkeys(models_of(run).made, run)
    if not follows:
        log.info("%d of %d runs sent, the others were there", num_sent, len(runs))


def _check_models(run: OfflineRun, missing: dict[str, OfflineRun], server: Server) -> None:
    """Let a run wait for the one that made its model.

    Args:
        run: to be sent next.
        missing: {digest of a model: the run that made it and was not sent}.
        server: that it is sent to.
    """
    if not is_sent(run, server.url):
        for digest in models_of(run).used & missing.keys():
            raise SyncError(f"waits for {missing[digest]}, which made a model that it uses")


def _send(run: OfflineRun, server: Server, followed: Followed, *, follows: bool) -> bool:
    """Send what is new of a run; False: nothing is."""
    sizes = run.sizes()  # before it is read: what is written meanwhile is sent next time
    if run.key in followed:
        return _go_on(run, server, followed, sizes)
    if is_sent(run, server.url):
        return False
    if lost := lost_parts(run):
        raise SyncError(f"{', '.join(lost)} was sent and is not there any more; put it back")
    if run_record(run) is None:  # W&B writes it after 15 s, or the run died before
        if not run.is_growing():
            log.warning("%s: holds nothing to send", run)
            note_sent(run, server.url, sizes, is_done=False)
        return False
    sending = Sending(run, server)
    log.info("%s: sending %d rows", run, sending.replay.num_new)
    if not sending.follows:
        _finish(sending, server, sizes)
    elif follows and len(followed) < MOST_FOLLOWED:
        followed[run.key] = sending
    else:
        sending.finish_later()
        if not follows:
            log.info("%s: is still written; watch_seconds=60 follows it", run)
    return True


def _go_on(run: OfflineRun, server: Server, followed: Followed, sizes: dict[str, int]) -> bool:
    """Send what is new of a run that is followed, and let go of it when it has ended."""
    sending = followed[run.key]
    if errors := sending.errors():
        raise SyncError("; ".join(errors))
    sending.feed(run)
    if sending.replay.has_ended or not run.is_growing():
        sending.replay.end()
        del followed[run.key]
        _finish(sending, server, sizes)
        return True
    if not sending.is_alive():
        raise SyncError("wandb sync has ended before the run; it is started again")
    return False


def _finish(sending: Sending, server: Server, sizes: dict[str, int]) -> None:
    sending.finish()
    note_sent(sending.run, server.url, sizes, is_done=sending.replay.is_done)
    how = "" if sending.replay.has_ended else ", as broken off"
    log.info("%s: sent%s: %s", sending.run, how, sending.url)
    if num_unread := sending.replay.num_unread:  # a killed run's last record, or a damaged file
        log.warning("%s: %d bytes at the end are no whole record", sending.run, num_unread)


def _list(folder: Path) -> None:
    """Print what would be sent: W&B may have a part of it already."""
    unreadable: list[Exception] = []
    num_shown = 0
    for run in find_runs(folder, unreadable.append):
        try:
            record = run_record(run)
            if is_noted(run) or record is None:
                continue
            num_shown += 1
            grows = ", written just now" if run.is_growing() else ""
            sys.stdout.write(
                f"{run}: {record.project}/{record.display_name}, {len(run.parts)} part(s), "
                f"{format_bytes(sum(run.sizes().values()))}{grows}\n"
            )
        except (VisiongraftError, OSError) as error:
            unreadable.append(error)
    if not num_shown:
        sys.stdout.write(f"nothing to send below {folder}\n")
    for each in unreadable:
        sys.stderr.write(f"cannot be read: {first_line(each)}\n")


def _end(signum: int, _: FrameType | None) -> None:
    """End as on Ctrl-C: processes that were started are ended too."""
    sys.exit(128 + signum)
