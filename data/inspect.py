"""See what would be trained on: rows as the model reads them, supervised words marked.

    python -m data.inspect data=scenes
    python -m data.inspect data=scenes --html inspect.html
    python -m data.inspect model=aya_vision_8b data=captions data.sources.captions.path=json \
        data.sources.captions.data_files=[my.jsonl]

`--html FILE` is `html=FILE`: one page with the tables, charts, and rows with their pictures.
"""

import sys

from configs.command import run_command

FLAG = "--html"


def main() -> None:
    """Run with the command line's overrides."""
    sys.argv[1:] = with_html_key(sys.argv[1:])
    run_command("inspect", "data.inspect_run:inspect")


def with_html_key(arguments: list[str]) -> list[str]:
    """Return the arguments with `--html FILE` and `--html=FILE` as the override they stand for."""
    found: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == FLAG:
            found.append(_override(next(left, "")))
        elif argument.startswith(f"{FLAG}="):
            found.append(_override(argument.removeprefix(f"{FLAG}=")))
        else:
            found.append(argument)
    return found


def _override(path: str) -> str:
    """Return `html=path`, quoted: a path may hold what means something to Hydra."""
    if not path or path.startswith("-") or "=" in path:
        given = f", not {path!r}" if path else ""
        sys.stderr.write(f"\nerror: {FLAG} takes a file to write{given}: {FLAG} inspect.html\n")
        sys.exit(2)
    escaped = path.replace("'", "\\'")
    return f"html='{escaped}'"


if __name__ == "__main__":
    main()
