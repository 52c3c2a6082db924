"""Write a Hugging Face folder of any checkpoint of a run.

python -m train.export_checkpoint run=outputs/sft checkpoint=checkpoint-500 out=DIR
"""

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("export", "train.export_run:export")


if __name__ == "__main__":
    main()
