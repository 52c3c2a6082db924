"""W&B's server as a sync asks it: who we are there, and how many rows a run has."""

import os
from typing import Any

from configs.errors import ConfigError, VisiongraftError, first_line
from train.tracking.wandb_run import has_key

SECONDS = 60
NOT_THERE = "Could not find run"


class SyncError(VisiongraftError):
    """A run that could not be sent, or not all of it."""


class Server:
    """The account that the key on this machine opens."""

    def __init__(self) -> None:
        """Log in.

        Raises:
            ConfigError: there is no key.
            SyncError: the server does not answer, or does not take the key.
        """
        if not has_key():
            raise ConfigError(
                "runs are sent to an account, and nobody is logged in here: `wandb login` or "
                "$WANDB_API_KEY, on a machine that reaches W&B; dry_run=true lists without one"
            )
        # What a training is told by these, a sync would follow too.
        for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_RESUME"):
            os.environ.pop(name, None)
        import wandb

        try:
            wandb.setup(wandb.Settings(silent=True))
            self.api: Any = wandb.Api(timeout=SECONDS)
            self.entity = str(self.api.default_entity or "")
            self.url = str(self.api.settings["base_url"])
        except Exception as error:  # of the network, or of its answer
            raise SyncError(
                f"W&B does not answer, nothing was sent: {first_line(error)}"
            ) from error

    def num_rows(self, run: Any) -> int:
        """Return how many rows of history the server has; 0 where it does not know the run.

        Args:
            run: its RunRecord.
        """
        path = f"{run.entity or self.entity}/{run.project}/{run.run_id}"
        try:
            self.api.flush()  # or it answers from memory
            return int(self.api.run(path).historyLineCount or 0)
        except Exception as error:
            if NOT_THERE in str(error):
                return 0
            raise SyncError(f"W&B does not tell of {path}: {first_line(error)}") from error
