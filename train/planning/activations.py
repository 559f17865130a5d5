"""What autograd keeps of one micro-batch, and its peak, in bytes.

The counts follow transformers' modules and this project's attention, loss and recomputation
operation by operation; `bench/activations.py` traces the real modules and compares. Per token and
layer, with e bytes an element, h = hidden, q and k = width of all query and of all key heads,
f = ffn, a Llama-like layer keeps

    two norms   2 (4h in fp32 + eh normalised + eh for the products that follow)
    attention   e(2q + 2k) for q, k, v and the result, and 4 bytes a head for the softmax's sums
    gated MLP   4ef for gate, its activation, up and their product
    capped      besides, (2e + 4) bytes a score: tanh's result, softmax's in fp32 and in e bytes
    dropout     besides, (e + 1) bytes of every adapter's input; norms and MLP keep theirs no more
    selective   instead of these: the input, every product's result, the attention's result and sums
    full        instead of these: eh, the layer's input
"""

from __future__ import annotations

from dataclasses import dataclass

from train.planning.shape import Shape

LOSS_ROWS = 1024
# Bytes of a score of the longest sample that pass on the way back where scores are formed, and of a
# feature while it is decided whether it is dropped: traced.
_SCORES_BACK, _HASHES = 5.0, 14.0
# Times ffn that a plain activation function and the product after it keep.
_PLAIN_MLP = {"relu": 1, "gelu": 2, "silu": 2, "gelu_new": 5}


@dataclass(frozen=True)
class Setting:
    """How a micro-batch is run.

    `size` is the bytes of an element, `adapter` the rank over frozen layers (0: none), `dropout`
    says that adapters drop, `fused` that norms, activations and loss are single kernels; `dense` is
    the length whose square of attention scores is kept (0: never formed) and `longest` that of the
    longest sample; `repeats` says that keys and values are repeated for every query head. `tp` and
    `sp` divide the inside and the tokens, `split` the tokens of norms and residuals only
    (Megatron's sequence parallelism, over the ranks of `tp`); `whole_logits` says that the loss
    forms all logits in fp32, as other people's usually does.
    """

    size: int = 2
    adapter: int = 0
    fused: bool = False
    dense: float = 0.0
    longest: int = 0
    dropout: bool = False
    repeats: bool = False
    tp: int = 1
    sp: int = 1
    split: int = 1
    whole_logits: bool = False


@dataclass(frozen=True)
class Layer:
    """Bytes per token: kept in each mode, formed again, passing; `matrix` is of one gradient.

    `scores` are the bytes that pass while the longest sample's attention goes back.
    """

    none: float
    selective: float
    full: float
    again: float
    passing: float
    carrying: float
    matrix: float
    scores: float

    def kept(self, recompute: str) -> float:
        """What stays between a layer's forward and its backward pass."""
        return {"none": self.none, "selective": self.selective, "full": self.full}[recompute]

    def backward(self, recompute: str, tokens: float) -> float:
        """Bytes of a layer's backward pass over `tokens`, beyond what all layers keep."""
        formed = {"none": 0.0, "selective": self.again, "full": self.none}[recompute]
        product = self.carrying * tokens + self.matrix
        return formed * tokens + max(self.passing * tokens, product, self.scores)


def layer_bytes(shape: Shape, run: Setting) -> Layer:
    """Return what a layer keeps, per token of a micro-batch on one GPU."""
    h, q, k, f, size = shape.hidden, shape.query_width, shape.kv_width, shape.ffn, run.size
    up = 2 if shape.gated else 1
    sums = 4.0 * shape.heads
    scores = (2 * size + (4 if shape.softcap else 1)) * shape.heads * run.dense
    fused_qkv = size * (q + k) if shape.fused_qkv else 0
    attention = size * (2 * q + 2 * k + shape.partial_rotary * q) + fused_qkv + sums + scores
    attention += _head_norms(shape, size) + 2 * size * (q - k) * run.repeats
    modules = (2 if shape.fused_qkv else 4) + up + 1
    ranks = size * run.adapter * modules
    norms = _norms(shape, run)
    none = norms + (attention + _mlp(shape, run) + ranks + _dropped(shape, run)) / run.tp
    wide = size * h / run.split
    # This project's tensor ranks keep the sums behind two products, too, and send none again.
    sums_kept = run.tp > 1 and not run.whole_logits
    products = size * (q + 2 * k + up * f) / run.tp + (4 if sums_kept else 2) * wide
    selective = wide + products * (2 if run.adapter else 1) + (size * q + sums + ranks) / run.tp
    shared = (size * (k + up * f + q) + sums + fused_qkv) / run.tp
    freed = wide * (2 if shape.post_norms else 1)
    freed += ((0 if shape.fused_qkv else q + k) + f * (shape.activation == "relu")) * size / run.tp
    return Layer(
        none=none / run.sp,
        selective=selective / run.sp,
        full=wide / run.sp,
        again=(none - shared - freed) / run.sp,
        passing=max(_passing(shape, run)) / run.sp,
        carrying=_passing(shape, run)[0] / run.sp,
        matrix=0.0 if run.adapter else size * h * f / run.tp,
        scores=_SCORES_BACK * shape.heads * run.longest**2 / run.tp if run.dense else 0.0,
    )


def _dropped(shape: Shape, run: Setting) -> float:
    """Bytes of the adapters' own inputs and masks, less the inputs that nothing else keeps then."""
    if not run.dropout:
        return 0.0
    inputs = (1 if shape.parallel else 2) * shape.hidden + shape.ffn
    return (run.size + 1.0) * sum(rows for rows, _ in shape.linears) - run.size * inputs


def _norms(shape: Shape, run: Setting) -> float:
    """Bytes of a layer's norms, with what the products after them take."""
    h, size = shape.hidden, run.size
    inputs = (shape.norms - shape.post_norms) or 2
    if run.fused or shape.norm == "layer":
        kept = float(size * h * (1 if shape.parallel else shape.norms))
    else:
        trained = 0 if run.adapter else size
        each = {"gemma": 8, "olmo2": 8, "layer32": 4}.get(shape.norm, 4 + trained)
        kept = float(shape.norms * (each * h + 4))
    return (kept + inputs * size * h) / run.split


def _head_norms(shape: Shape, size: int) -> float:
    if not shape.qk_norm:
        return 0.0
    each = 4 + (size if shape.norm == "rms" else 4)
    width = shape.query_width + shape.kv_width
    return float(each * width + 4 * (shape.heads + shape.kv_heads))


def _mlp(shape: Shape, run: Setting) -> float:
    if shape.gated:
        return float(run.size * shape.ffn * (3 if run.fused else 4))
    return float(run.size * shape.ffn * _PLAIN_MLP[shape.activation])


def _passing(shape: Shape, run: Setting) -> tuple[float, float, float, float]:
    """Bytes per token alive at once: gradients in a product, in the activation and in a norm, and
    the hashes that decide what is dropped.
    """
    both = shape.gated or shape.activation != "gelu" or run.adapter > 0
    inner = run.size * shape.ffn / run.tp
    residual = 0.0 if shape.parallel else run.size * shape.hidden / run.split
    after = 16.0 * shape.hidden if shape.post_norms else 0.0
    hashes = _HASHES * shape.ffn / run.tp if run.dropout else 0.0
    return inner + residual, inner * (2 if both else 1) + residual, after, hashes


def outer_bytes(shape: Shape, run: Setting, share: float, tokens: float) -> float:
    """Return the bytes of final norm, logits and loss at their peak, for `tokens` tokens.

    Logits exist for the `share` of tokens that carries loss, in the model's own type; they are
    overwritten by their gradient, and `LOSS_ROWS` rows at a time pass through fp32. With fused
    kernels, logits exist for a slice of rows only.
    """
    h, size, vocab = shape.hidden, run.size, shape.vocab / run.tp
    rows = share * tokens / run.sp
    tokens = tokens / run.sp
    layer = shape.norm == "layer" or run.fused
    trained = 0 if run.adapter else size
    saved = (size if layer else 4 + trained) * h * tokens + size * h * rows
    going_back = ((8 if layer else 20 + 2 * trained) * h) * tokens
    if run.whole_logits:
        # A plain loss gathers the logits of all tensor parallel ranks before it.
        logits = (size + 4.0) * vocab * rows if run.fused else (size + 12.0) * shape.vocab * rows
        return max(saved + logits, going_back)
    if run.fused and run.tp == 1:
        # The slice's logits and their gradient; the gradients of input and weight exist at once.
        slices = 2.0 * size * min(rows, LOSS_ROWS) * vocab
        return max(saved + size * h * rows + slices + trained * vocab * h, going_back)
    logits = size * vocab * rows
    # Tensor ranks form a slice's gradient in its one copy, or in fp32 in place.
    copies = (2 if rows <= LOSS_ROWS else 3) if run.tp == 1 else int(size == 2)
    loss = saved + logits + 4.0 * copies * vocab * min(rows, LOSS_ROWS)
    head = saved + logits + size * h * rows + trained * vocab * h
    return max(loss, head, going_back)


def peak(
    shape: Shape, run: Setting, recompute: str, tokens: float, share: float = 1.0
) -> tuple[float, float]:
    """Return the peak bytes of one micro-batch on one GPU: of the layers, and of the outer part.

    The peak is reached either in the loss or in the backward pass of the last layer, whichever
    needs more; the second number is 0 in the second case.
    """
    layer = layer_bytes(shape, run)
    positions = (2 * run.size * shape.head_dim + 40) * tokens / run.sp
    kept = shape.layers * layer.kept(recompute) * tokens + positions
    outer = outer_bytes(shape, run, share, tokens)
    back = layer.backward(recompute, tokens)
    return (kept, outer) if outer >= back else (kept + back, 0.0)
