"""Send every offline W&B run below a folder, from a machine that reaches W&B.

visiongraft sync outputs                        # once: what is new
visiongraft sync outputs watch_seconds=60       # follow running jobs, until Ctrl-C
visiongraft sync outputs dry_run=true           # list what would be sent
"""

import sys

from configs.command import run_command
from configs.flags import with_first


def main() -> None:
    """Run with the command line's overrides."""
    sys.argv[1:] = with_first(sys.argv[1:], "folder")
    run_command("sync", "launch.syncing.run:sync")


if __name__ == "__main__":
    main()
