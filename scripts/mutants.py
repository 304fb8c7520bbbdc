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
TESTS = {
    "pipeline/capture/hooks.py": ["capture/test_capture.py", "extraction/test_execution.py"],
    "pipeline/capture/activations.py": ["capture/test_capture.py", "extraction/test_execution.py"],
    "pipeline/capture/resolver.py": ["capture/test_selection.py", "extraction/test_conformance.py"],
    "pipeline/capture/selector.py": ["capture/test_selection.py"],
    "pipeline/archive/format/manifest.py": [
        "archive/test_archive.py",
        "archive/test_faults_reading.py",
    ],
    "pipeline/archive/reading/archive.py": [
        "archive/test_readers.py",
        "archive/test_faults_reading.py",
        "archive/test_archive.py",
    ],
    "pipeline/archive/reading/stored_layer.py": [
        "archive/test_readers.py",
        "rendering/test_dataset_pictures.py",
    ],
    "pipeline/archive/format/shard_check.py": [
        "archive/test_faults_reading.py",
        "archive/test_faults_writing.py",
    ],
    "pipeline/archive/format/tree.py": ["archive/test_archive.py", "archive/test_other_readers.py"],
    "pipeline/archive/format/footer.py": [
        "archive/test_faults_reading.py",
        "archive/test_archive.py",
    ],
    "pipeline/archive/tools/pack.py": ["archive/test_readers.py", "archive/test_other_readers.py"],
    "pipeline/archive/tools/info.py": ["cli/test_commands.py", "datasets/test_images.py"],
    "pipeline/archive/writing/shard_writer.py": [
        "archive/test_archive.py",
        "archive/test_faults_writing.py",
    ],
    "pipeline/archive/writing/archive_writer.py": [
        "archive/test_archive.py",
        "archive/test_faults_writing.py",
    ],
    "pipeline/archive/writing/finalize.py": [
        "archive/test_archive.py",
        "archive/test_readers.py",
        "archive/test_faults_reading.py",
        "cli/test_sweeps.py",
    ],
    "pipeline/archive/format/schema.py": ["archive/test_archive.py", "archive/test_readers.py"],
    "pipeline/archive/tools/verify.py": [
        "archive/test_faults_reading.py",
        "archive/test_readers.py",
    ],
    "pipeline/archive/format/codec.py": ["archive/test_codecs.py"],
    "pipeline/archive/tools/compare.py": [
        "archive/test_readers.py",
        "archive/test_faults_reading.py",
    ],
    "pipeline/archive/writing/lock.py": [
        "archive/test_faults_writing.py",
        "archive/test_archive.py",
    ],
    "pipeline/archive/format/archive_file.py": ["archive/test_faults_reading.py"],
}
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
