"""Flags that read better than the override they stand for, such as `--html FILE`."""

import sys
from collections.abc import Sequence


def with_key(arguments: Sequence[str], flag: str, key: str, what: str) -> list[str]:
    """Return the arguments with `--flag PATH` and `--flag=PATH` as the override `key=PATH`.

    Args:
        arguments: of the command line.
        flag: such as "--html".
        key: of the config.
        what: the flag takes, for the error, which ends the program: "a file to write".
    """
    found: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == flag:
            found.append(_override(next(left, ""), flag, key, what))
        elif argument.startswith(f"{flag}="):
            found.append(_override(argument.removeprefix(f"{flag}="), flag, key, what))
        else:
            found.append(argument)
    return found


def with_first(arguments: Sequence[str], key: str) -> list[str]:
    """Return the arguments with a path that stands alone, at the front, as `key=PATH`."""
    first, rest = arguments[:1], list(arguments[1:])
    if not first or first[0].startswith("-") or "=" in first[0]:
        return list(arguments)
    return [_quoted(first[0], key), *rest]


def _override(path: str, flag: str, key: str, what: str) -> str:
    """Return `key=path`, quoted: a path may hold what means something to Hydra."""
    if not path or path.startswith("-") or "=" in path:
        given = f", not {path!r}" if path else ""
        sys.stderr.write(f"\nerror: {flag} takes {what}{given}: {flag} PATH\n")
        sys.exit(2)
    return _quoted(path, key)


def _quoted(path: str, key: str) -> str:
    escaped = path.replace("'", "\\'")
    return f"{key}='{escaped}'"
