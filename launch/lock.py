"""Print the exact version of everything installed here, for requirements.lock.

make lock
"""

import sys
from importlib.metadata import distributions

OURS = "visiongraft"
# What `python -m venv` brings itself.
BASE = {"pip", "wheel"}


def main() -> None:
    """Write `name==version` lines; local parts such as +cpu are those of one index, and dropped."""
    found = {
        dist.metadata["Name"]: dist.version.split("+")[0]
        for dist in distributions()
        if dist.metadata["Name"].lower() not in {OURS, *BASE}
    }
    sys.stdout.write("# Exact versions of everything, for Python 3.11. Written by `make lock`.\n")
    for name in sorted(found, key=str.lower):
        sys.stdout.write(f"{name}=={found[name]}\n")


if __name__ == "__main__":
    main()
