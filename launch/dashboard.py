"""Save a W&B workspace with the panels of a pipeline.

python -m launch.dashboard project=visiongraft entity=TEAM
python -m launch.dashboard project=visiongraft dry_run=true     # its JSON, without an account
"""

from configs.command import run_command


def main() -> None:
    """Run with the command line's overrides."""
    run_command("dashboard", "launch.workspace:save_workspace")


if __name__ == "__main__":
    main()
