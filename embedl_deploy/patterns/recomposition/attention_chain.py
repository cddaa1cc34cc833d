"""Follows softmax(q kᵀ · scale + masks) v from its last product back to q, k and v."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, dtype_of, is_call, module_of, shape_of
from embedl_deploy.patterns.recomposition.literals import number_of
from embedl_deploy.patterns.shapes import is_one, same_shape, same_size
from embedl_deploy.rewriting import Refusal

_ATEN = torch.ops.aten
PRODUCTS = (_ATEN.matmul.default, _ATEN.bmm.default)
_RESHAPES = (_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default)
_CASTS = (_ATEN.to.dtype, _ATEN._to_copy.default, _ATEN.to.dtype_layout)
_LOWEST_KEPT = -1e9
_MOST_STEPS = 12


@dataclass(frozen=True)
class Mask:
    """One mask of the scores."""

    node: Node
    """What is added, or a condition."""

    scores: Node
    """The node that applies it: the shape it is broadcast to."""

    factor: float = 1.0
    """What the masked scores are multiplied by before the softmax."""

    fill: float | None = None
    """What takes the place of a masked score; ``None`` for a mask that is added."""

    is_kept: bool = False
    """Whether the condition names the scores that stay rather than those filled."""


@dataclass(frozen=True)
class AttentionChain:
    """An attention spelled as single operations."""

    nodes: tuple[Node, ...]
    """What it consumes."""

    softmax: Node
    product: Node
    """The product of queries and keys."""

    query: Node
    key: Node
    key_is_transposed: bool
    """Whether ``key`` has shape (..., head size, keys)."""

    value: Node
    value_is_transposed: bool
    """Whether ``value`` has shape (..., value size, keys), and the result is transposed too."""

    scale: float
    query_scale: Node | None
    """A factor of the queries that the graph computes."""

    masks: tuple[Mask, ...]
    dropout_p: float


@dataclass(frozen=True)
class _Walk:
    """What has been met on the way from the softmax to the product."""

    nodes: tuple[Node, ...] = ()
    factor: float = 1.0
    query_scale: Node | None = None
    masks: tuple[Mask, ...] = ()
    dropout_p: float = 0.0
    steps: int = 0
    blocked: tuple[Refusal, ...] = field(default=())

    def past(self, node: Node) -> "_Walk":
        return replace(self, nodes=(*self.nodes, node), steps=self.steps + 1)


def attention_chain(root: Node) -> AttentionChain | Refusal | None:
    """Returns the attention whose last product is ``root``.

    Returns:
        The chain; a refusal if a softmax of a product is there but something else is not as
        attention kernels compute it; None if ``root`` ends no attention at all.
    """
    if len(root.args) < 2:
        return None
    for position in (0, 1):
        probabilities, value = root.args[position], root.args[1 - position]
        if not isinstance(probabilities, Node) or not isinstance(value, Node):
            return None
        walk = _Walk().past(root)
        if position == 1:
            source = _transposed(probabilities)
            if source is None:
                continue
            walk, probabilities = walk.past(probabilities), source
        found = _through_softmax(probabilities, walk)
        if found is not None:
            return _finish(root, value, position == 1, *found)
    return None


def _through_softmax(node: Node, walk: _Walk) -> tuple[Node, Node, _Walk] | None:
    """Walks from the probabilities to the softmax; returns it, its input and the walk."""
    start = node
    while not _is_softmax(node):
        module = module_of(node)
        if isinstance(module, nn.Dropout):
            walk = replace(walk, dropout_p=module.p)
        elif is_call(node, _ATEN.dropout.default):
            bound = bound_arguments(node)
            walk = replace(walk, dropout_p=number_of(bound["p"]) or 0.0)
        elif not any(is_call(node, target) for target in (*_CASTS, *_RESHAPES)):
            return None
        if not node.all_input_nodes or walk.steps > _MOST_STEPS:
            return None
        walk, node = walk.past(node), node.all_input_nodes[0]
    before, after = shape_of(node), shape_of(start)
    if before is None or after is None or not same_shape(before[-2:], after[-2:]):
        return None
    return node, node.all_input_nodes[0], walk.past(node)


def _is_softmax(node: Node) -> bool:
    return (
        is_call(node, _ATEN.softmax.int)
        or is_call(node, _ATEN._softmax.default)
        or isinstance(module_of(node), nn.Softmax)
    )


def _finish(
    root: Node, value: Node, value_is_transposed: bool, softmax: Node, scores: Node, walk: _Walk
) -> AttentionChain | Refusal | None:
    found = _to_product(scores, walk)
    if found is None or isinstance(found, Refusal):
        return found
    product, done = found
    shape = shape_of(softmax)
    if shape is None or _softmax_dim(softmax) not in (-1, len(shape) - 1):
        return Refusal("its softmax does not run over the last dimension, the keys", softmax)
    query, key = _operands(product)
    query, query_factor, done = _unscaled(query, product, done)
    key, key_factor, done = _unscaled(key, product, done)
    untransposed = _transposed(key)
    if untransposed is not None:
        done = _own(key, product, done)
        inner, key_factor_2, done = _unscaled(untransposed, key, done)
        key, key_factor = inner, key_factor * key_factor_2
    chain = AttentionChain(
        nodes=done.nodes,
        softmax=softmax,
        product=product,
        query=query,
        key=key,
        key_is_transposed=untransposed is None,
        value=value,
        value_is_transposed=value_is_transposed,
        scale=done.factor * _product_factor(product) * query_factor * key_factor,
        query_scale=done.query_scale,
        masks=done.masks,
        dropout_p=done.dropout_p,
    )
    return _objection(chain, root) or chain


def _objection(chain: AttentionChain, root: Node) -> Refusal | None:
    dtypes = {dtype_of(node) for node in (chain.query, chain.key, chain.value)}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return Refusal(f"queries, keys and values have different dtypes: {names}", root)
    product, scores = shape_of(chain.product), shape_of(chain.softmax)
    if product is None or scores is None or not same_shape(product[-2:], scores[-2:]):
        return Refusal("the scores are reshaped between the product and the softmax", root)
    return None


def _softmax_dim(softmax: Node) -> object:
    module = module_of(softmax)
    return module.dim if isinstance(module, nn.Softmax) else bound_arguments(softmax)["dim"]


def _to_product(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    """Walks from the softmax's input to the product of queries and keys."""
    if walk.steps > _MOST_STEPS:
        return None
    if _is_product(node):
        if is_call(node, _ATEN.baddbmm.default):
            walk = _with_added_bias(node, walk)
        return node, walk.past(node)
    step = _STEPS.get(node.target)
    if step is None:
        return _blocked_by(node)
    return step(node, walk)


def _blocked_by(node: Node) -> Refusal | None:
    """Returns a refusal where an unknown operation stands right on top of a product."""
    first = node.all_input_nodes[:1]
    if node.op in ("call_function", "call_module") and first and _is_product(first[0]):
        return Refusal(
            f"%{node.name} ({node.target}) stands between the scores and the softmax", node
        )
    return None


def _is_product(node: Node) -> bool:
    return any(is_call(node, target) for target in (*PRODUCTS, _ATEN.baddbmm.default))


def _operands(product: Node) -> tuple[Node, Node]:
    first, second = product.args[-2:]
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    return first, second


def _product_factor(product: Node) -> float:
    if not is_call(product, _ATEN.baddbmm.default):
        return 1.0
    alpha = number_of(bound_arguments(product)["alpha"])
    return 1.0 if alpha is None else alpha


def _with_added_bias(product: Node, walk: _Walk) -> _Walk:
    bound = bound_arguments(product)
    beta, bias = number_of(bound["beta"]), bound["self"]
    if beta == 0.0 or not isinstance(bias, Node):
        return walk
    factor = walk.factor * (1.0 if beta is None else beta)
    return replace(walk, masks=(*walk.masks, Mask(bias, product, factor)))


Step = Callable[[Node, _Walk], "tuple[Node, _Walk] | Refusal | None"]


def _pass_through(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    return _to_product(node.all_input_nodes[0], walk.past(node))


def _reshape(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if before is None or after is None or not same_shape(before[-2:], after[-2:]):
        return None
    return _pass_through(node, walk)


def _scale(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    """Goes past a multiplication or division by a number, or by a factor of whole rows."""
    divides = is_call(node, _ATEN.div.Tensor)
    if divides and not isinstance(node.args[0], Node):
        return None
    for position in (0,) if divides else (0, 1):
        scores, other = node.args[position], node.args[1 - position]
        number = number_of(other)
        if not isinstance(scores, Node) or number == 0.0:
            continue
        after = walk.past(node)
        if number is not None:
            after = replace(after, factor=after.factor * (1 / number if divides else number))
        elif divides or walk.query_scale is not None or not _scales_rows(other, node):
            continue
        else:
            assert isinstance(other, Node)
            after = replace(after, query_scale=other)
        found = _to_product(scores, after)
        if found is not None:
            return _without_scaled_masks(found, walk, after)
    return None


def _without_scaled_masks(
    found: tuple[Node, _Walk] | Refusal, walk: _Walk, after: _Walk
) -> tuple[Node, _Walk] | Refusal | None:
    """Returns ``found`` unless a mask met further back is scaled by a factor of the graph."""
    if isinstance(found, Refusal) or after.query_scale is walk.query_scale:
        return found
    return found if len(found[1].masks) == len(walk.masks) else None


def _scales_rows(factor: Argument, scores: Node) -> bool:
    """Tells whether ``factor`` is constant along each row and column of the scores."""
    shape = shape_of(factor) if isinstance(factor, Node) else None
    full = shape_of(scores)
    if shape is None or full is None or len(shape) > len(full):
        return False
    return all(is_one(size) for size in shape[-1:])


def _add(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    if bound_arguments(node)["alpha"] != 1:
        return None
    refusal: Refusal | None = None
    for position in (0, 1):
        scores, mask = node.args[position], node.args[1 - position]
        if not isinstance(scores, Node) or not isinstance(mask, Node):
            return None
        after = walk.past(node)
        after = replace(after, masks=(*after.masks, Mask(mask, node, walk.factor)))
        found = _to_product(scores, after)
        if isinstance(found, tuple):
            return found
        refusal = refusal or found
    return refusal


def _masked_fill(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    bound = bound_arguments(node)
    return _fill(node, walk, bound["self"], bound["mask"], bound["value"], is_kept=False)


def _where(node: Node, walk: _Walk) -> tuple[Node, _Walk] | Refusal | None:
    bound = bound_arguments(node)
    condition, first, second = bound["condition"], bound["self"], bound["other"]
    if number_of(first) is not None:
        return _fill(node, walk, second, condition, first, is_kept=False)
    return _fill(node, walk, first, condition, second, is_kept=True)


def _fill(
    node: Node,
    walk: _Walk,
    scores: Argument,
    condition: Argument,
    value: Argument,
    *,
    is_kept: bool,
) -> tuple[Node, _Walk] | Refusal | None:
    number = number_of(value)
    if not isinstance(scores, Node) or not isinstance(condition, Node) or number is None:
        return None
    mask = Mask(condition, node, walk.factor, number, is_kept)
    found = _to_product(scores, replace(walk.past(node), masks=(*walk.masks, mask)))
    if isinstance(found, tuple) and (number > _LOWEST_KEPT or walk.factor <= 0.0):
        return Refusal(f"its mask puts {number} in place of scores, not minus infinity", node)
    return found


_STEPS: Mapping[object, Step] = {
    _ATEN.add.Tensor: _add,
    _ATEN.mul.Tensor: _scale,
    _ATEN.mul.Scalar: _scale,
    _ATEN.div.Tensor: _scale,
    _ATEN.div.Scalar: _scale,
    _ATEN.masked_fill.Scalar: _masked_fill,
    _ATEN.masked_fill.Tensor: _masked_fill,
    _ATEN.where.self: _where,
    _ATEN.where.ScalarOther: _where,
    _ATEN.where.ScalarSelf: _where,
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_CASTS, _pass_through),
}


def _unscaled(node: Node, reader: Node, walk: _Walk) -> tuple[Node, float, _Walk]:
    """Returns what a scaled operand is made from, and the scale, if nothing else reads it."""
    divides = is_call(node, _ATEN.div.Tensor)
    if not (divides or is_call(node, _ATEN.mul.Tensor)) or set(node.users) != {reader}:
        return node, 1.0, walk
    for position in (0,) if divides else (0, 1):
        inner, number = node.args[position], number_of(node.args[1 - position])
        if isinstance(inner, Node) and number and dtype_of(inner) == dtype_of(node):
            scale = 1 / number if divides else number
            return inner, scale, walk.past(node)
    return node, 1.0, walk


def _own(node: Node, reader: Node, walk: _Walk) -> _Walk:
    """Consumes an operand if nothing else reads it."""
    return walk.past(node) if set(node.users) == {reader} else walk


def _transposed(node: Node) -> Node | None:
    """Returns x where ``node`` is x with its last two dimensions swapped."""
    shape = shape_of(node)
    if shape is None or len(shape) < 2 or not node.args or not isinstance(node.args[0], Node):
        return None
    rank = len(shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    bound = bound_arguments(node)
    if is_call(node, _ATEN.transpose.int):
        dims = {_dim(bound["dim0"], rank), _dim(bound["dim1"], rank)}
        return node.args[0] if dims == {rank - 2, rank - 1} else None
    if is_call(node, _ATEN.permute.default):
        order = bound["dims"]
        assert isinstance(order, (list, tuple))
        return node.args[0] if tuple(_dim(dim, rank) for dim in order) == swapped else None
    is_matrix = is_call(node, _ATEN.t.default) or is_call(node, _ATEN.numpy_T.default)
    if is_call(node, _ATEN.mT.default) or (is_matrix and rank == 2):
        return node.args[0]
    return None


def _dim(dim: Argument, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank


def broadcasts_alike(mask: Mask, product: Node) -> bool:
    """Tells whether the scores had the product's own shape where the mask was applied."""
    there, here = shape_of(mask.scores), shape_of(product)
    if there is None or here is None:
        return False
    return len(there) == len(here) and all(map(same_size, there, here))
