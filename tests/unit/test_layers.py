"""The layering of the package: who may import whom, and where Ray may not be imported.

Imports are found by parsing, inside functions and under TYPE_CHECKING as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rlprune"

_CONFIG = {"config_rules", "config_reading", "config_methods", "config"}
_BASE = {"errors", "amounts", *_CONFIG, "presets", "files", "replicas", "source"}
_TORCH = {*_BASE, "data", "backbones", "pruning", "mdp"}
# part: the parts that it may import besides itself
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "replicas": {"errors"},
    "amounts": set(),
    "source": set(),
    "config_rules": {"amounts", "errors"},
    "config_reading": {"errors"},
    "config_methods": {"config_reading"},
    "config": {"amounts", "config_rules", "config_reading", "config_methods", "errors"},
    "settings_reference": {"config"},
    "presets": {"errors"},
    "data": _BASE,
    "backbones": _BASE,
    "pruning": {*_BASE, "backbones"},  # the graph records that tracing found
    "mdp": {*_BASE, "backbones", "pruning"},
    "deploy": {"errors"},  # runs with torch alone
    "results": _BASE,
    "capture": {*_BASE, "backbones", "pruning", "deploy"},
    "agents": {*_TORCH, "deploy", "results"},
    "report": {*_BASE, "results"},
    "training": {
        *_TORCH,
        "deploy",
        "results",
        "agents",
        "report",
        "capture",
    },  # the picture of a training
    "export": {*_TORCH, "deploy", "results", "agents", "training", "capture", ""},
    "sweep": {*_TORCH, "deploy", "results", "agents", "training"},
    "jobs": {*_TORCH, "training", "sweep", ""},  # sweeps on a cluster
    "cli": {
        *_TORCH,
        "deploy",
        "results",
        "agents",
        "training",
        "export",
        "report",
        "sweep",
        "jobs",
        "settings_reference",
        "",
    },
    "": {*_TORCH, "deploy", "results", "agents"},  # rlprune/__init__.py
}
MAY_USE_RAY = {"agents", "training", "sweep", "jobs", "cli"}
NEVER_RAY = {"rlprune.agents", "rlprune.agents.networks"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Absolute names of all that a module's text imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            yield base
            # "from rlprune import training" imports rlprune.training
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            target = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(target, ast.Constant):
                yield str(target.value)


def part_of(module: str) -> str:
    """The part of rlprune.part.module; "" for rlprune itself."""
    return f"{module}.".split(".")[1]


def imports_of(path: Path) -> set[str]:
    return set(imported_modules(path.read_text(), module_name(path), path.stem == "__init__"))


def breaks_layers(module: str, imports: set[str]) -> list[str]:
    part = part_of(module)
    allowed = MAY_IMPORT[part] | {part}
    own = {name for name in imports if name == "rlprune" or name.startswith("rlprune.")}
    # "from rlprune.x import y" gives rlprune.x and rlprune.x.y; "from rlprune import x" gives
    # rlprune and rlprune.x: the bare package says nothing if a part below it is named too
    parts = {part_of(name): name for name in own if name != "rlprune"}
    parts = {key: name for key, name in parts.items() if key in MAY_IMPORT}
    if "rlprune" in own and not parts:
        parts[""] = "rlprune"
    return sorted(name for key, name in parts.items() if key not in allowed)


def uses_ray(imports: set[str]) -> bool:
    return any(name == "ray" or name.startswith("ray.") for name in imports)


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer() -> None:
    assert MODULES
    parts = {part_of(module_name(path)) for path in MODULES}
    assert parts <= set(MAY_IMPORT), "give new parts a line in MAY_IMPORT"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_only_what_stands_below(path: Path) -> None:
    assert breaks_layers(module_name(path), imports_of(path)) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_ray_only_at_the_edge(path: Path) -> None:
    name = module_name(path)
    if part_of(name) not in MAY_USE_RAY or name in NEVER_RAY:
        assert not uses_ray(imports_of(path)), f"{name} imports ray"


def test_layers_have_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        ready = {part for part, below in MAY_IMPORT.items() if part not in done and below <= done}
        assert ready, f"cycle among {sorted(set(MAY_IMPORT) - done)}"
        done |= ready


@pytest.mark.parametrize(
    "source",
    [
        "import ray.tune as tune",
        "from ray import tune",
        "def f():\n    import ray",
        "if TYPE_CHECKING:\n    from ray.rllib.core import Columns",
        "import importlib\nx = importlib.import_module('ray.tune')",
        "x = __import__('ray')",
    ],
)
def test_ray_is_seen_wherever_it_hides(source: str) -> None:
    assert uses_ray(set(imported_modules(source, "rlprune.mdp.walk", False)))


def test_names_that_only_look_like_ray_are_fine() -> None:
    assert not uses_ray(set(imported_modules("import array, rayon\nx = 'ray'", "rlprune", True)))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from rlprune.training.learner import X", ["rlprune.training.learner.X"]),
        ("from rlprune import training", ["rlprune.training"]),
        ("from ..training import X", ["rlprune.training.X"]),
        ("import rlprune.cli.main", ["rlprune.cli.main"]),
        ("from rlprune.pruning import X\nfrom .walk import Y\nfrom rlprune import errors", []),
        ("import rlprune", ["rlprune"]),
        ("from rlprune import __version__", ["rlprune"]),
    ],
)
def test_upward_imports_are_seen(source: str, found: list[str]) -> None:
    imports = set(imported_modules(source, "rlprune.mdp.rollout", False))
    broken = breaks_layers("rlprune.mdp.rollout", imports)
    assert [part_of(name) for name in broken] == [part_of(name) for name in found]


def test_core_imports_without_ray() -> None:
    code = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Refuse())
import rlprune, rlprune.pruning, rlprune.mdp, rlprune.backbones, rlprune.data
import rlprune.results, rlprune.report.figures, rlprune.agents.networks
assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
