"""BERT and its kin, computed from the safetensors file with torch alone.

Most encoders in use have this one shape (Devlin et al. 2018, arXiv:1810.04805), so it earns a form
of its own: no import of transformers' modelling code (more than half of a cold start), one matrix
product for query, key and value, and the last layer for first tokens only where nothing else is
asked for. Every other architecture goes through ``engines.adapter``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, relu

from sluice_worker.engines.attention import attend, attend_first
from sluice_worker.engines.packing import Packed
from sluice_worker.models.description import Description, position_offset
from sluice_worker.models.errors import ModelRejected

_SPELLINGS = ({"num_attention_heads", "num_hidden_layers"}, {"n_heads", "n_layers"})
"""What a configuration must say itself; one that leaves it to a default goes to transformers."""

Activation = Callable[[Tensor], Tensor]

_tanh_gelu: Activation = partial(gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": relu,
}


@dataclass(frozen=True, slots=True)
class _Family:
    """How one architecture names its tensors. Layer names are relative to ``layer``.

    Attributes:
        head: dense layer, activation and output of a classifier of texts.
        mask: of a masked language model dense layer, norm, output, the output's bias where its
            weight is the embeddings', and activation (None for that of the layers).
    """

    prefix: str
    head: tuple[str, Activation, str]
    mask: tuple[str, str, str, str, Activation | None]
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    mixed: str = "attention.output.dense"
    mixed_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    down_norm: str = "output.LayerNorm"


_ROBERTA = _Family(
    "roberta.",
    ("classifier.dense", torch.tanh, "classifier.out_proj"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", gelu),
)
_FAMILIES = {
    "bert": _Family(
        "bert.",
        ("bert.pooler.dense", torch.tanh, "classifier"),
        (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
            "cls.predictions.bias",
            None,
        ),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": _Family(
        "electra.",
        ("classifier.dense", gelu, "classifier.out_proj"),
        (
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head",
            "generator_lm_head.bias",
            gelu,
        ),
    ),
    "distilbert": _Family(
        "distilbert.",
        ("pre_classifier", relu, "classifier"),
        (
            "vocab_transform",
            "vocab_layer_norm",
            "vocab_projector",
            "vocab_projector.bias",
            None,
        ),
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        mixed="attention.out_lin",
        mixed_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        down_norm="output_layer_norm",
    ),
}


@dataclass(frozen=True, slots=True)
class _Affine:
    """A weight matrix ``[out, in]`` or a norm's scale, and its bias."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Layer:
    mix: _Affine  # query, key and value, one above the other
    mixed: _Affine
    mixed_norm: _Affine
    up: _Affine
    down: _Affine
    down_norm: _Affine


def serves(description: Description) -> bool:
    """Whether this network computes the model exactly."""
    config = description.config
    return (
        description.model_type in _FAMILIES
        and any(sizes <= config.keys() for sizes in _SPELLINGS)
        and _hidden_activation(config) in _ACTIVATIONS
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
    )


class BertNetwork:
    """Implements :class:`sluice_worker.engines.network.Network`.

    Args:
        tensors: the weights by name, as stored; converted to ``dtype`` and moved to ``device``.

    Raises:
        ModelRejected: a tensor is missing or has another shape than the configuration says.
    """

    def __init__(
        self,
        description: Description,
        tensors: Mapping[str, Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        config = description.config
        family = _FAMILIES[description.model_type]
        weights = _Weights(tensors, family.prefix, dtype, device)
        self._heads = int(config.get("num_attention_heads") or config["n_heads"])
        self._hidden = description.hidden_size
        if self._hidden % self._heads:
            raise ModelRejected(
                f"config.json: {self._heads} attention heads cannot share a hidden size of "
                f"{self._hidden}. Save model and configuration together."
            )
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._activation = _ACTIVATIONS[_hidden_activation(config)]
        self._offset = position_offset(config)
        self._read_embeddings(weights, config, description.max_tokens)
        depth = int(config.get("num_hidden_layers") or config["n_layers"])
        self._layers = [_read_layer(weights, family, index) for index in range(depth)]
        self._head = self._read_head(weights, family, description)

    def _read_embeddings(
        self, weights: "_Weights", config: Mapping[str, Any], max_tokens: int
    ) -> None:
        self._words = weights.tensor("embeddings.word_embeddings.weight")
        if self._words.shape[0] < int(config.get("vocab_size", 0)):
            raise ModelRejected(
                f"The weights know {self._words.shape[0]} token ids, config.json says "
                f"{config['vocab_size']}. Save model and configuration together."
            )
        self._positions = weights.tensor("embeddings.position_embeddings.weight")
        room = self._positions.shape[0] - self._offset
        if room < max_tokens:
            raise ModelRejected(
                f"The weights know {room} positions, config.json allows {max_tokens} tokens. "
                "Save model and configuration together."
            )
        self._types = weights.optional("embeddings.token_type_embeddings.weight")
        self._embedding_norm = weights.affine("embeddings.LayerNorm")
        self._project = None
        if weights.optional("embeddings_project.weight") is not None:
            self._project = weights.affine("embeddings_project")

    def _read_head(
        self, weights: "_Weights", family: _Family, description: Description
    ) -> Activation | None:
        match description.head:
            case "sequence":
                dense, activation, out = family.head
                labels = _labelled(weights.affine(out), description)
                return _chain(weights.affine(dense), activation, labels)
            case "token":
                return _labelled(weights.affine("classifier"), description)
            case "span":
                return weights.affine("qa_outputs")
            case "mask":
                return self._read_mask_head(weights, family, description.config)
        return None

    def _read_mask_head(
        self, weights: "_Weights", family: _Family, config: Mapping[str, Any]
    ) -> Activation:
        dense, norm, decoder, bias, activation = family.mask
        if config.get("tie_word_embeddings", True):
            out = _Affine(self._words, weights.tensor(bias))
        else:
            out = weights.affine(decoder)
        return _chain(
            weights.affine(dense),
            activation or self._activation,
            partial(self._norm, norm=weights.affine(norm)),
            out,
        )

    def __repr__(self) -> str:
        return f"<BertNetwork {len(self._layers)} layers of {self._hidden}, {self._heads} heads>"

    def hidden(self, batch: Packed) -> Tensor:
        rows = self._embed(batch)
        for layer in self._layers:
            rows = self._whole(layer, rows, batch)
        return rows

    def first(self, batch: Packed) -> Tensor:
        rows = self._embed(batch)
        for layer in self._layers[:-1]:
            rows = self._whole(layer, rows, batch)
        return self._first_only(self._layers[-1], rows, batch)

    def logits(self, rows: Tensor) -> Tensor:
        assert self._head is not None, "a model without a head is never asked for logits"
        return self._head(rows)

    def _embed(self, batch: Packed) -> Tensor:
        rows = embedding(batch.ids, self._words)
        rows += embedding(batch.positions + self._offset, self._positions)
        if self._types is not None:
            # A broadcast row where no text has a second part, which is nearly always.
            rows += (
                self._types[0] if batch.type_ids is None else embedding(batch.type_ids, self._types)
            )
        rows = self._norm(rows, self._embedding_norm)
        return rows if self._project is None else self._project(rows)

    def _whole(self, layer: _Layer, rows: Tensor, batch: Packed) -> Tensor:
        mixed = layer.mix(rows).view(rows.shape[0], 3, self._heads, -1)
        query, key, value = mixed.unbind(1)
        return self._after(layer, attend(query, key, value, batch).flatten(1), rows)

    def _first_only(self, layer: _Layer, rows: Tensor, batch: Packed) -> Tensor:
        """The layer for first tokens alone: they still look at every token of their text."""
        size, mix = self._hidden, layer.mix
        first = rows[batch.starts]
        query = linear(first, mix.weight[:size], mix.bias[:size])
        others = linear(rows, mix.weight[size:], mix.bias[size:])
        key, value = others.view(rows.shape[0], 2, self._heads, -1).unbind(1)
        query = query.view(first.shape[0], self._heads, -1)
        return self._after(layer, attend_first(query, key, value, batch).flatten(1), first)

    def _after(self, layer: _Layer, attended: Tensor, rows: Tensor) -> Tensor:
        rows = self._norm(layer.mixed(attended).add_(rows), layer.mixed_norm)
        wide = self._activation(layer.up(rows))
        return self._norm(layer.down(wide).add_(rows), layer.down_norm)

    def _norm(self, rows: Tensor, norm: _Affine) -> Tensor:
        return layer_norm(rows, (rows.shape[-1],), norm.weight, norm.bias, self._epsilon)


class _Weights:
    """Stored tensors by the names they have in any checkpoint of the family."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        prefix: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # The oldest checkpoints call a norm's weight and bias gamma and beta.
        self._tensors = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
                "LayerNorm.beta", "LayerNorm.bias"
            ): tensor
            for name, tensor in tensors.items()
        }
        self._prefix = prefix
        self._dtype = dtype
        self._device = device

    def optional(self, name: str) -> Tensor | None:
        stored = self._tensors.get(self._prefix + name)
        if stored is None:
            stored = self._tensors.get(name)
        return None if stored is None else stored.to(self._device, self._dtype)

    def tensor(self, name: str) -> Tensor:
        found = self.optional(name)
        if found is None:
            raise ModelRejected(f"The weights lack {name}. Fetch or save the whole model again.")
        return found

    def affine(self, name: str) -> _Affine:
        return _Affine(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))


def _labelled(out: _Affine, description: Description) -> _Affine:
    """``out``, which must have an output for each label."""
    assert description.classifier is not None, "a head with labels has them described"
    labels = len(description.classifier.labels)
    if out.weight.shape[0] != labels:
        raise ModelRejected(
            f"The head has {out.weight.shape[0]} outputs, config.json names {labels} labels. "
            "Save model and configuration together."
        )
    return out


def _chain(*steps: Activation) -> Activation:
    def compute(rows: Tensor) -> Tensor:
        for step in steps:
            rows = step(rows)
        return rows

    return compute


def _read_layer(weights: _Weights, family: _Family, index: int) -> _Layer:
    at = family.layer.format(index)
    parts = [weights.affine(at + name) for name in (family.query, family.key, family.value)]
    return _Layer(
        mix=_Affine(
            torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        ),
        mixed=weights.affine(at + family.mixed),
        mixed_norm=weights.affine(at + family.mixed_norm),
        up=weights.affine(at + family.up),
        down=weights.affine(at + family.down),
        down_norm=weights.affine(at + family.down_norm),
    )


def _hidden_activation(config: Mapping[str, Any]) -> str:
    return str(config.get("hidden_act") or config.get("activation") or "gelu")
