"""Rewriting the syntax tree of a chat template so that it charges its budget.

jinja2 compiles a template into Python, whose additions, comparisons, loops and calls nothing bounds. Before it compiles
the tree, everything that takes time or memory is replaced by a filter whose name no template can write; these filters
are `Operations`. Syntax that is not listed here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from onmt_llm.errors import DataError
from onmt_llm.text.templates.jinja.costs import NODE
from onmt_llm.text.templates.jinja.operations import Operations

MAX_NODES = 10_000
"""Maximum number of syntax nodes of a template."""
_PLAIN = 100
"""Maximum length of a constant that is compared without a charge."""
_TERMS = 4
"""Number of summands that are added before the sum is charged."""
_OBJECT = 12
"""A loop or a macro takes as much memory as this many other nodes."""
_LARGEST = 2**63

_STATEMENTS = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.AssignBlock),
    *(nodes.Macro, nodes.FilterBlock, nodes.With, nodes.Scope, nodes.Break, nodes.Continue),
)
_EXPRESSIONS = (
    *(nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.Filter, nodes.Test, nodes.Call, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.CondExpr),
    *(nodes.Compare, nodes.Operand, nodes.Concat, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
)
_ALLOWED = frozenset(_STATEMENTS + _EXPRESSIONS)
_CONSTANT = (nodes.TemplateData, nodes.Const)


def operations(do: Operations) -> Mapping[str, Callable[..., Any]]:
    """The filters that the rewritten syntax uses, by name."""
    return MappingProxyType(
        {
            "for": do.iterate,
            "charge": do.charge,
            "{{": do.shown,
            "+": do.grown,
            "~": do.concatenated,
            "*": do.repeated,
            "-": do.calculated,
            "<": do.compared,
            "in": do.contained,
            "{:": do.key,
            ".": do.attribute,
            "[": do.item,
            "[:": do.cut,
            "(": do.call,
            ".(": do.method,
        }
    )


def counted(template: nodes.Template) -> int:
    """Rewrite a template so that it charges its budget; returns the units of everything outside loops and macros.

    Raises:
        DataError: It has syntax that chat templates may not use; the message starts with its line.
    """
    _Counting().visit(template)
    return _units(template.body)


def _units(parts: Iterable[nodes.Node]) -> int:
    """Units of evaluating `parts` once, without the bodies of loops and macros, which are charged when they run."""
    total, stack = 0, list(parts)
    while stack:
        node = stack.pop()
        total += NODE
        if isinstance(node, nodes.TemplateData):
            total += len(node.data)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            total += len(node.value)
        if isinstance(node, nodes.Macro):
            total += NODE * _OBJECT
        elif isinstance(node, nodes.For):
            total += NODE * _OBJECT
            stack += [node.iter, *node.else_]
        else:
            stack += node.iter_child_nodes()
    return total


class _Counting(NodeTransformer):
    """Rewrites one template."""

    def __init__(self) -> None:
        self._count = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            _refuse(node, f"more than {MAX_NODES} expressions")
        if type(node) not in _ALLOWED:
            _refuse(node, f"a {type(node).__name__}")
        if getattr(node, "dyn_args", None) is not None or getattr(node, "dyn_kwargs", None) is not None:
            _refuse(node, "* or ** before an argument")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            _refuse(node, "a recursive loop")
        self.generic_visit(node)
        test = [] if node.test is None else [node.test]
        units = NODE + _units([*node.body, *test])
        node.iter = _operation(cast(nodes.Expr, node.iter), "for", nodes.Const(units))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        units = NODE * _OBJECT + _units([*node.body, *node.defaults])
        node.body.insert(0, nodes.ExprStmt(_operation(nodes.Const(units), "charge"), lineno=node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = [
            self.visit(child) if isinstance(child, _CONSTANT) else _operation(self._value(child), "{{")
            for child in node.nodes
        ]
        return node

    def _value(self, node: nodes.Expr) -> nodes.Expr:
        """An expression whose value is charged by the node around it."""
        return self._sum(node) if isinstance(node, nodes.Add) else self.visit(node)

    def visit_Add(self, node: nodes.Add) -> nodes.Expr:
        return _operation(self._sum(node), "+")

    def _sum(self, node: nodes.Expr) -> nodes.Expr:
        """a + b + ..., charged after every `_TERMS` summands."""
        terms: list[nodes.Expr] = []
        while isinstance(node, nodes.Add):
            self._count += 1
            terms.append(node.right)
            node = node.left
        total = self.visit(node)
        for number, term in enumerate(reversed(terms), start=2):
            if number % _TERMS == 0:
                total = _operation(total, "+")
            total = nodes.Add(total, self.visit(term), lineno=node.lineno)
        return total

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        first, *others = (self.visit(part) for part in node.nodes)
        for start in range(0, len(others), _TERMS):
            first = _operation(first, "~", *others[start : start + _TERMS])
        return first

    def visit_Mul(self, node: nodes.Mul) -> nodes.Node:
        return _operation(self.visit(node.left), "*", self.visit(node.right))

    def _binary(self, node: nodes.BinExpr) -> nodes.Node:
        return _operation(self.visit(node.left), "-", nodes.Const(node.operator), self.visit(node.right))

    visit_Sub = visit_Div = visit_FloorDiv = visit_Mod = visit_Pow = _binary

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) == 1 and _is_quick(node):
            return node
        if len(node.ops) == 1 and node.ops[0].op in ("in", "notin"):
            found = _operation(node.expr, "in", node.ops[0].expr)
            return found if node.ops[0].op == "in" else nodes.Not(found, lineno=node.lineno)
        rest = [part for operand in node.ops for part in (nodes.Const(operand.op), operand.expr)]
        return _operation(node.expr, "<", *rest)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _operation(pair.key, "{:")
        return node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        return _operation(self.visit(node.node), ".", nodes.Const(node.attr))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        owner, arg = self.visit(node.node), node.arg
        if not isinstance(arg, nodes.Slice):
            return _operation(owner, "[", self.visit(arg))
        bounds = (arg.start, arg.stop, arg.step)
        return _operation(owner, "[:", *(nodes.Const(None) if one is None else self.visit(one) for one in bounds))

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        args, kwargs = [self.visit(one) for one in node.args], [self.visit(one) for one in node.kwargs]
        if isinstance(node.node, nodes.Getattr):
            owner = self.visit(node.node.node)
            return _operation(owner, ".(", nodes.Const(node.node.attr), *args, kwargs=kwargs)
        return _operation(self.visit(node.node), "(", *args, kwargs=kwargs)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int) and not -_LARGEST <= node.value < _LARGEST:
            _refuse(node, "a whole number of 2**63 or more")
        return node


def _operation(first: nodes.Expr, name: str, *args: nodes.Expr, kwargs: Iterable[nodes.Keyword] = ()) -> nodes.Filter:
    return nodes.Filter(first, name, list(args), list(kwargs), None, None, lineno=getattr(first, "lineno", 1))


def _is_quick(node: nodes.Compare) -> bool:
    """Whether one side is a small constant or a truth value, so the comparison reads little of the other side."""
    operand = node.ops[0]
    if operand.op in ("in", "notin"):
        several = operand.expr
        return isinstance(several, (nodes.List, nodes.Tuple)) and all(map(_is_small, several.items))
    return _is_small(node.expr) or _is_small(operand.expr)


def _is_small(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.Const):
        return not isinstance(node.value, str) or len(node.value) <= _PLAIN
    return isinstance(node, (nodes.Not, nodes.Test)) or (isinstance(node, nodes.Compare) and _is_quick(node))


def _refuse(node: nodes.Node, what: str) -> NoReturn:
    raise DataError(f"line {node.lineno} has {what}, which a chat template may not use")
