"""Measure models side by side on the same held-out rows.

visiongraft evaluate 'models={before: DIR, after: DIR, merged: DIR}' out=DIR
torchrun --nproc_per_node 8 train/evaluate.py model=DIR out=DIR
"""

if not __package__:  # run by path: our `data` must win over any other on sys.path
    import sys
    from pathlib import Path

    sys.path[:] = [str(Path(__file__).resolve().parents[1]), *sys.path[1:]]

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("evaluate", "train.evaluate_run:evaluate")


if __name__ == "__main__":
    main()
