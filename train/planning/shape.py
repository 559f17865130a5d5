"""The shape of a causal language model: what it has and what it costs, in elements and FLOP.

A `Shape` is all that the planner knows of a model. Counts are exact for the families that
`train.planning.families` reads, so they can be compared with a loaded model to the last element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer.

    `norms` counts the hidden-wide norms of one layer and `outer_norms` those outside of layers;
    `qk_norm` counts the elements of a layer's query and key norms; `positions` the rows of a
    learned position table; `window` is the reach of sliding attention in tokens, if any,
    but for `full_layers` layers, whose attention reaches back to the sample's beginning.

    What autograd keeps depends on how a norm is written (`norm`: rms, gemma, layer, layer32 in
    fp32, olmo2), on the `activation` (silu, gelu, gelu_new, relu), on the norms whose output is
    added rather than multiplied (`post_norms`), on whether values are a view of one fused product
    (`fused_qkv`), on rotary embeddings of a part of a head, on parallel branches, and on a cap on
    attention scores (`softcap`), with which they are formed one by one.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    gated: bool = True
    tied: bool = False
    bias_qkv: bool = False
    bias_out: bool = False
    bias_mlp: bool = False
    bias_head: bool = False
    norms: int = 2
    norm_bias: bool = False
    norm_weight: bool = True
    outer_norms: int = 1
    qk_norm: int = 0
    positions: int = 0
    window: int | None = None
    full_layers: int = 0
    norm: str = "rms"
    activation: str = "silu"
    post_norms: int = 0
    fused_qkv: bool = False
    partial_rotary: bool = False
    parallel: bool = False
    softcap: bool = False

    @cached_property
    def query_width(self) -> int:
        """Columns of all query heads together."""
        return self.heads * self.head_dim

    @cached_property
    def kv_width(self) -> int:
        """Columns of all key (or of all value) heads together."""
        return self.kv_heads * self.head_dim

    @cached_property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """The (in, out) of each matrix of a layer: q, k, v, o and the MLP's."""
        up = ((self.hidden, self.ffn),) * (2 if self.gated else 1)
        return (
            (self.hidden, self.query_width),
            (self.hidden, self.kv_width),
            (self.hidden, self.kv_width),
            (self.query_width, self.hidden),
            *up,
            (self.ffn, self.hidden),
        )

    @cached_property
    def layer_matrices(self) -> int:
        """Elements of the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.linears)

    @cached_property
    def norm_elements(self) -> int:
        """Elements of one hidden-wide norm."""
        return self.hidden * (int(self.norm_weight) + int(self.norm_bias))

    @cached_property
    def layer_parameters(self) -> int:
        """Elements of one layer."""
        biases = (
            self.bias_qkv * (self.query_width + 2 * self.kv_width) + self.bias_out * self.hidden
        )
        biases += self.bias_mlp * (self.ffn * (2 if self.gated else 1) + self.hidden)
        return self.layer_matrices + biases + self.norms * self.norm_elements + self.qk_norm

    @cached_property
    def embedding_parameters(self) -> int:
        """Elements of the input embedding, positions included."""
        return (self.vocab + self.positions) * self.hidden

    @cached_property
    def head_parameters(self) -> int:
        """Elements of the output matrix that are its own: none if it is tied."""
        return (0 if self.tied else self.vocab * self.hidden) + self.bias_head * self.vocab

    @cached_property
    def parameters(self) -> int:
        """Elements of the whole model, each counted once."""
        outer = self.embedding_parameters + self.head_parameters
        return self.layers * self.layer_parameters + outer + self.outer_norms * self.norm_elements

    @cached_property
    def parameters_without_input(self) -> int:
        """Elements that every token meets: all but the input embedding, the output's included."""
        layers = self.layers * self.layer_parameters + self.outer_norms * self.norm_elements
        return layers + self.vocab * self.hidden

    def adapter_parameters(self, r: int, tp: int = 1) -> int:
        """Elements of a rank-`r` adapter on every matrix of every layer, on one of `tp` ranks.

        Tensor ranks divide the half on the side along which they divide the matrix.
        """
        by_input = (3, len(self.linears) - 1)
        sides = (
            (rows // tp, columns) if number in by_input else (rows, columns // tp)
            for number, (rows, columns) in enumerate(self.linears)
        )
        return self.layers * r * sum(map(sum, sides))

    def matmul_flops(self) -> float:
        """FLOP per token of one forward pass through all matrices, the output's included."""
        return 2.0 * (self.layers * self.layer_matrices + self.vocab * self.hidden)

    def attention_flops(self, length: float) -> float:
        """FLOP per token of causal attention, forward, for samples of `length` tokens.

        Each query meets half of its sample on average, at most the window.
        """
        whole = near = (length + 1) / 2
        if self.window is not None and length > self.window:
            near = self.window - self.window * (self.window - 1) / (2 * length)
        full = self.full_layers
        return 4.0 * self.query_width * (full * whole + (self.layers - full) * near)
