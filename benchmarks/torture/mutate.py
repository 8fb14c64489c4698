"""Small faults in a Python source: a comparison, a sign, a number, a condition, a returned value, a call left out."""

import ast
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
             ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
_COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
             ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult}  # fmt: skip
_UNTOUCHED = {"annotation", "returns", "decorator_list", "type_params"}  # nothing happens there at run time


class Mutant(NamedTuple):
    line: int
    told: str
    source: str


class _Place(NamedTuple):
    line: int
    told: str
    change: Callable[[], None]


def mutants(source: str) -> list[Callable[[], Mutant]]:
    """One function for each fault that can be put in; it returns the source with that fault alone."""

    def made(number: int) -> Mutant:
        tree = ast.parse(source)
        place = list(_places(tree))[number]
        place.change()
        return Mutant(place.line, place.told, ast.unparse(ast.fix_missing_locations(tree)) + "\n")

    return [lambda number=number: made(number) for number in range(len(list(_places(ast.parse(source)))))]


def _places(tree: ast.AST) -> Iterator[_Place]:
    for name, value in ast.iter_fields(tree):
        if name in _UNTOUCHED or isinstance(tree, ast.JoinedStr | ast.ImportFrom | ast.Import):
            continue
        children = value if isinstance(value, list) else [value]
        for at, child in enumerate(children):
            if isinstance(child, ast.AST) and not _is_raised(child):
                put = _putter(tree, name, value, at)
                yield from _of(child, put)
                yield from _places(child)


def _is_raised(node: ast.AST) -> bool:
    """What is said when something is refused is not what is computed."""
    return isinstance(node, ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring
    )


def _putter(parent: ast.AST, name: str, value: Any, at: int) -> Callable[[ast.AST], None]:
    def put(new: ast.AST) -> None:
        if isinstance(value, list):
            value[at] = new
        else:
            setattr(parent, name, new)

    return put


def _of(node: ast.AST, put: Callable[[ast.AST], None]) -> Iterator[_Place]:
    line = getattr(node, "lineno", 0)

    def place(told: str, change: Callable[[], None]) -> _Place:
        return _Place(line, f"{told}: {ast.unparse(node).splitlines()[0][:90]}", change)

    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        new = _COMPARED[type(node.ops[0])]()
        yield place(f"comparison is {type(new).__name__}", lambda: node.ops.__setitem__(0, new))
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _COMPUTED:
        sign = _COMPUTED[type(node.op)]()
        yield place(f"operation is {type(sign).__name__}", lambda: setattr(node, "op", sign))
    elif isinstance(node, ast.BoolOp):
        joined = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield place(f"joined by {type(joined).__name__}", lambda: setattr(node, "op", joined))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield place(f"without {type(node.op).__name__}", lambda: put(node.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield place("the other truth", lambda: put(ast.Constant(not node.value)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        more = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 or 1.0
        yield place("another number", lambda: put(ast.Constant(more)))
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield place("returns None", lambda: setattr(node, "value", ast.Constant(None)))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield place("left out", lambda: put(ast.Pass()))
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield place("condition turned", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test)))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
