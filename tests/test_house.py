"""The house stands as it was designed: who may import whom, and what importing it loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "transferkit"
# From left to right: a module may import only from floors to the right of its own.
FLOORS: list[set[str]] = [
    {"cli", "__main__"},
    {"finetune", "estimators"},
    {"features", "datasets"},
    {"transfer", "sampler", "heads", "scorer", "backbones"},
    {"checkpoints", "labeling"},
    # The ground floor: its rooms may know each other, from left to right.
    {"alexnet"},
    {"file_index"},
    {"layers", "boxes", "devices", "files", "optimization"},
    {"locks", "stopping"},
    {"annotated", "distributed", "preprocessing"},
    {"deprecation", "launching", "memory", "progress", "registry", "display"},
    {"errors"},
]
MOVED = {"protocols"}  # old places of names, which import nothing
OPTIONAL = (
    "tqdm",
    "matplotlib",
    "safetensors",
    "pandas",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxscript",
)


def floor(part: str) -> int:
    return next(i for i, parts in enumerate(FLOORS) if part in parts)


def imports(path: Path) -> set[str]:
    """Dotted names of the package's own modules that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            assert node.level == 0, f"{path}: relative import"
    return {name for name in found if name.split(".")[0] == PACKAGE}


def test_every_module_has_a_floor_and_imports_only_to_its_right(root: Path) -> None:
    wrong = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        part = path.relative_to(root / PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", *MOVED):
            continue
        for name in imports(path):
            other = name.split(".")[1] if "." in name else "__init__"
            if other == "__init__" and part == "cli":  # a user of the package like any other
                continue
            if other == "__init__" or (other != part and floor(other) <= floor(part)):
                wrong.append(f"{path.relative_to(root)} imports {name}")
    assert not wrong, "\n".join(wrong)


def documented(path: Path) -> dict[str, bool]:
    """Whether each top-level class, function and value of a file has a docstring, a value's standing below it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found: dict[str, bool] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = ast.get_docstring(node) is not None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            below = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            found |= {target.id: below for target in targets if isinstance(target, ast.Name)}
    return found


def exported(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def test_every_public_name_has_a_docstring_which_the_reference_shows(root: Path) -> None:
    files = {path: documented(path) for path in (root / PACKAGE).rglob("*.py")}
    said = {name for names in files.values() for name, has in names.items() if has}
    silent = [
        f"{path.relative_to(root)}: {name}" for path in files for name in exported(path) if name not in said
    ]
    assert not silent, "\n".join(silent)


def test_importing_the_package_loads_no_optional_package_nor_scikit_learn() -> None:
    # torch itself takes tqdm where it finds it, so what torch brings does not count.
    code = f"""
import sys, torch, numpy, PIL.Image
before = set(sys.modules)
import {PACKAGE}
print(*[name for name in {(*OPTIONAL, "sklearn")!r} if name in set(sys.modules) - before])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_the_front_page_fits_on_a_screen_and_every_name_on_it_exists() -> None:
    import transferkit

    assert len(transferkit.__all__) <= 30
    assert [name for name in transferkit.__all__ if not hasattr(transferkit, name)] == []


@pytest.mark.parametrize("extra", ["tqdm", "matplotlib", "safetensors", "onnx", "onnxruntime"])
def test_the_package_imports_without_its_extras(extra: str) -> None:
    code = f"import sys; sys.modules[{extra!r}] = None; import {PACKAGE}"
    subprocess.run([sys.executable, "-c", code], check=True)
