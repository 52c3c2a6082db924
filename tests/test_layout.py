"""The shape of the tree: names that hide nothing, imports that go one way, a whole wheel."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data", "train", "merge", "launch")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
# What each package may import of ours, beside itself.
MAY_IMPORT = {
    "configs": set(),
    "data": {"configs"},
    "train": {"configs", "data"},
    "merge": {"configs", "data", "train"},
    "launch": {"configs", "data", "train", "merge"},
}
# The rooms of a package, lowest first: each may import itself and those before it.
ROOMS = {
    "train": (
        "model",
        "measuring",
        "saving",
        "planning",
        "tracking",
        "watching",
        "judging",
        "reporting",
    ),
    "merge": ("reading", "matching", "recipe", "writing", "proof", "sweeping"),
}
# Modules beside the rooms that the rooms may import.
GROUND = {"train": {"engines", "ranks", "precision", "schedule", "process"}, "merge": set()}
# What a room may import beside: the sweep writes what it has chosen.
ALSO = {"sweeping": {"api"}}
# What an entry point may import.
ENTRY_IMPORTS = {"configs.command", "configs.flags", "sys", "pathlib"}
# Only ever run with -m, as the design asks; a script of that name would hide the stdlib's.
ONLY_RUN_WITH_M = {"data/inspect.py"}
IMPORT_NAMES = {"hydra-core": "hydra", "pillow": "PIL", "unicode-rbnf": "unicode_rbnf"}


def dependencies() -> set[str]:
    """The import names of what the project needs at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]}
    return {IMPORT_NAMES.get(name, name) for name in names}


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it or only when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_module_hides_a_dependency_or_the_standard_library() -> None:
    taken = dependencies() | set(sys.stdlib_module_names)
    assert {"torch", "datasets", "hydra", "PIL", "inspect"} <= taken
    hiding = {short(path) for path in MODULES if path.stem in taken}
    assert hiding == ONLY_RUN_WITH_M
    assert not taken & set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{short(path)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_one_way(package: str) -> None:
    rooms = ROOMS[package]
    wrong = [
        f"{short(path)} imports {name}"
        for room in rooms
        for path in (ROOT / package / room).glob("*.py")
        for name in imports(path)
        if name.startswith(f"{package}.")
        and name.split(".")[1]
        not in {*rooms[: rooms.index(room) + 1], *GROUND[package], *ALSO.get(room, ())}
    ]
    assert wrong == []
    assert {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} == set(rooms)


def test_every_entry_point_imports_nothing_heavy() -> None:
    """`--help` and a config error answer before torch; so do the modules they come from."""
    entry_points = [p for p in MODULES if "run_command(" in p.read_text() and p.stem != "command"]
    assert len(entry_points) == 9
    for path in entry_points:
        assert set(imports(path)) <= {"configs.command", "configs.flags", "sys", "pathlib"}, short(
            path
        )
    light = {"hydra", "omegaconf", "yaml"} | set(sys.stdlib_module_names)
    for path in (ROOT / "configs").glob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots <= light | {"configs"}, short(path)


def test_the_writing_path_of_merge_loads_no_transformers_at_start() -> None:
    path = ROOT / "merge/run.py"
    reached, found = [path], {path}
    while reached:
        for name in imports(reached.pop(), at_import_time=True):
            assert name.split(".")[0] not in ("transformers", "trl", "peft"), name
            module = ROOT / (name.replace(".", "/") + ".py")
            if module.exists() and module not in found:
                found.add(module)
                reached.append(module)
    assert {ROOT / "merge/api.py", ROOT / "merge/reading/checkpoint.py"} <= found


def test_nothing_importable_lives_in_a_main() -> None:
    """Else it exists twice, as __main__ and as train.main."""
    for path in MODULES:
        for name in imports(path):
            assert name not in ("train.main", "merge.__main__"), short(path)


def test_the_only_guards_are_in_scripts_that_may_be_run_by_path() -> None:
    guarded = {short(p) for p in MODULES if "sys.path" in p.read_text()}
    assert guarded == {"train/main.py", "train/evaluate.py", "merge/__main__.py", "merge/sweep.py"}


def test_benchmarks_import_what_there_is() -> None:
    """They are too long to be run here; their imports, also those inside functions, are not."""
    for path in sorted((ROOT / "tests/benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
                module = importlib.import_module(node.module)
                lacking = [item.name for item in node.names if not hasattr(module, item.name)]
                assert not lacking, f"{path.name}: {node.module} has no {lacking}"


def test_library_code_does_not_print() -> None:
    for path in MODULES:
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


def test_every_package_opens_with_what_it_is() -> None:
    for path in MODULES:
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{short(path)} says nothing"


def test_ignored_folders_are_anchored() -> None:
    """An unanchored `data/` or `build/` would leave a package out of the wheel."""
    for line in (ROOT / ".gitignore").read_text().splitlines():
        name = line.strip().rstrip("/")
        if not name or name.startswith("#"):
            continue
        floats_on_purpose = name in ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
        assert name.startswith("/") or floats_on_purpose or name.startswith("*."), line


def test_no_test_folder_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run(
        build, cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    roots = {name.split("/")[0] for name in names}
    assert {name for name in roots if not name.endswith(".dist-info")} == set(PACKAGES)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    present = {name for name in tracked if (ROOT / name).exists()}
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == present
    for needed in (
        "configs/train.yaml",
        "configs/model/pico_vlm.yaml",
        "data/chat_template.jinja",
        "data/assets/NOTICE.md",
        "data/assets/emoji23.parquet",
        "data/assets/udhr23.parquet",
        "launch/cli.py",
    ):
        assert needed in names
    licences = [name for name in names if ".dist-info/licenses/" in name]
    assert any(name.endswith("/LICENSE") for name in licences)
    assert any(name.endswith("data/assets/NOTICE.md") for name in licences)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"visiongraft = launch.cli:main" in zipfile.ZipFile(wheel).read(entry_points)
