"""See what would be trained on: rows as the model reads them, supervised words marked.

    python -m data.inspect data=scenes
    python -m data.inspect model=aya_vision_8b data=captions data.sources.captions.path=json \
        data.sources.captions.data_files=[my.jsonl]
"""

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("inspect", "data.inspect_run:inspect")


if __name__ == "__main__":
    main()
