"""PromQL taken apart, for tests of what an expression refers to."""

from collections.abc import Iterator
from typing import Any

import promql_parser as parser

#: Grafana's variables, as a value that parses
VARIABLES = {
    "$__rate_interval": "5m",
    "$__range": "6h",
    "$__interval": "1m",
    "$job": ".+",
    "$instance": ".+",
    "$task": ".+",
    "$model": ".+",
}
Path = tuple[Any, ...]


def expand(expr: str, variables: dict[str, str] = VARIABLES) -> str:
    """With Grafana's variables replaced. Raises AssertionError for an unknown one."""
    for name in sorted(variables, key=len, reverse=True):
        expr = expr.replace(name, variables[name])
    assert "$" not in expr, f"unknown variable in {expr}"
    return expr


def parse(expr: str) -> Any:
    """Raises ValueError where Prometheus would refuse it."""
    return parser.parse(expand(expr))


def nodes(node: Any, path: Path = ()) -> Iterator[tuple[Any, Path]]:
    """Every node of the tree with its ancestors, the root first."""
    yield node, path
    below = (*path, node)
    if isinstance(node, parser.BinaryExpr):
        children = [node.lhs, node.rhs]
    elif isinstance(node, parser.Call):
        children = list(node.args)
    elif isinstance(node, parser.MatrixSelector):
        children = [node.vector_selector]
    elif isinstance(node, parser.AggregateExpr):
        children = [node.expr, *([node.param] if node.param is not None else [])]
    elif isinstance(node, (parser.ParenExpr, parser.UnaryExpr, parser.SubqueryExpr)):
        children = [node.expr]
    else:
        children = []
    for child in children:
        yield from nodes(child, below)


def selectors(tree: Any) -> Iterator[tuple[str, dict[str, str], Path]]:
    """Every selector: metric, its matchers' values by label, and its ancestors."""
    for node, path in nodes(tree):
        if isinstance(node, parser.VectorSelector):
            matchers = {m.name: m.value for m in node.matchers.matchers}
            # how the dashboards name vLLM's metrics, see dashboards/queries.py
            either = matchers.pop("__name__", "").replace("[:_]", ":")
            yield node.name or either, matchers, path


def grouped_labels(tree: Any) -> Iterator[tuple[set[str], set[str]]]:
    """Per aggregation by labels: those labels, and the metrics below it."""
    for node, _ in nodes(tree):
        if isinstance(node, parser.AggregateExpr) and node.modifier is not None:
            assert node.modifier.type == parser.AggModifierType.By
            yield set(node.modifier.labels), {name for name, _, _ in selectors(node.expr)}


def function_over(path: Path) -> str | None:
    """The function whose argument the (range) selector is."""
    for node in reversed(path):
        if isinstance(node, parser.Call):
            return str(node.func.name)
        if not isinstance(node, parser.MatrixSelector):
            return None
    return None
