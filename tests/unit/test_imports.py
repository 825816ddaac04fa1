"""Who may import whom, and what must not be imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = ("pipeline", "stages", "exporters", "models", "benchmarks", "tests", "run")
HEAVY = ("torch", "torchvision", "onnxruntime", "onnx", "openvino", "av", "cv2")

# importer -> ours that it may import, besides itself
ALLOWED = {
    "pipeline": (),
    "stages": ("pipeline",),
    "exporters": (
        "models",
        "stages.backends",
        "stages.decoders",
        # The certificate compares what a run would give, so it uses the run's own parts.
        "stages.fitting",
        "stages.infer",
        "stages.model",
        "stages.model_files",
        "stages.nms",
        "stages.sources",
        "pipeline",
    ),
    "models": (),
    "models.train": ("models", "exporters", "stages", "pipeline"),
    "run": ("pipeline", "stages", "exporters"),
}
# Modules of stages/ that are no stage but serve to assemble or describe them.
ASSEMBLY = {"stages.catalog", "stages.plan", "stages.build", "stages.addresses", "stages.listing"}
STAGES = {
    "stages.preprocess",
    "stages.infer",
    "stages.nms",
    "stages.overlay",
    "stages.track",
    "stages.depth",
    "stages.refocus",
    "stages.caption",
}


def modules() -> Iterator[tuple[str, Path]]:
    yield "run", ROOT / "run.py"
    for top in ("pipeline", "stages", "exporters", "models"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(tree: ast.AST, *, at_module_level: bool) -> Iterator[str]:
    """Names of imported modules; `if TYPE_CHECKING:` blocks do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from stages import infer` imports the module stages.infer.
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pass  # never runs
        elif at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pass  # runs when it is called
        else:
            yield from imports(node, at_module_level=at_module_level)


def belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def rule_of(module: str) -> str:
    return "models.train" if belongs(module, "models.train") else module.partition(".")[0]


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules()])
def test_imports_point_the_right_way(module, path):
    rule = rule_of(module)
    allowed = (*ALLOWED[rule], rule)
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), at_module_level=False):
        if name.partition(".")[0] not in OURS:
            continue
        assert any(belongs(name, package) for package in allowed), f"{module} imports {name}"
        if module in STAGES:
            other = next((s for s in STAGES - {module} if belongs(name, s)), None)
            assert other is None, f"the stage {module} imports the stage {other}"
        if module.startswith("stages") and module not in ASSEMBLY:
            back = next((a for a in ASSEMBLY if belongs(name, a)), None)
            assert back is None, f"{module} imports {back}, which is made of it"


def config_modules() -> Iterator[tuple[str, Path]]:
    for module, path in modules():
        text = path.read_text(encoding="utf-8")
        if module.startswith("pipeline") or module == "run" or "Config(Config)" in text:
            yield module, path


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(m, p, id=m) for m, p in config_modules()]
)
def test_modules_with_a_config_class_import_nothing_heavy(module, path):
    for name in imports(ast.parse(path.read_text(encoding="utf-8")), at_module_level=True):
        assert name.partition(".")[0] not in HEAVY, f"{module} imports {name} at module level"


def test_no_module_has_a_name_that_says_nothing():
    for module, _ in modules():
        assert module.rpartition(".")[2] not in ("utils", "helpers", "common", "core"), module


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["check", str(ROOT / "configs" / "synthetic.yaml")],
        ["list"],
        ["list", "stages"],
        ["list", "models"],
        ["export", "--help"],
        ["models", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(str(ROOT), ""),
)
def test_nothing_heavy_is_loaded_to_answer_a_question(arguments):
    code = (
        "import sys, run\n"
        "try:\n"
        f"    code = run.main({arguments!r})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "if code:\n"
        "    sys.exit(code)\n"
        f"loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr


def test_help_needs_the_standard_library_only():
    code = (
        "import sys, run\n"
        "try:\n"
        "    run.main(['run', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "loaded = sorted({'numpy', 'pydantic', 'rich', 'yaml'} & set(sys.modules))\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "--max-frames" in done.stdout
