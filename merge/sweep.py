"""Choose alpha: one load, every alpha measured in place, no model written.

python -m merge.sweep vlm=DIR text=DIR out=DIR
python -m merge.sweep vlm=DIR text=DIR out=DIR alphas=[0,0.5,1] data=captions ...
"""

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("sweep", "merge.sweeping.run:sweep")


if __name__ == "__main__":
    main()
