"""What the notation of `--call` is made of: names, and groups of them."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Listed:
    """`[a, b]`: a list."""

    branches: tuple["Tree", ...]


@dataclass(frozen=True)
class Keyed:
    """`{a, key: b}`: a dict; on the right also an object with these attributes."""

    entries: tuple[tuple[str, "Tree"], ...]


@dataclass(frozen=True)
class Fixed:
    """A fixed argument."""

    value: bool | int | float | None


@dataclass(frozen=True)
class Named:
    """`keyword=tree`: a keyword argument."""

    keyword: str
    tree: "Tree"


Tree = str | tuple["Tree", ...] | Listed | Keyed | Fixed | Named


@cache  # asked for each of the thousands of ways in which a module is tried
def leaves(tree: Tree) -> tuple[str, ...]:
    """The names of a tree, left to right."""
    if isinstance(tree, str):
        return (tree,)
    if isinstance(tree, Fixed):
        return ()
    return tuple(name for branch in branches(tree) for name in leaves(branch))


def branches(tree: Tree) -> tuple[Tree, ...]:
    """What a group, or a keyword argument, holds."""
    if isinstance(tree, Listed):
        return tree.branches
    if isinstance(tree, Keyed):
        return tuple(branch for _, branch in tree.entries)
    if isinstance(tree, Named):
        return (tree.tree,)
    return tree if isinstance(tree, tuple) else ()


def spell(tree: Tree) -> str:
    """A tree as the notation writes it."""
    if isinstance(tree, str):
        return tree
    inner = ", ".join(spell(branch) for branch in branches(tree))
    if isinstance(tree, Listed):
        return f"[{inner}]"
    if isinstance(tree, Keyed):
        return "{" + ", ".join(f"{k}: {spell(v)}" for k, v in tree.entries) + "}"
    if isinstance(tree, Named):
        return f"{tree.keyword}={inner}"
    if isinstance(tree, Fixed):
        return str(tree.value)
    return f"({inner}{',' if len(tree) == 1 else ''})"
