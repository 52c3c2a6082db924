"""The errors a user can cause. Each message says what was given, what was wanted, what to do."""


class VisiongraftError(Exception):
    """Something a user can mend. Commands print the message alone and exit with `exit_code`."""

    exit_code = 1


class ConfigError(VisiongraftError, ValueError):
    """A config key or value that cannot work; the message names the key."""

    exit_code = 2


class DataError(VisiongraftError, ValueError):
    """A row or a source that cannot be used; the message names the row."""

    path: str | None = None  # the file that was looked for, where there is none


class DiskError(VisiongraftError, OSError):
    """A disk that is full, or a file that may not grow further; the message names the path."""


class BusyError(VisiongraftError):
    """Another process that lives writes into the same folder; the message names it."""


class CacheError(VisiongraftError):
    """Another process holds what this one waits for, and seems to be gone; the message names it."""


class Preempted(VisiongraftError):
    """A run that SIGTERM or SIGUSR1 has stopped, with a checkpoint to go on from."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class LostProcessError(VisiongraftError):
    """Another process of the run, its machine or the network is gone; its own log says more."""


class CheckpointError(VisiongraftError, ValueError):
    """A checkpoint folder that is missing, broken, or not what it was said to be."""


class TrainingError(VisiongraftError, RuntimeError):
    """Training cannot go on: its loss or its gradient is not a number any more."""


class RetentionError(VisiongraftError):
    """Held-out text has lost more than it may, and the run was told to stop at that."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error of a library says, or what it is."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
