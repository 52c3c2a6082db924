"""Token losses from hidden states and the LM head, a chunk of logits at a time.

Logits of 1,024 tokens over a vocabulary of 256,000 are 1 GiB, and autograd would keep several of
them. Here a chunk lives as long as it is looked at. Where the head is frozen (LoRA, align), the
gradient of the states is worked out while the logits are there: its factor is known only in
backward, but it is one number a token. Where the head trains, logits are computed once more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 1024  # supervised tokens whose logits are held at once: 1 GiB in float32 at K = 256,000
DIVERGENCE_CHUNK = 256  # likewise of two models, whose logits are held several times


def chunked_losses(
    states: torch.Tensor, wanted: torch.Tensor, head: torch.Tensor, logit_scale: float
) -> torch.Tensor:
    """Return [S] float32: the negative log-likelihood of each wanted token, in nats.

    Args:
        states: [S, D] hidden states before the head.
        wanted: [S] int64 token ids.
        head: [K, D] weights.
        logit_scale: factor on the logits.
    """
    losses: torch.Tensor = _HeadLosses.apply(states, head, wanted, logit_scale)
    return losses


@dataclass(frozen=True)
class Original:
    """What another model makes of the same tokens: its states, and the head they go through."""

    states: torch.Tensor  # [S, D] before the head
    head: torch.Tensor | None = None  # [K, D] weights; None: that of the measured model
    logit_scale: float = 1.0  # read where there is a head


@torch.no_grad()
def chunked_divergence(
    states: torch.Tensor, head: torch.Tensor, logit_scale: float, original: Original
) -> torch.Tensor:
    """Return [S] float32: KL(original || current) of the next token, in nats.

    Tokens that the original does not know (of pictures, say) have no probability by it. Where its
    head is the taller one, padded, its rows beyond the current vocabulary are left out.

    Args:
        states: [S, D] hidden states before the head.
        head: [K, D] weights.
        logit_scale: factor on the logits.
        original: of the same S tokens.
    """
    theirs, scale = head, logit_scale
    if original.head is not None:
        theirs, scale = original.head, original.logit_scale
    num_common = min(len(head), len(theirs))
    divergence = torch.empty(len(states), dtype=torch.float32, device=states.device)
    ours_in, theirs_in = _compute_dtype(states), _compute_dtype(original.states)
    weight, other_weight = head.to(ours_in), theirs[:num_common].to(theirs_in)
    for at in _chunks(len(states), DIVERGENCE_CHUNK):
        wanted = _logits(original.states[at].to(theirs_in), other_weight, scale).log_softmax(-1)
        found = _logits(states[at].to(ours_in), weight, logit_scale).log_softmax(-1)[:, :num_common]
        divergence[at] = (wanted.exp() * (wanted - found)).sum(-1)
    return divergence


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, head: torch.Tensor, wanted: torch.Tensor, scale: float
    ) -> torch.Tensor:
        of_states, of_head = ctx.needs_input_grad[:2]
        ctx.scale, ctx.dtype, ctx.head_trains = scale, _compute_dtype(states), of_head
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradient = torch.empty_like(states) if of_states and not of_head else None
        weight = head.to(ctx.dtype)
        for at in _chunks(len(states)):
            logits = _logits(states[at].to(ctx.dtype), weight, scale)
            norms = logits.logsumexp(-1)
            losses[at] = norms - logits.gather(1, wanted[at, None])[:, 0]
            if gradient is not None:
                of_logits = _gradient_of_logits(logits, norms, wanted[at])
                gradient[at] = of_logits.mul_(scale).to(ctx.dtype) @ weight
        if of_head:
            ctx.save_for_backward(states, head, wanted)
        elif gradient is not None:
            ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *factors: torch.Tensor) -> tuple[Any, ...]:
        (factor,) = factors
        if not ctx.head_trains:
            (gradient,) = ctx.saved_tensors
            return gradient * factor[:, None].to(gradient.dtype), None, None, None
        states, head, wanted = ctx.saved_tensors
        weight = head.to(ctx.dtype)
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(head.dtype, torch.float32)
        of_head = torch.zeros_like(head, dtype=exact)  # a sum over chunks
        for at in _chunks(len(states)):
            part = states[at].to(ctx.dtype)
            logits = _logits(part, weight, ctx.scale)
            of_logits = _gradient_of_logits(logits, logits.logsumexp(-1), wanted[at])
            of_logits = of_logits.mul_(factor[at, None] * ctx.scale).to(ctx.dtype)
            if of_states is not None:
                of_states[at] = of_logits @ weight
            of_head += of_logits.T @ part
        return of_states, of_head.to(head.dtype), None, None


def _chunks(num_tokens: int, size: int | None = None) -> Iterator[slice]:
    size = size or CHUNK
    for start in range(0, num_tokens, size):
        yield slice(start, start + size)


def _compute_dtype(states: torch.Tensor) -> torch.dtype:
    """Return what autocast would multiply in; in backward there is no autocast to ask."""
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return states.dtype


def _logits(states: torch.Tensor, weight: torch.Tensor, scale: float) -> torch.Tensor:
    """Return [s, K] float32, in memory of their own."""
    with torch.autocast(states.device.type, enabled=False):
        logits = functional.linear(states, weight).float()
    return logits.mul_(scale) if scale != 1.0 else logits


def _gradient_of_logits(
    logits: torch.Tensor, norms: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Return [s, K] the gradient of the losses, written over the logits: softmax less one-hot."""
    gradient = logits.sub_(norms[:, None]).exp_()
    gradient.scatter_add_(1, wanted[:, None], -torch.ones_like(gradient[:, :1]))
    return gradient
