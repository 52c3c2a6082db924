"""Of what the candidates of a sweep are made: the recipe of each, and the inputs."""

from collections.abc import Mapping
from typing import Any

from train.measuring.results import Results
from train.reporting.content import ABSENT, Block, Column, Table
from train.reporting.provenance import config_blocks, held_out_table
from train.reporting.read import as_dict

ROLES = ("vlm", "text", "base", "lora")
TITLES = {"name": "method", "url": "source", "alpha_overrides": "alpha of some tensors"}
OF_THE_METHOD = ("formula", "url")  # told once, of the choice
Recipe = Mapping[str, Any]


def choice_blocks(recipe: Recipe) -> list[Block]:
    """Return the recipe of the choice."""
    rows = [[_title(key), _told(value)] for key, value in recipe.items() if _told(value) != ABSENT]
    columns = [Column("", is_number=False), Column("", is_number=False)]
    return [Table("The recipe that was chosen", columns, rows)] if rows else []


def sweep_provenance(
    recipes: Mapping[str, Recipe], results: Mapping[str, Results], config: dict[str, Any]
) -> list[Block]:
    """Return inputs, held-out rows, the recipe of every candidate, and the settings."""
    sources = as_dict(config.get("data")).get("held_out")
    tables = [_inputs(config), held_out_table(sources, results), _recipes(recipes)]
    settings = {key: value for key, value in config.items() if key != "files"}
    return [*(table for table in tables if table.rows), *config_blocks(settings)]


def _inputs(config: Mapping[str, Any]) -> Table:
    """Return the folders that were merged, with a fingerprint of each file where it was kept."""
    rows = []
    for role in ROLES:
        files = as_dict(as_dict(config.get("files")).get(role)) or {ABSENT: ABSENT}
        if config.get(role):
            rows += [
                [role, str(config[role]), file, str(told)[:16]] for file, told in files.items()
            ]
    titles = ("input", "folder", "file", "fingerprint")
    return Table("Inputs", [Column(title, is_number=False) for title in titles], rows)


def _recipes(recipes: Mapping[str, Recipe]) -> Table:
    """Return a row for each candidate, a column for whatever a recipe says."""
    told = {name: {k: _told(v) for k, v in recipe.items()} for name, recipe in recipes.items()}
    keys = dict.fromkeys(
        key
        for recipe in told.values()
        for key, value in recipe.items()
        if value != ABSENT and key not in OF_THE_METHOD
    )
    rows = [[name, *(recipe.get(key, ABSENT) for key in keys)] for name, recipe in told.items()]
    titles = ("candidate", *map(_title, keys))
    columns = [Column(title, is_number=False) for title in titles]
    return Table("Every candidate's recipe", columns, rows if keys else [], is_folded=True)


def _title(key: str) -> str:
    return TITLES.get(key, key.replace("_", " "))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {item}" for key, item in value.items()) or ABSENT
    return ABSENT if value in (None, "", []) else str(value)
