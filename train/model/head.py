"""Token losses from hidden states and the LM head, a chunk of logits at a time.

Logits of 1,024 tokens over a vocabulary of 256,000 are 1 GiB, and autograd would keep several of
them. Here a chunk lives as long as it is looked at. Where the head is frozen (LoRA, align), the
gradient of the states is worked out while the logits are there: its factor is known only in
backward, but it is one number a token. Where the head trains, logits are computed once more.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 1024  # supervised tokens whose logits are held at once: 1 GiB in float32 at K = 256,000


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


def _chunks(num_tokens: int) -> Iterator[slice]:
    for start in range(0, num_tokens, CHUNK):
        yield slice(start, start + CHUNK)


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
