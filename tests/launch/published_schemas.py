"""What the publishers of Kubernetes, Kubeflow's training operator and Trainer say of a resource.

Their generated Python models ignore a field that they do not know, as an API server does unless it
is asked to be strict. `problems` finds such fields, and values of the wrong type.
"""

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import kubeflow.training
import kubernetes.client
import kubernetes_validate
from kubeflow_trainer_api import models as trainer
from pydantic import BaseModel, ValidationError

# podFailurePolicy is stable since the first of them.
KUBERNETES = ("1.31", kubernetes_validate.latest_version())
OF_KUBEFLOW: dict[tuple[str, str], Any] = {
    ("kubeflow.org/v1", "PyTorchJob"): kubeflow.training.KubeflowOrgV1PyTorchJob,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): trainer.TrainerV1alpha1TrainJob,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): trainer.TrainerV1alpha1TrainingRuntime,
}


def problems(resource: dict[str, Any]) -> list[str]:
    """Return all that is wrong with a resource; an empty list where it is as published."""
    model = OF_KUBEFLOW.get((resource["apiVersion"], resource["kind"]))
    if model is None:
        return [text for version in KUBERNETES for text in _of_kubernetes(resource, version)]
    return [*_unknown(resource, model, resource["kind"]), *_refused(resource, model)]


def _of_kubernetes(resource: dict[str, Any], version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{version}: {'.'.join(map(str, error.path))}: {error.message}"


def _refused(resource: dict[str, Any], model: Any) -> Iterator[str]:
    """What the model itself refuses: types, values, and fields that must be there."""
    try:
        if issubclass(model, BaseModel):
            model.from_dict(resource)
        else:
            answer = types.SimpleNamespace(data=json.dumps(resource))
            kubeflow.training.ApiClient().deserialize(answer, model)
    except (ValidationError, ValueError) as error:
        yield str(error)


def _unknown(value: Any, kind: Any, path: str) -> Iterator[str]:
    """Walk through what is written and the model together."""
    kind = _given(kind)
    fields, inner = _fields(kind), _inner(kind)
    if fields is not None and isinstance(value, dict):
        for name, child in value.items():
            if name in fields:
                yield from _unknown(child, fields[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: unknown; {', '.join(sorted(fields))} are known"
    elif inner is not None and isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, child in items:
            yield from _unknown(child, inner, f"{path}.{name}")


def _fields(kind: Any) -> dict[str, Any] | None:
    """The fields of a model by the names that YAML has, or None for what has no fields."""
    if isinstance(kind, str):  # as openapi_types has it
        kind = getattr(kubeflow.training, kind, getattr(kubernetes.client, kind, None))
    if hasattr(kind, "openapi_types"):
        return {kind.attribute_map[name]: of for name, of in kind.openapi_types.items()}
    # A model of `oneOf` (a number or a string, a quantity) has one value, under a name of its own.
    if isinstance(kind, type) and issubclass(kind, BaseModel) and "actual_instance" not in (
        kind.model_fields
    ):  # fmt: skip
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return None


def _inner(kind: Any) -> Any:
    """What a list or a dict is of; None for anything else."""
    if isinstance(kind, str) and kind.startswith(("list[", "dict(")):
        return kind[5:-1].removeprefix("str, ")
    return typing.get_args(kind)[-1] if typing.get_origin(kind) in (list, dict) else None


def _given(kind: Any) -> Any:
    """The type without its None: fields may be left out."""
    if typing.get_origin(kind) is typing.Union:
        (kind,) = (of for of in typing.get_args(kind) if of is not type(None))
    return kind
