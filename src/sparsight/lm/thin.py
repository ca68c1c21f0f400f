"""A few rows through a matrix, on a CPU, for the compiled step: sums of products in place of the library's product.

A decoded token multiplies every weight once, and is as fast as the weights come from memory. The libraries' products
of a matrix with few rows reach a third of that on some processors, where the loop that the compiler writes for
`(W * x).sum()` reaches most of it: it reads a weight once and keeps a sum for each row. With more rows the sums no
longer fit into registers, and the library's product is the better one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

MOST_ROWS = 8
aten = torch.ops.aten


class ThinProducts(CustomGraphPass):
    """A pass over the compiler's graph: products whose left side has few rows become sums of products."""

    def __call__(self, graph: Graph) -> None:
        for product in (aten.mm.default, aten.addmm.default):
            for node in graph.find_nodes(op="call_function", target=product):
                *bias, x, weight = node.args
                if x.meta["val"].shape[0] <= MOST_ROWS and not node.kwargs:
                    with graph.inserting_before(node):
                        _put(graph, node, x, weight, *bias)

    def uuid(self) -> str:
        """What the compiler's cache on disk knows this pass by."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _put(graph: Graph, node: Node, x: Node, weight: Node, *bias: Node) -> None:
    """x [row, k] times weight [k, n], plus the bias if there is one, in node's place."""

    def call(op: Any, *args: Any) -> Node:
        out = graph.call_function(op, args)
        out.meta["val"] = op(*torch.fx.map_arg(args, lambda arg: arg.meta["val"]))
        return out

    x.meta["inductor_realize_to_strides"] = True  # else the compiler makes x again for every column of the weight
    columns = call(aten.permute.default, x, [1, 0])
    rows = [
        call(
            aten.sum.dim_IntList,
            call(aten.mul.Tensor, weight, call(aten.slice.Tensor, columns, 1, i, i + 1)),
            [0],
            True,
        )
        for i in range(x.meta["val"].shape[0])
    ]
    out = call(aten.cat.default, rows) if len(rows) > 1 else rows[0]
    for added in bias:
        out = call(aten.add.Tensor, out, added)
    node.replace_all_uses_with(out)
    graph.erase_node(node)
