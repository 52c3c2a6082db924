"""The JSON of evaluations against its schema: real files pass, wrong ones do not."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import train
from configs.command import load_config
from train.evaluate_run import evaluate
from train.measuring.results import MEASURES, SCHEMA, GroupKind

SCHEMA_FILE = Path(train.__file__).parent / "measuring/evaluation.schema.json"
DOCS = Path(train.__file__).parents[1] / "docs/EVALUATION.md"


@pytest.fixture(scope="module")
def schema() -> Any:
    found = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(found)
    return found


def closed(schema: Any) -> Any:
    """The same without room for names that it does not tell: what we write must all be told."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    own = {key: closed(value) for key, value in schema.items()}
    if own.get("type") == "object" and isinstance(own.get("properties"), dict):
        own["additionalProperties"] = False
    if "patternProperties" in own:
        own["additionalProperties"] = False
    return own


@pytest.fixture(scope="module")
def files(pipeline, tmp_path_factory) -> dict[str, Any]:
    """What a run and what `evaluate` wrote."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    held_out = ["data.held_out.scenes.num_rows=4", "data.held_out.numbers.num_rows=4"]
    evaluate(load_config("evaluate", [
        f"models={{text: {pipeline.text}, sft: {pipeline.sft}}}", f"out={out}",
        "engine.num_threads=1", "data.languages=[en,fr]", *held_out, "evaluation.max_rows=2",
        "evaluation.max_new_tokens=4",
    ]))  # fmt: skip
    steps = sorted((pipeline.sft.parent / "evaluation").glob("step-*.json"))
    found = {path.name: json.loads(path.read_text()) for path in steps}
    return found | {"evaluation.json": json.loads((out / "evaluation.json").read_text())}


def test_what_runs_and_evaluate_write_is_told_in_full(schema, files):
    assert len(files) >= 2 and "groups" in next(iter(files.values()))
    validator = Draft202012Validator(closed(schema))
    for name, content in files.items():
        wrong = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(content)]
        assert wrong == [], name
    groups = files["evaluation.json"]["models"]["sft"]["groups"]
    assert {group["kind"] for group in groups.values()} == {"captions", "text"}
    assert any(group["answers"] for group in groups.values())


def edited(content: Any, path: str, value: Any) -> Any:
    """A copy with something else at a path; None takes it away."""
    own = copy.deepcopy(content)
    *parents, last = path.split("/")
    place = own
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return own


SCENES_OF_SFT = "models/sft/groups/scenes"
WRONG = {
    "schema": ("schema", 2),
    "no models": ("models", {}),
    "a run's and evaluate's": ("groups", {}),
    "no path": ("models/sft/path", None),
    "an unknown kind": (f"{SCENES_OF_SFT}/kind", "pictures"),
    "no rows": (f"{SCENES_OF_SFT}/num_rows", None),
    "0 rows": (f"{SCENES_OF_SFT}/num_rows/nll/en", 0),
    "a loss below 0": (f"{SCENES_OF_SFT}/by_language/nll/en", -0.1),
    "a loss in words": (f"{SCENES_OF_SFT}/by_language/nll/en", "1.2"),
    "a share in percent": (f"{SCENES_OF_SFT}/by_language/exact_match/en", 50),
    "a blind share in percent": (f"{SCENES_OF_SFT}/by_language/blind_exact_match", {"en": 50}),
    "cider of 100": (f"{SCENES_OF_SFT}/by_language/cider", {"en": 100.0}),
    "a measure without languages": (f"{SCENES_OF_SFT}/by_language/nll", 1.2),
    "an odd name": (f"{SCENES_OF_SFT}/by_language/picture gap", {"en": 1.0}),
    "an answer without a reference": (f"{SCENES_OF_SFT}/answers/0/reference", None),
    "an answer that is none": (f"{SCENES_OF_SFT}/answers/0/answer", 3),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_does_not_pass(wrong, schema, files):
    validator = Draft202012Validator(schema)
    assert validator.is_valid(files["evaluation.json"])
    assert not validator.is_valid(edited(files["evaluation.json"], *WRONG[wrong]))


def test_a_step_needs_its_number(schema, files):
    step = next(content for content in files.values() if "step" in content)
    assert not Draft202012Validator(schema).is_valid(edited(step, "step", None))


def test_names_may_be_added_within_a_version(schema, files):
    more = edited(files["evaluation.json"], f"{SCENES_OF_SFT}/by_language/meteor", {"en": 3.0})
    more = edited(more, f"{SCENES_OF_SFT}/seconds", 3.0)
    assert Draft202012Validator(schema).is_valid(more)
    assert not Draft202012Validator(closed(schema)).is_valid(more)


def test_schema_docs_and_code_know_the_same_names(schema):
    assert schema["properties"]["schema"] == schema["properties"]["schema"] | {"const": SCHEMA}
    group = schema["$defs"]["group"]["properties"]
    assert group["kind"]["enum"] == [kind.value for kind in GroupKind]
    patterns = [re.compile(p) for p in group["by_language"]["patternProperties"]]
    told = DOCS.read_text(encoding="utf-8")
    for name in MEASURES:
        assert sum(bool(pattern.search(name)) for pattern in patterns) == 1, name
        assert re.search(rf"^\*\*`{name}`", told, re.MULTILINE), name
    assert f'"schema": {SCHEMA}' in told
