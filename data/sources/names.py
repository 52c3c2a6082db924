"""What files are called in the places of rows."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from configs.errors import DataError


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return file names; if two files share one, their paths from the folder that all are in.

    Raises:
        DataError: a file is given twice.
    """
    path, times = Counter(path.resolve() for path in paths).most_common(1)[0]
    if times > 1:
        raise DataError(f"{str(path)!r} is given {times} times; its rows would be counted as often")
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return [path.absolute().relative_to(common).as_posix() for path in paths]
