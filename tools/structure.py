"""The structure of the package in figures, and its limits: `python tools/structure.py [-check] [ROOT]`.

Reads the syntax trees of `onmt_llm` (nothing is imported) and prints, for each package, its modules and what they
import; then cycles, imports against the direction of the layers, and whatever exceeds a limit. With `-check` the exit
code is 1 if a limit is exceeded. Imports under `TYPE_CHECKING` and inside functions count like any other.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "onmt_llm"
MODULES_IN_A_PACKAGE = 16
IMPORTS_OF_A_MODULE = 20
PARAMETERS = 8
LINES = 400
OF_ONE_KIND = {"data.readers", "data.transforms", "cli", "config", "checkpoint.formats.huggingface.families"}
"""Packages of many modules that are alike: a reader needs one of them at a time."""
PUBLIC = {"train", "convert", "release", "open_engine", "load_model"}
"""Functions of the public API, whose parameters are the user's options."""

Graph = dict[str, set[str]]


@dataclass
class Module:
    """What the syntax tree of one file says.

    Attributes:
        name: Dotted, without `onmt_llm.`; "" for the package itself.
        lines: Of the file.
        code: Lines that hold code: neither blank, nor comment, nor docstring.
        imports: Names that it imports from the package, dotted.
        functions: (name, lines, parameters, fully typed) of each function.
        types: Names of classes and type aliases at the top level.
    """

    name: str
    lines: int
    code: int
    imports: set[str] = field(default_factory=set)
    functions: list[tuple[str, int, int, bool]] = field(default_factory=list)
    types: list[str] = field(default_factory=list)


def read_module(path: Path, root: Path) -> Module:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    module = Module(name, len(text.splitlines()), code_lines(text, tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            module.imports |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            module.imports |= {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            module.functions.append(_function(node))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            module.types.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            if target[0].isupper() and not target.isupper():
                module.types.append(target)
    return module


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, int, int, bool]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    own = every[1:] if every and every[0].arg in ("self", "cls") else every
    typed = node.returns is not None and all(argument.annotation for argument in own)
    return node.name, (node.end_lineno or node.lineno) - node.lineno + 1, len(own), typed


def code_lines(text: str, tree: ast.Module) -> int:
    """Lines that are neither blank nor comment nor docstring (of a module, class, function or attribute)."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and line.strip()[0] != "#" and number not in skipped)


def import_graph(modules: Iterable[Module]) -> Graph:
    """Which module imports which: `from package import module` is resolved to the module."""
    names = {module.name for module in modules}
    graph: Graph = {}
    for module in modules:
        graph[module.name] = set()
        for dotted in module.imports:
            name = dotted.removeprefix(PACKAGE).lstrip(".")
            target = name if name in names else name.rpartition(".")[0]
            if target != module.name and target in names:
                graph[module.name].add(target)
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def package_graph(graph: Graph) -> Graph:
    """The same between packages; modules directly in `onmt_llm` stand for themselves."""
    packages = {_package(name, graph) for name in graph}
    between: Graph = {package: set() for package in packages}
    for name, targets in graph.items():
        own = _package(name, graph)
        between[own] |= {_package(target, graph) for target in targets} - {own}
    return between


def _package(name: str, graph: Graph) -> str:
    is_package = any(other.startswith(f"{name}.") for other in graph)
    return name if is_package or "." not in name else name.rpartition(".")[0]


def layers(root: Path) -> list[list[str]]:
    """The layers of the package, top first: the contract of import-linter in pyproject.toml."""
    settings = (root / "pyproject.toml").read_text("utf-8")
    (block,) = re.findall(rf'containers = \["{PACKAGE}"\]\nlayers = (\[\n.*?\n\])', settings, flags=re.DOTALL)
    return [[name.strip() for name in layer.split("|")] for layer in ast.literal_eval(block)]


def upward(graph: Graph, order: list[list[str]]) -> list[str]:
    """Imports from a lower layer into a higher one."""
    height = {name: -level for level, names in enumerate(order) for name in names}
    pairs = ((name, target) for name, targets in sorted(graph.items()) for target in sorted(targets))
    return [
        f"{name} -> {target}"
        for name, target in pairs
        if height.get(name.split(".")[0], 1) < height.get(target.split(".")[0], -len(order))
    ]


def excesses(modules: list[Module], graph: Graph, root: Path) -> Iterator[str]:
    """Sentences about what exceeds a limit."""
    for cycle in [
        *cycles(graph),
        *cycles({f"{name}/": {f"{t}/" for t in ts} for name, ts in _siblings(graph).items()}),
    ]:
        yield f"cycle: {' <-> '.join(cycle)}"
    for arrow in upward(graph, layers(root)):
        yield f"import against the layers: {arrow}"
    for package, members in _members(graph).items():
        if len(members) > MODULES_IN_A_PACKAGE and package not in OF_ONE_KIND:
            yield f"{package or PACKAGE}: {len(members)} modules, more than {MODULES_IN_A_PACKAGE}"
    named: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        if module.lines > LINES:
            yield f"{module.name}: {module.lines} lines, more than {LINES}"
        if len(graph[module.name]) > IMPORTS_OF_A_MODULE:
            yield f"{module.name}: imports {len(graph[module.name])} modules, more than {IMPORTS_OF_A_MODULE}"
        for name, _, parameters, _ in module.functions:
            if parameters > PARAMETERS and name not in PUBLIC:
                yield f"{module.name}.{name}: {parameters} parameters, more than {PARAMETERS}"
        for name in module.types:
            named[name].append(module.name)
    for name, places in sorted(named.items()):
        if len(places) > 1:
            yield f"{name} is defined in {len(places)} modules: {', '.join(places)}"


def _members(graph: Graph) -> dict[str, list[str]]:
    """Modules directly in each package, its subpackages not among them."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in graph:
        if name and not any(other.startswith(f"{name}.") for other in graph):
            members[name.rpartition(".")[0]].append(name)
    return members


def _siblings(graph: Graph) -> Graph:
    """Arrows between packages and modules of one parent: a cycle between packages need not be one of modules."""
    between: Graph = defaultdict(set)
    for name, targets in graph.items():
        for target in targets:
            own, other = name.split("."), target.split(".")
            shared = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
            if shared is not None:
                mine, theirs = ".".join(own[: shared + 1]), ".".join(other[: shared + 1])
                between[mine].add(theirs)
                between.setdefault(theirs, set())
    return between


def report(modules: list[Module], graph: Graph, root: Path) -> str:
    """Figures of the packages, and of the whole."""
    between = package_graph(graph)
    lines = ["| package | modules | lines | longest | packages imported |", "|---|--:|--:|--:|--:|"]
    for package in sorted(between):
        own = [module for module in modules if _package(module.name, graph) == package]
        if package and len(own) > 1:
            sizes = [module.lines for module in own]
            lines.append(f"| {package} | {len(own)} | {sum(sizes)} | {max(sizes)} | {len(between[package])} |")
    functions = [function for module in modules for function in module.functions]
    lengths = sorted(length for _, length, _, _ in functions)
    typed = sum(typed for _, _, _, typed in functions) / len(functions)
    code = sum(module.code for module in modules)
    tests = sum(code_lines(text, ast.parse(text)) for text in _texts(root / "tests"))
    lines += [
        "",
        f"modules {len(modules)}, packages {len(between)}, imports {sum(map(len, graph.values()))}, "
        f"imports between packages {sum(map(len, between.values()))}",
        f"code lines {code:,}, of tests {tests:,}: {tests / code:.2f}",
        f"functions {len(functions):,}: median {statistics.median(lengths):g} lines, 95th percentile "
        f"{lengths[int(0.95 * len(lengths))]}, longest {lengths[-1]}; typed {typed:.1%}",
    ]
    return "\n".join(lines)


def _texts(folder: Path) -> Iterator[str]:
    return (path.read_text("utf-8") for path in sorted(folder.rglob("*.py")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument(
        "-check", action="store_true", help="print only what exceeds a limit; exit code 1 if anything does"
    )
    arguments = parser.parse_args()
    source = arguments.root / PACKAGE
    modules = [read_module(path, source) for path in sorted(source.rglob("*.py"))]
    graph = import_graph(modules)
    if not arguments.check:
        print(report(modules, graph, arguments.root))
    found = list(excesses(modules, graph, arguments.root))
    print(*(found or ["No limit is exceeded."]), sep="\n")
    return int(arguments.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
