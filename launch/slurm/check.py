"""Check commands before they wait in a queue: keys, values, what excludes what.

    python -m launch.slurm.check train output_dir=outputs/text -- merge vlm=... text=... out=...

Nothing is looked up on disk or on a hub: what a job reads may be made by the job before.
"""

import itertools
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from configs.command import SCHEMAS, load_config
from configs.errors import ConfigError, VisiongraftError


def main() -> None:
    """End with code 0, or with one message and code 2."""
    for is_mark, words in itertools.groupby(sys.argv[1:], lambda word: word == "--"):
        if not is_mark:
            _check(*words)


def _check(command: str, *overrides: str) -> None:
    try:
        if command not in SCHEMAS:
            raise ConfigError(f"no such command; there are {', '.join(SCHEMAS)}")
        load_config(command, [*overrides])
    except (VisiongraftError, HydraException, OmegaConfBaseException) as error:
        sys.stderr.write(f"\nerror: {command}: {error}\n")
        sys.exit(ConfigError.exit_code)


if __name__ == "__main__":
    main()
