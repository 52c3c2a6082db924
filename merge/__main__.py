"""Merge a vision-language model with the text LM it was grafted on.

python -m merge vlm=DIR text=DIR alpha=0.4 out=DIR
python -m merge --verify DIR     # prove a merged folder again, every element
"""

import sys

if not __package__:  # run by path: our `data` must win over any other on sys.path
    from pathlib import Path

    sys.path[:] = [str(Path(__file__).resolve().parents[1]), *sys.path[1:]]

from configs.command import run_command
from configs.flags import with_key

FLAG = "--verify"


def main() -> None:
    """Run with the command line's overrides."""
    if FLAG in sys.argv and {"--help", "-h"} & set(sys.argv):
        sys.argv[1:] = ["--help"]
        run_command("verify_merge", "merge.run:verify")
    arguments = with_key(sys.argv[1:], FLAG, "folder", "a merged folder")
    if arguments != sys.argv[1:]:
        sys.argv[1:] = arguments
        run_command("verify_merge", "merge.run:verify")
    else:
        run_command("merge", "merge.run:merge")


if __name__ == "__main__":
    main()
