"""Mutation test: do the tests notice when the code says something else?

Changes one place of a module at a time (a comparison, an operator, a constant, a condition,
a return value), runs the module's tests in a copy of the repository, and counts the mutants that no
test noticed:

    uv run python scripts/mutants.py --sample 40 --seed 0

Prints survivors as `file:line: change`, and the share that was killed.
"""

import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import parser_of

REPOSITORY = Path(__file__).resolve().parent.parent
_TESTS = """
capture/hooks                      capture/capture extraction/execution
capture/activations                capture/capture extraction/execution
capture/resolver                   capture/selection extraction/conformance
capture/selector                   capture/selection
archive/format/manifest            archive/archive archive/faults_reading
archive/reading/archive            archive/readers archive/faults_reading archive/archive
archive/reading/stored_layer       archive/readers rendering/dataset_pictures
archive/format/shard_check         archive/faults_reading archive/faults_writing
archive/format/tree                archive/archive archive/other_readers
archive/format/footer              archive/faults_reading archive/archive
archive/tools/pack                 archive/readers archive/other_readers
archive/tools/info                 cli/commands datasets/images
archive/writing/shard_writer       archive/archive archive/faults_writing
archive/writing/archive_writer     archive/archive archive/faults_writing
archive/writing/finalize           archive/archive archive/readers archive/faults_reading cli/sweeps
archive/format/schema              archive/archive archive/readers
archive/tools/verify               archive/faults_reading archive/readers
archive/format/codec               archive/codecs
archive/tools/compare              archive/readers archive/faults_reading
archive/writing/lock               archive/faults_writing archive/archive
archive/format/archive_file        archive/faults_reading
"""
TESTS = {
    f"pipeline/{module}.py": [name.replace("/", "/test_") + ".py" for name in names]
    for module, *names in map(str.split, _TESTS.strip().splitlines())
}
"""Module → its tests."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.Add,
}  # fmt: skip


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Yield the line, the change and the changed tree of every possible mutant."""
    decorators = {
        id(inner)
        for node in ast.walk(tree)
        for decorator in getattr(node, "decorator_list", [])
        for inner in ast.walk(decorator)
    }  # frozen or not makes no value wrong
    for position, node in enumerate(ast.walk(tree)):
        if id(node) in decorators:
            continue
        for what, change in changes(node):
            other = copy.deepcopy(tree)
            twin = next(n for i, n in enumerate(ast.walk(other)) if i == position)
            change(twin)
            yield getattr(node, "lineno", 0), what, ast.fix_missing_locations(other)


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield what can be changed in a node, and a function that changes its twin."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        new = COMPARISONS[type(node.ops[0])]
        what = f"{type(node.ops[0]).__name__} → {new.__name__}"
        yield what, lambda twin: twin.ops.__setitem__(0, new())
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        new_op = OPERATORS[type(node.op)]
        if not isinstance(node.left, (ast.Constant, ast.JoinedStr)) or not isinstance(
            getattr(node.left, "value", None), str
        ):
            what = f"{type(node.op).__name__} → {new_op.__name__}"
            yield what, lambda twin: setattr(twin, "op", new_op())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        value = (not node.value) if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} → {value}", lambda twin: setattr(twin, "value", value)
    elif isinstance(node, (ast.If, ast.IfExp)):
        negated = lambda twin: setattr(twin, "test", ast.UnaryOp(ast.Not(), twin.test))  # noqa: E731
        yield "condition negated", negated
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} swapped", lambda twin: setattr(twin, "op", other())
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "returns None", lambda twin: setattr(twin, "value", ast.Constant(None))


def main() -> None:
    """Make mutants, run the tests on each, print the survivors."""
    parser = parser_of(__doc__, "two mutants, to see that it runs")
    parser.add_argument("--sample", type=int, default=60, help="how many, drawn by chance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=list(TESTS), choices=list(TESTS))
    options = parser.parse_args()
    every = [
        (path, line, what, tree)
        for path in (["pipeline/archive/format/codec.py"] if options.quick else options.modules)
        for line, what, tree in mutants(ast.parse((REPOSITORY / path).read_text("utf-8")))
    ]
    chosen = random.Random(options.seed).sample(
        every, min(len(every), 2 if options.quick else options.sample)
    )
    survivors = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        copy_of = Path(scratch) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv", ".cache", "outputs", "build", "dist")
        shutil.copytree(REPOSITORY, copy_of, ignore=ignored)
        for number, (path, line, what, tree) in enumerate(chosen, 1):
            alive = survives(copy_of, path, tree)
            if alive:
                survivors.append(f"{path}:{line}: {what}")
            state = "survived" if alive else "killed"
            print(f"{number}/{len(chosen)} {state} {path}:{line}: {what}", file=sys.stderr)
    killed = 1 - len(survivors) / len(chosen)
    if options.json:
        print(json.dumps({"mutants": len(chosen), "of": len(every), "survivors": survivors}))
        return
    print("\n".join(survivors))
    print(f"{killed:.0%} of {len(chosen)} mutants killed (of {len(every)} possible)")


def survives(copy_of: Path, path: str, tree: ast.Module) -> bool:
    """Tell whether the module's tests pass with the changed module."""
    source = copy_of / path
    before = source.read_text("utf-8")
    source.write_text(ast.unparse(tree), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header",
               "-W", "ignore", *(f"tests/{name}" for name in TESTS[path]), path]  # fmt: skip
    environment = dict(os.environ) | {"PYTHONPATH": str(copy_of)}
    try:
        done = subprocess.run(
            command, cwd=copy_of, env=environment, capture_output=True, check=False, timeout=300
        )
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False  # it hangs: noticed
    finally:
        source.write_text(before, "utf-8")


if __name__ == "__main__":
    main()
