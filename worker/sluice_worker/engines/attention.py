"""Attention inside each text of a packed batch, and nothing across texts.

On the CPU, texts of equal length share one call of torch's fused kernel; a GPU in 16 bits runs the
whole batch in one call of its variable-length kernel, where that takes the heads' size. Both
networks (our own and transformers' through its attention interface) end here.
"""

from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sluice_worker.engines.packing import Group, Packed

_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_MOST_SIZE = 256
_AMPERE = (8, 0)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Packed,
    *,
    scale: float | None = None,
    window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Every token looks at the tokens of its own text.

    Args:
        query: ``[T, heads, size]``.
        key, value: ``[T, key heads, size]``; ``heads`` is a multiple of ``key heads``.
        scale: None for ``size ** -0.5``.
        window: a token sees only those less than this many places away, on either side.
        bias: added to the scores of the longest text, by which place looks at which,
            ``[1, heads, length, length]``; of shorter texts, its beginning. Not with a window.

    Returns:
        ``[T, heads, size]``, contiguous.
    """
    if bias is None and query.is_cuda and _varlen_takes(query, value):
        return _attend_varlen(query, key, value, batch, scale, window)
    output = torch.empty(
        (query.shape[0], query.shape[1], value.shape[2]), dtype=query.dtype, device=query.device
    )
    grouped_heads = query.shape[1] != key.shape[1]
    for group in batch.groups:
        mask = None if bias is None else bias[:, :, : group.length, : group.length]
        if window is not None and group.length > window:
            mask = _band(group.length, window, query.device)
        answer = scaled_dot_product_attention(
            _block(query, group),
            _block(key, group),
            _block(value, group),
            attn_mask=mask,
            scale=scale,
            enable_gqa=grouped_heads,
        )
        _block(output, group).copy_(answer)
    return output


def attend_first(query: Tensor, key: Tensor, value: Tensor, batch: Packed) -> Tensor:
    """Only each text's first token looks.

    Args:
        query: ``[N, heads, size]``, one per text.
        key, value: ``[T, heads, size]``.

    Returns:
        ``[N, heads, size]``.
    """
    output = torch.empty_like(query)
    for group in batch.groups:
        answer = scaled_dot_product_attention(
            query[group.texts].unsqueeze(2), _block(key, group), _block(value, group)
        )
        output[group.texts] = answer.squeeze(2)
    return output


def _block(rows: Tensor, group: Group) -> Tensor:
    """The rows of a group as the kernel takes them, ``[count, heads, length, size]``; a view."""
    heads, size = rows.shape[1:]
    return rows[group.rows].view(group.count, group.length, heads, size).transpose(1, 2)


@lru_cache(maxsize=256)
def _band(length: int, window: int, device: torch.device) -> Tensor:
    places = torch.arange(length, device=device)
    return (places[:, None] - places[None, :]).abs() < window


def _varlen_takes(query: Tensor, value: Tensor) -> bool:
    """What torch's FlashAttention is made for: see ``mha_varlen_fwd`` in its ``flash_api.cpp``."""
    size = query.shape[2]
    return (
        query.dtype in _VARLEN_DTYPES
        and size == value.shape[2]
        and size % 8 == 0
        and size <= _VARLEN_MOST_SIZE
        and _capability(query.device) >= _AMPERE
    )


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Packed,
    scale: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    bounds = torch.nn.functional.pad(batch.starts.to(torch.int32), (0, 1), value=batch.ids.shape[0])
    longest = batch.groups[-1].length
    answer = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(reach, reach),
        enable_gqa=query.shape[1] != key.shape[1],
        num_splits=1,  # One kernel for all batches: cuDNN would plan for each new shape.
    )
    assert isinstance(answer, Tensor), "only asked for the answer itself"
    return answer
