"""Who may import whom, what an import costs, and how long files and functions may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"surgeon": ROOT, "surgeon_adapters": ROOT / "adapters", "surgeon_cli": ROOT / "cli"}
FOREIGN = {
    "surgeon": {"surgeon_adapters", "surgeon_cli"},
    "surgeon_adapters": {"surgeon_cli"},
    "surgeon_cli": {"surgeon_adapters"},
}
ROOMS = (
    "errors",
    "support",
    "algebra",
    "plan",
    "recording",
    "registry",
    "finding",
    "editing",
    "optim",
    "files",
    "opening",
    "export",
    "proof",
    "training",
    "report",
    "integrations",
    "hub",
    "testing",
)
"""From the ground up: a room imports from itself and from those before it."""
ROW = {room: number for number, room in enumerate(ROOMS, start=1)}
HEAVY = (
    "accelerate",
    "e3nn",
    "huggingface_hub",
    "joblib",
    "matplotlib",
    "msgspec",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "rich",
    "ray",
    "safetensors",
    "scipy",
    "typer",
)
COME_WITH = {"numpy": "scipy", "markupsafe": "jinja2", "onnx_ir": "onnxscript", "yaml": "nequip", "mace": "mace_torch"}
"""What is imported comes with something else that is named in pyproject.toml, or as part of it."""
FILE_LINES, FUNCTION_LINES = 500, 60


def sources(package: str) -> dict[str, str]:
    """Source text of a package's modules by dotted name."""
    folder = PACKAGES[package]
    paths = sorted((folder / package).rglob("*.py"))
    return {".".join(path.relative_to(folder).with_suffix("").parts): path.read_text("utf-8") for path in paths}


def imported(node: ast.AST, module: str) -> list[str]:
    """Dotted names that one statement or call of ``module`` imports; an empty list for anything else."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=name, names=names, level=level):
            # A package is spelled "package.__init__" here, so that the first dot always leads to its folder.
            parts = module.split(".")[:-level] if level else []
            base = ".".join([*parts, *([name] if name else [])])
            return [f"{base}.{alias.name}" for alias in names]
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            first = node.args[0] if node.args else None
            return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all imports, those inside functions and under ``TYPE_CHECKING`` included."""
    for node in ast.walk(ast.parse(source)):
        for name in imported(node, module):
            yield getattr(node, "lineno", 0), name


def engine_part(name: str) -> str:
    """The top-level engine module of a dotted name: ``surgeon.recording.record`` is in ``graph``."""
    return [*name.split("."), "__init__"][1]


def violations(source: str, module: str) -> list[str]:
    """One sentence for each import that the layout forbids."""
    package, part = module.split(".")[0], engine_part(module)
    if package == "surgeon" and part != "__init__" and part not in ROW:
        return [f"{module} is in no room of tests/test_import_order.py: put it into the room where it belongs"]
    found = []
    for line, name in imports(source, module):
        root, target = name.split(".")[0], engine_part(name)
        if root in FOREIGN[package]:
            found.append(f"{module}:{line} imports {name}, but {package} must not know {root}")
        if package != "surgeon" or part == "__init__" or root != "surgeon":
            continue
        if target not in ROW:
            found.append(f"{module}:{line} imports {name}: name the module in which it lives, not the package")
        elif ROW[target] > ROW[part]:
            found.append(f"{module}:{line} (in {part}) imports {name}, and {target} is above {part}")
    return found


def import_graph(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Module to the modules of the same package that it imports, however late."""
    graph: dict[str, set[str]] = {}
    for module, source in files.items():
        names = [name.split(".") for _, name in imports(source, module)]
        prefixes = [".".join(name[:end]) for name in names for end in range(1, len(name) + 1)]
        graph[module] = {name for name in prefixes if name in files} - {module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return one circle of imports for every module that is in one, the same circle once."""
    found = {}
    for start in graph:
        ways, pending = {start: [start]}, [start]
        while pending:
            here = pending.pop(0)
            for there in sorted(graph[here]):
                if there == start:
                    found.setdefault(frozenset(ways[here]), ways[here])
                elif there not in ways:
                    ways[there] = [*ways[here], there]
                    pending.append(there)
    return list(found.values())


def folders(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between folders; the errors, the plan and the registry, which lie in no room, are left out."""
    result: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if module.count(".") > 1:
            own = module.rpartition(".")[0]
            others = {target.rpartition(".")[0] for target in targets if target.count(".") > 1}
            result.setdefault(own, set()).update(others - {own})
    return result


def imports_at_once(source: str, module: str) -> set[str]:
    """Roots of what is imported together with ``module``: outside functions and ``if TYPE_CHECKING``."""
    roots: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        roots.update(name.split(".")[0] for name in imported(node, module))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return roots


def too_long(source: str, module: str) -> list[str]:
    """One sentence for a file, and for each of its functions, that is too long."""
    lines = len(source.splitlines())
    found = [f"{module} has {lines} lines, at most {FILE_LINES} are allowed"] if lines > FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{module}.{node.name} has {length} lines, at most {FUNCTION_LINES} are allowed")
    return found


def in_fresh_interpreter(code: str) -> str:
    environment_path = [str(folder) for folder in PACKAGES.values()]
    code = f"import sys; sys.path[:0] = {environment_path!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_who_imports_whom(package: str) -> None:
    found = [sentence for module, source in sources(package).items() for sentence in violations(source, module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("surgeon.errors", "import surgeon_adapters", "surgeon must not know surgeon_adapters"),
        ("surgeon.registry", "def f():\n    from surgeon_adapters.zoo import segnn", "must not know"),
        ("surgeon.__init__", "import importlib\nimportlib.import_module('surgeon_cli.main')", "know surgeon_cli"),
        ("surgeon.finding.find", "from surgeon.training import fit", "in finding.*training is above finding"),
        ("surgeon.errors", "if TYPE_CHECKING:\n    from surgeon import algebra", "surgeon.errors:2 .*algebra is above"),
        ("surgeon.recording.record", "from ..editing import strip", "in recording.*surgeon.editing.strip"),
        ("surgeon.recording.__init__", "from ..editing import strip", "surgeon.recording.__init__:1"),
        ("surgeon.algebra.groups.core", "from surgeon import find", "name the module in which it lives"),
        ("surgeon.novelty", "", "novelty is in no room"),
        ("surgeon_cli.main", "from surgeon_adapters import mace", "surgeon_cli must not know"),
        ("surgeon_adapters.mace.adapter", "import surgeon_cli.main", "surgeon_adapters must not know"),
    ],
)
def test_the_checker_sees_a_forbidden_import(module: str, source: str, words: str) -> None:
    (sentence,) = violations(source, module)
    assert re.search(words, sentence), sentence


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("surgeon.recording.record", "from . import compare\nfrom .compare import compare_graphs"),
        ("surgeon.finding.find", "from surgeon.recording import record\nimport torch"),
        ("surgeon.__init__", "from surgeon.testing import assert_equivariant"),
        ("surgeon_cli.main", "from surgeon import find"),
    ],
)
def test_the_checker_accepts_what_is_allowed(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_no_room_is_named_twice_or_in_vain() -> None:
    assert len(ROW) == len(ROOMS)
    assert {engine_part(module) for module in sources("surgeon")} == {*ROOMS, "__init__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_and_no_folder_imports_itself_in_a_circle(package: str) -> None:
    graph = import_graph(sources(package))
    graph.pop("surgeon.__init__", None)  # the public names, which are imported on first use
    assert circles(graph) == []
    assert circles(folders(graph)) == []


def test_the_checker_sees_circles() -> None:
    files = {
        "surgeon.a.x": "from surgeon.b import y",
        "surgeon.b.y": "def f():\n    import surgeon.c.z",
        "surgeon.c.z": "if TYPE_CHECKING:\n    from surgeon.a.x import g",
    }
    assert circles(import_graph(files)) == [["surgeon.a.x", "surgeon.b.y", "surgeon.c.z"]]
    files["surgeon.c.z"] = "from surgeon.a.v import g"
    graph = import_graph({**files, "surgeon.a.v": ""})
    assert circles(graph) == []
    assert circles(folders(graph)) == [["surgeon.a", "surgeon.b", "surgeon.c"]]


def test_the_engine_imports_only_torch_at_once() -> None:
    allowed = sys.stdlib_module_names | {"torch", "surgeon"}
    found = {module: imports_at_once(source, module) - allowed for module, source in sources("surgeon").items()}
    assert {module: roots for module, roots in found.items() if roots} == {}


def test_the_checker_sees_an_import_at_once() -> None:
    source = "import e3nn\nif TYPE_CHECKING:\n    import rich\ndef f():\n    import scipy\nclass C:\n    import onnx"
    assert imports_at_once(source, "surgeon.errors") == {"e3nn", "onnx"}


def test_importing_the_engine_loads_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    code = """
import time
start = time.perf_counter(); import torch
middle = time.perf_counter(); import surgeon
print(f"{time.perf_counter() - middle:.2f} s beyond torch's {middle - start:.2f} s", end=", ")
[getattr(surgeon, name) for name in surgeon.__all__]
print(f"with all public names {time.perf_counter() - middle:.2f} s")
print(*{name.split(".")[0] for name in sys.modules})
"""
    seconds, loaded = in_fresh_interpreter(code).splitlines()
    with capsys.disabled():
        print(f"\nimport surgeon: {seconds}")
    assert "surgeon" in loaded.split()
    assert set(HEAVY) & set(loaded.split()) == set()


COMMANDS = """
import io, os, sys
from contextlib import redirect_stdout, suppress
from surgeon_cli.main import app, main
names = [command.callback.__name__ for command in app.registered_commands]
for given in (["--version"], ["--help"], *([name, "--help"] for name in names)):
    with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
        main(given)
    assert len(shown.getvalue()) > 10, given
os.environ |= {"_SURGEON_COMPLETE": "complete_bash", "COMP_WORDS": "surgeon finetune --epo", "COMP_CWORD": "2"}
with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
    main([])
assert shown.getvalue().strip() == "--epochs"
print(len(names), *sys.modules)
"""


def test_the_face_of_the_command_line_loads_no_torch() -> None:
    number, *loaded = in_fresh_interpreter(COMMANDS).split()
    assert int(number) > 10
    assert "surgeon_cli.training_options" in loaded
    assert {"torch", "numpy", "scipy"}.isdisjoint(loaded)


def roots(package: str) -> set[str]:
    """What a package imports of others, however late."""
    names = {name.split(".")[0] for module, source in sources(package).items() for _, name in imports(source, module)}
    return names - {*sys.stdlib_module_names, *PACKAGES, ""}


def test_what_is_installed_by_default_is_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        extra: {re.split(r"[^\w-]", need)[0].replace("-", "_") for need in needs}
        for extra, needs in {"": project["dependencies"], **project["optional-dependencies"]}.items()
    }
    found = {COME_WITH.get(root, root) for package in PACKAGES for root in roots(package)}
    assert named[""] - found == set()
    assert found - set.union(*(needs for extra, needs in named.items() if extra != "dev")) == set()


def test_the_loaded_modules_are_seen() -> None:
    loaded = in_fresh_interpreter("import scipy; print(*sys.modules)").split()
    assert "scipy" in set(HEAVY) & set(loaded)


def test_files_and_functions_are_short() -> None:
    folders = ("surgeon", "adapters", "cli", "tests", "examples", "benchmarks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [line for path in paths for line in too_long(path.read_text("utf-8"), str(path.relative_to(ROOT)))]
    assert len(paths) > 10
    own = [path for path in paths if path.relative_to(ROOT).parts[0] in folders[:3]]
    long = [f"{path} has more than 400 lines" for path in own if path.read_text("utf-8").count("\n") > 400]
    assert not [*found, *long], "\n".join([*found, *long])


def test_the_checker_sees_what_is_too_long() -> None:
    body = "    x = 1\n"
    assert too_long("def f():\n" + body * 59, "m") == []
    assert too_long("class C:\n  async def f():\n" + body * 60, "m") == ["m.f has 61 lines, at most 60 are allowed"]
    assert too_long("x = 1\n" * 500, "m") == []
    assert too_long("x = 1\n" * 501, "m") == ["m has 501 lines, at most 500 are allowed"]
