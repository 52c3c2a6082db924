"""Write report.html and report.md anew, from files alone.

visiongraft report outputs/demo/sft            a run, a sweep, an evaluation
visiongraft report outputs/demo                a pipeline: a folder that holds several of them

A merge has its README.md instead, the folder of a judge its judge.md.
"""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """Write a report into each folder of the command line."""
    parser = argparse.ArgumentParser(
        prog="visiongraft report", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder to report on")
    folders = parser.parse_args().folders
    # Imported here: a wrong command line and --help answer at once.
    from configs.errors import VisiongraftError
    from train.reporting.any_folder import write_any_report

    for folder in folders:
        try:
            write_any_report(folder)
        except VisiongraftError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(error.exit_code)
        sys.stdout.write(f"wrote {folder / 'report.html'} and report.md\n")


if __name__ == "__main__":
    main()
