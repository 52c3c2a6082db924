"""Let an LLM judge say which of two models answers better, row by row, in both orders.

python -m train.judge evaluation=DIR models=[merged,tuned] endpoint=URL judge_model=NAME out=DIR
"""

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("judge", "train.judging.run:judge")


if __name__ == "__main__":
    main()
