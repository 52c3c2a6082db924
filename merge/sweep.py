"""Choose alpha: one load, every candidate measured in place; the chosen one written on request.

python -m merge.sweep vlm=DIR text=DIR out=DIR
python -m merge.sweep vlm=DIR text=DIR out=DIR alphas=[0,0.5,1] data=captions_held_out ...
torchrun --nproc_per_node 8 merge/sweep.py vlm=DIR text=DIR out=DIR
"""

if not __package__:  # run by path: our `data` must win over any other on sys.path
    import sys
    from pathlib import Path

    sys.path[:] = [str(Path(__file__).resolve().parents[1]), *sys.path[1:]]

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("sweep", "merge.sweeping.run:sweep")


if __name__ == "__main__":
    main()
