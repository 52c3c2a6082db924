"""A composed Hydra config becomes plain dataclasses, or one message with every problem in it.

Hydra takes `+optim.extra=1` in silence and its own hint suggests it. Here a key that the schema
does not have is an error wherever it comes from, told with the nearest valid key.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import ConfigError

T = TypeVar("T")
MISSING_MARK = "???"


def to_dataclass(config: DictConfig, schema: type[T]) -> T:
    """Check `config` against `schema` and return it as plain dataclasses.

    Raises:
        ConfigError: unknown keys, wrong types and missing values, all of them in one message.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    problems = list(find_problems(values, schema))
    if problems:
        raise ConfigError(_list_problems(problems))
    return typing.cast(
        T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    )


def find_problems(values: dict[Any, Any], schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield a line for each key of `values` that `schema` does not have or cannot hold."""
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            yield f"{path}: no such key{_nearest(path, schema, prefix)}"
        elif value == MISSING_MARK:
            yield f"{path}: required, give it a value: {path}=..."
        else:
            yield from _find_problems_in(value, hints[key], path)


def _find_problems_in(value: Any, kind: Any, path: str) -> Iterator[str]:
    if is_dataclass(kind):
        if isinstance(value, dict):
            yield from find_problems(value, kind, f"{path}.")
        else:
            yield f"{path}: is {value!r}, but it is a group of keys: {path}.<key>=..."
        return
    if typing.get_origin(kind) is dict:
        if isinstance(value, dict):
            inner = typing.get_args(kind)[1]
            for name, item in value.items():
                lacking = _lacking(item, inner)
                if lacking:
                    others = ", ".join(other for other in value if other != name)
                    yield (
                        f"{path}.{name}: lacks {', '.join(lacking)}"
                        + (f"; or is one of {others} meant?" if others else "")
                    )
                yield from _find_problems_in(item, inner, f"{path}.{name}")
        else:
            yield f"{path}: is {value!r}, but it is a group of names: {path}.<name>=..."
        return
    problem = _type_problem(value, kind)
    if problem:
        yield f"{path}: {problem}"


def _lacking(value: Any, kind: Any) -> list[str]:
    """Return the required keys that a group of keys does not hold."""
    if not (is_dataclass(kind) and isinstance(value, dict)):
        return []
    required = [item.name for item in fields(kind) if item.default == MISSING_MARK]
    return [name for name in required if name not in value]


def _type_problem(value: Any, kind: Any) -> str | None:
    """Return what is wrong with a leaf value, or None."""
    if kind is Any:  # checked where it is read
        return None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            return f"is {value!r}, but it takes a list: [a,b]"
        problems = (_type_problem(item, typing.get_args(kind)[0]) for item in value)
        return next((problem for problem in problems if problem), None)
    if isinstance(kind, type) and issubclass(kind, Enum):
        names = [member.name for member in kind]
        if value in names:
            return None
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"is {value!r}, but it takes one of {', '.join(names)}{hint}"
    return _scalar_problem(value, kind)


def _scalar_problem(value: Any, kind: type) -> str | None:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return None
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return None
    if isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return None
    article = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return f"is {value!r}, but it takes {article.get(kind.__name__, kind.__name__)}"


def all_keys(schema: Any, prefix: str = "", *, like: str = "") -> Iterator[str]:
    """Yield the dotted key of every node and leaf of `schema`.

    Entries of a group of free names (`data.sources`) are told under the name that `like` has there.
    """
    hints = typing.get_type_hints(schema)
    for item in fields(schema):
        path = f"{prefix}{item.name}"
        yield path
        kind = hints[item.name]
        if typing.get_origin(kind) is dict and like.startswith(f"{path}."):
            kind = typing.get_args(kind)[1]
            path = f"{path}.{like[len(path) + 1 :].split('.')[0]}"
        if is_dataclass(kind):
            yield from all_keys(kind, f"{path}.", like=like)


def check_override_keys(
    overrides: Sequence[tuple[str, str]], schema: Any, groups: Sequence[str]
) -> None:
    """Refuse command line keys that are neither in `schema` nor a config group.

    Hydra would do so too, but one at a time, and with the advice to put `+` before the key.

    Args:
        overrides: (key, value as text) pairs, with `+` and `~` already taken off.
        schema: the root dataclass.
        groups: names of config groups, such as "model".
    """
    problems = []
    for key, value in overrides:
        path = key.split("@")[0].replace("/", ".")
        root = path.split(".")[0]
        if root == "hydra" or path in groups or key.split("@")[0] in groups:
            if path in groups and _is_number(value):  # Hydra answers with a bare ValueError
                problems.append(f"{path}={value}: choose a file of configs/{path}/ by its name")
            continue
        if not _has_key(path, schema):
            problems.append(f"{path}={value}: no such key{_nearest(path, schema)}")
    if problems:
        raise ConfigError(_list_problems(problems))


def _is_number(text: str) -> bool:
    return text in ("True", "False") or text.lstrip("-").replace(".", "", 1).isdigit()


def _has_key(path: str, kind: Any) -> bool:
    for name in path.split("."):
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif is_dataclass(kind) and name in (hints := typing.get_type_hints(kind)):
            kind = hints[name]
        else:
            return False
    return True


def is_below_free_name(path: str, schema: Any) -> bool:
    """Whether `path` leads through a group whose names are the user's, such as `data.sources`."""
    kind = schema
    for name in path.split("."):
        if typing.get_origin(kind) is dict:
            return True
        kind = typing.get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return False


def _nearest(path: str, schema: Any, prefix: str = "") -> str:
    """Return ' (did you mean ...?)' for the valid key nearest to `path`, or an empty string."""
    keys = list(all_keys(schema, prefix, like=path))
    by_path = difflib.get_close_matches(path, keys, n=1, cutoff=0.6)
    last = path.rsplit(".", 1)[-1]
    last = {"lr": "learning_rate", "learningrate": "learning_rate"}.get(last, last)
    same_name = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    by_name = same_name or [
        key
        for name in difflib.get_close_matches(last, [k.rsplit(".", 1)[-1] for k in keys], n=1)
        for key in keys
        if key.rsplit(".", 1)[-1] == name
    ]
    found = (same_name or by_path or by_name)[:1]
    return f" (did you mean {found[0]}?)" if found else ""


def _list_problems(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems\n" + "\n".join(f"  {problem}" for problem in problems)
