"""See what would be trained on: rows as the model reads them, supervised words marked.

    python -m data.inspect data=scenes
    python -m data.inspect data=scenes --html inspect.html
    python -m data.inspect model=aya_vision_8b data=captions data.sources.captions.path=json \
        data.sources.captions.data_files=[my.jsonl]

`--html FILE` is `html=FILE`: one page with the tables, charts, and rows with their pictures.
"""

import sys

from configs.command import run_command
from configs.flags import with_key

FLAG = "--html"


def main() -> None:
    """Run with the command line's overrides."""
    sys.argv[1:] = with_key(sys.argv[1:], FLAG, "html", "a file to write")
    run_command("inspect", "data.inspect_run:inspect")


if __name__ == "__main__":
    main()
