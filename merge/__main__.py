"""Merge a vision-language model with the text LM it was grafted on.

python -m merge vlm=DIR text=DIR alpha=0.4 out=DIR
"""

if not __package__:  # run by path: our `data` must win over any other on sys.path
    import sys
    from pathlib import Path

    sys.path[:] = [str(Path(__file__).resolve().parents[1]), *sys.path[1:]]

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("merge", "merge.run:merge")


if __name__ == "__main__":
    main()
