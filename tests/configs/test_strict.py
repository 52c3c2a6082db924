"""What the schema does not have is an error, wherever it comes from, with the nearest valid key."""

import typing
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf

from configs.command import SCHEMAS, load_config
from configs.errors import ConfigError
from configs.strict import all_keys, find_problems, to_dataclass


class Colour(Enum):
    red = "red"
    green = "green"


@dataclass
class Leaf:
    number: int = 1
    ratio: float = 0.5
    wanted: bool = False
    name: str | None = None
    colour: Colour = Colour.red
    names: list[str] = field(default_factory=list)


@dataclass
class Root:
    out: str = MISSING
    leaf: Leaf = field(default_factory=Leaf)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


def problems(**values: Any) -> list[str]:
    return list(find_problems(values, Root))


def composed(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config("train", list(overrides))
    return str(caught.value)


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_an_unknown_key_on_the_command_line(plus: str) -> None:
    message = composed(f"{plus}optim.lerning_rate=1", f"{plus}data.max_token=5")
    assert "optim.lerning_rate=1: no such key" in message
    assert "data.max_token=5: no such key (did you mean data.max_tokens?)" in message


def test_a_key_in_the_wrong_group_is_told_where_it_lives() -> None:
    assert "did you mean optim.max_steps?" in composed("max_steps=3")
    assert "did you mean seed?" in composed("+optim.seed=3")


def test_an_unknown_key_of_a_source_is_told_the_sources_own() -> None:
    message = composed("+data.sources.scenes.wieght=2")
    assert "did you mean data.sources.scenes.weight?" in message
    message = composed("+data.held_out.scenes.num_row=2")
    assert "did you mean data.held_out.scenes.num_rows?" in message


def test_a_source_is_the_users_to_name_and_to_fill_without_a_plus() -> None:
    config = load_config(
        "train",
        [
            "data.sources.mine={kind: udhr, weight: 2}",
            "data.sources.yours.kind=dataset",
            "data.sources.yours.path=json",
            "data.sources.scenes.weight=0.5",  # scenes.yaml does not mention its weight
            "+data.sources.theirs.kind=udhr",
        ],
    )
    sources = config.data.sources
    assert sorted(sources) == ["mine", "scenes", "theirs", "yours"]
    assert (sources["mine"].weight, sources["scenes"].weight) == (2.0, 0.5)
    assert sources["yours"].path == "json"
    assert sources["scenes"].num_rows == load_config("train", []).data.sources["scenes"].num_rows


def test_a_deletion_of_an_unknown_key() -> None:
    assert "no such key (did you mean optim.max_steps?)" in composed("~optim.max_step")


def test_a_number_is_no_option_of_a_group() -> None:
    assert composed("model=3") == "model=3: choose a file of configs/model/ by its name"


def test_values_that_do_not_fit_are_told_all_at_once() -> None:
    message = composed(
        "optim.max_steps=many",
        "engine.kind=zero4",
        "data.languages=en",
        "dry_run=1",
        "data=captions",
    )
    assert message.startswith("5 problems\n")
    assert "optim.max_steps: is 'many', but it takes a whole number" in message
    assert "engine.kind: is 'zero4', but it takes one of single, ddp, zero2, zero3" in message
    assert "data.languages: is 'en', but it takes a list: [a,b]" in message
    assert "dry_run: is 1, but it takes true or false" in message
    assert "data.sources.captions.path: required, give it a value" in message


def test_an_interpolation_that_leads_nowhere() -> None:
    assert "Interpolation key 'nowhere' not found" in composed("output_dir=${nowhere}")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"uot": "x"}, "uot: no such key (did you mean out?)"),
        ({"out": "???"}, "out: required, give it a value: out=..."),
        ({"leaf": 5}, "leaf: is 5, but it is a group of keys: leaf.<key>=..."),
        ({"leaf": None}, "leaf: is None, but it is a group of keys: leaf.<key>=..."),
        ({"leaf": {"numbr": 5}}, "leaf.numbr: no such key (did you mean leaf.number?)"),
        ({"leaves": None}, "leaves: is None, but it is a group of names: leaves.<name>=..."),
        ({"leaves": {"a": 5}}, "leaves.a: is 5, but it is a group of keys: leaves.a.<key>=..."),
        ({"leaves": {"a": {"numbr": 5}}}, "leaves.a.numbr: no such key (did you mean "
         "leaves.a.number?)"),
        ({"leaves": {"a": {"number": "5"}}}, "leaves.a.number: is '5', but it takes a whole "
         "number"),
        ({"paths": {"a": True}}, "paths.a: is True, but it takes text"),
        ({"paths": 3}, "paths: is 3, but it is a group of names: paths.<name>=..."),
        ({"leaf": {"number": 1.5}}, "leaf.number: is 1.5, but it takes a whole number"),
        ({"leaf": {"number": True}}, "leaf.number: is True, but it takes a whole number"),
        ({"leaf": {"number": None}}, "leaf.number: is None, but it takes a whole number"),
        ({"leaf": {"ratio": "half"}}, "leaf.ratio: is 'half', but it takes a number"),
        ({"leaf": {"ratio": False}}, "leaf.ratio: is False, but it takes a number"),
        ({"leaf": {"wanted": "yes"}}, "leaf.wanted: is 'yes', but it takes true or false"),
        ({"leaf": {"name": ["a"]}}, "leaf.name: is ['a'], but it takes text"),
        ({"leaf": {"colour": "gren"}}, "leaf.colour: is 'gren', but it takes one of red, green "
         "(did you mean green?)"),
        ({"leaf": {"colour": None}}, "leaf.colour: is None, but it takes one of red, green"),
        ({"leaf": {"names": "a"}}, "leaf.names: is 'a', but it takes a list: [a,b]"),
        ({"leaf": {"names": [None]}}, "leaf.names: is None, but it takes text"),
    ],
)  # fmt: skip
def test_each_kind_of_problem(values: dict[str, Any], expected: str) -> None:
    assert problems(**values) == [expected]


@pytest.mark.parametrize(
    "values",
    [
        {"leaf": {"ratio": 1}},
        {"leaf": {"name": None}},
        {"leaf": {"name": 5}},  # a folder called 5
        {"leaf": {"colour": "green", "names": ["a", "b"]}},
        {"leaves": {}},
        {"leaves": {"a": {}, "b": {"number": 3}}},
        {"paths": {"a": "b"}},
    ],
)
def test_what_fits(values: dict[str, Any]) -> None:
    assert problems(**values) == []


def test_the_result_is_plain_dataclasses() -> None:
    values = {"out": "x", "leaf": {"colour": "green", "ratio": 1}, "leaves": {"a": {"number": 3}}}
    config = to_dataclass(OmegaConf.create(values), Root)
    assert config == Root("x", Leaf(colour=Colour.green, ratio=1.0), {"a": Leaf(number=3)})
    assert isinstance(config.leaf.ratio, float)
    assert type(config.leaves) is dict
    assert type(config.leaf.names) is list


def test_nothing_of_omegaconf_is_left_in_a_composed_config() -> None:
    def walk(node: Any) -> None:
        assert not type(node).__module__.startswith("omegaconf"), node
        if is_dataclass(node):
            for item in fields(node):
                walk(getattr(node, item.name))
        elif isinstance(node, dict | list):
            for item in node.values() if isinstance(node, dict) else node:
                walk(item)

    walk(load_config("train", []))


def test_the_keys_told_in_hints_are_the_fields() -> None:
    """The keys told in hints are the dataclass fields: no more, no less."""
    keys = set(all_keys(SCHEMAS["train"]))
    assert {"optim.max_steps", "stage.parts.decoder.learning_rate", "data.sources"} <= keys
    assert "data.sources.scenes.weight" not in keys
    assert "data.sources.scenes.weight" in set(
        all_keys(SCHEMAS["train"], like="data.sources.scenes.wieght")
    )


@pytest.mark.parametrize("schema", SCHEMAS.values())
def test_the_schema_holds_only_kinds_that_the_check_knows(schema: type) -> None:
    """A new field of another kind (a tuple, a Literal) would pass unchecked or raise."""

    def leaves(kind: Any) -> list[Any]:
        if is_dataclass(kind):
            return [leaf for hint in typing.get_type_hints(kind).values() for leaf in leaves(hint)]
        if typing.get_origin(kind) in (dict, list):
            return leaves(typing.get_args(kind)[-1])
        options = [k for k in typing.get_args(kind) or (kind,) if k is not type(None)]
        assert len(options) == 1, kind
        return options

    for kind in leaves(schema):
        # Any: an alpha is a number, numbers, or points; merge.recipe.alpha checks it.
        assert kind in (int, float, str, bool, Any) or issubclass(kind, Enum), kind


def test_a_misspelt_source_is_told_as_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            "train", ["data=files", "data.sources.files.path=a", "+data.sources.file.weight=2"]
        )
    assert "data.sources.file: lacks kind; or is one of files meant?" in str(caught.value)
    assert "Structured config" not in str(caught.value)
