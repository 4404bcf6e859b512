"""Copies of a module's source that differ in one place, as a slip of the hand might change it."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

# What each operator is taken for: the neighbour at the boundary first.
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """The whole source with one place changed, and that place."""

    source: str
    line: int
    before: str
    after: str


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    found = [
        _mutant(source, place, changed)
        for node, first in _places(ast.parse(source), None)
        for place, changed in _slips(node, first)
    ]
    return sorted(found, key=lambda mutant: mutant.line)


def _places(node: ast.AST, first: str | None) -> Iterator[tuple[ast.AST, str | None]]:
    """Nodes that compute something, each with the first parameter of the function around it.

    Annotations, decorators, texts and the messages of errors are left out: no test is asked to see a change of those.
    """
    if isinstance(node, ast.FunctionDef):
        names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
        first = names[0] if names else None
        children = [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]
    elif isinstance(node, ast.AnnAssign):
        children = [node.value] if node.value else []
    elif isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        children = []
    else:
        children = list(ast.iter_child_nodes(node))
        yield node, first
    for child in children:
        yield from _places(child, first)


def _slips(node: ast.AST, first: str | None) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Parts of a node, and what each is taken for."""
    match node:
        case ast.expr():
            yield from ((node, changed) for changed in _expressions(node))
        case ast.If():
            yield from ((node.test, ast.Constant(value)) for value in (True, False))
        case ast.While():
            # A loop without an end is stopped by the clock alone.
            yield node.test, ast.Constant(False)
        case ast.comprehension():
            yield from ((condition, ast.Constant(True)) for condition in node.ifs)
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            yield node, _with(node, op=OPERATORS[type(operator)]())
        case ast.Return(value=ast.Name(id=name)) if name == first:
            pass
        case ast.Return(value=ast.expr()) if first:
            yield node, ast.Return(ast.Name(first))


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    yield _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
        case ast.BinOp(op=operator) if type(operator) in OPERATORS:
            yield _with(node, op=OPERATORS[type(operator)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for place in range(len(node.values)):
                rest = [*node.values[:place], *node.values[place + 1 :]]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            yield _with(node, func=ast.Name(FUNCTIONS[name]))


def _with(node: ast.AST, **changes: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _mutant(source: str, place: ast.AST, changed: ast.AST) -> Mutant:
    octets = source.encode()
    lines = octets.splitlines(keepends=True)
    # Columns count bytes.
    start = sum(map(len, lines[: place.lineno - 1])) + place.col_offset
    stop = sum(map(len, lines[: place.end_lineno - 1])) + place.end_col_offset
    text = ast.unparse(changed)
    new = f"({text})" if isinstance(changed, ast.expr) else text
    source = (octets[:start] + new.encode() + octets[stop:]).decode()
    return Mutant(source, place.lineno, octets[start:stop].decode(), text)
