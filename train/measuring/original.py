"""What the original language model says of the same tokens: how far training has moved it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from train.model.head import Original
from train.model.loss import logit_scale_of


class AtHand(Protocol):
    """An original that can be asked while another model is measured."""

    def of(self, batch: dict[str, torch.Tensor]) -> Original:
        """Return its states of the supervised tokens of a packed batch of text."""
        ...


class AdaptersOff:
    """The model that is measured, without its adapters: nothing more is held in memory."""

    def __init__(self, model: Any) -> None:
        """Take a `PeftModel` over a model with `add_token_losses`."""
        self._model = model

    def of(self, batch: dict[str, torch.Tensor]) -> Original:
        """Return the states of the weights that the adapters were put on."""
        with adapters_off(self._model):
            return Original(self._model(**batch, token_states=True))


class Reference:
    """A model of its own, whole on the device of each process."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take a text LM or a vision-language model with `add_token_losses`, and its tokenizer."""
        self.tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)

    def of(self, batch: dict[str, torch.Tensor]) -> Original:
        """Return its states, with its head."""
        states = self._model(**batch, token_states=True)
        head = self._model.get_output_embeddings().weight
        return Original(states, head, logit_scale_of(self._model))


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Compute with the weights under the adapters; what trains afterwards is what trained before.

    PEFT sets `requires_grad` of all adapters when it turns them on again.
    """
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
