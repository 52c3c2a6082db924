"""Train one stage.

    torchrun train/main.py                                    # small model, shipped data
    torchrun train/main.py model=pico_text data=text stage=text
    torchrun --nproc_per_node 8 train/main.py model=aya_vision_8b stage=sft_lora data=captions ...

`visiongraft train` is the same in one process. Every key is in configs/schema.py.
"""

if not __package__:  # run by path: our `data` must win over any other on sys.path
    import sys
    from pathlib import Path

    sys.path[:] = [str(Path(__file__).resolve().parents[1]), *sys.path[1:]]

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("train", "train.start:start")


if __name__ == "__main__":
    main()
