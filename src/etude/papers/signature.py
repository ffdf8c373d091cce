"""The signature of a method, read from its source text so that nothing heavy is imported."""

from __future__ import annotations

import ast

from etude.core import Card, EtudeError
from etude.core.index import PACKAGE, public_names

__all__ = ["signature"]


def _call(name: str, function: ast.FunctionDef, *, bound: bool) -> str:
    arguments = function.args
    if bound:  # `self` is not the caller's business
        first = arguments.posonlyargs or arguments.args
        del first[0]
    back = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    back = "" if function.name == "__init__" else back
    return f"{name}({ast.unparse(arguments)}){back}"


def _is_static(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(mark) == "staticmethod" for mark in function.decorator_list)


def signature(card: Card) -> list[str]:
    """How to call the method: the constructor or function, then its public methods.

    Raises:
        EtudeError: the module does not define what its ``__all__`` names first.
    """
    name = public_names(card)[0]
    path = PACKAGE / card.family / f"{card.slug}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [_call(name, node, bound=False)]
        if isinstance(node, ast.ClassDef) and node.name == name:
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            build = [m for m in methods if m.name == "__init__"]
            first = _call(name, build[0], bound=True) if build else f"{name}()"
            public = [m for m in methods if not m.name.startswith("_")]
            return [first, *(f".{_call(m.name, m, bound=not _is_static(m))}" for m in public)]
    raise EtudeError(f"{card.key}: {name} of __all__ is not defined in {path.name}")
