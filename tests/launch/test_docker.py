"""The image, as far as it can be known without a daemon: lint, pins, what goes into it."""

import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "launch/Dockerfile"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def instructions() -> list[tuple[str, str]]:
    """Name and rest of each, comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def environment() -> dict[str, str]:
    return dict(item.split("=", 1) for rest in of("ENV") for item in rest.split())


def copied() -> list[str]:
    """What is copied from the repository."""
    return [source for rest in of("COPY") if not rest.startswith("--from")
            for source in rest.split()[:-1]]  # fmt: skip


def left_out(path: str) -> bool:
    """As docker reads .dockerignore: patterns from the root, of a path or a folder above it."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").strip("/")
        parts = path.split("/")
        above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        if pattern.startswith("**/"):
            hit = any(fnmatch(part, pattern[3:]) for part in parts)
        else:  # a star stands for no slash
            hit = any(
                len(p.split("/")) == len(pattern.split("/")) and fnmatch(p, pattern) for p in above
            )
        if hit:
            result = not line.startswith("!")
    return result


def locked(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def manifests() -> list[dict[str, Any]]:
    return [item for path in sorted((ROOT / "launch/kubernetes").glob("*.yaml"))
            for item in yaml.safe_load_all(path.read_text())]  # fmt: skip


def lint(dockerfile: str) -> str:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, "--no-color", "-"], input=dockerfile, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == bool(done.stdout)
    return done.stdout


def test_the_linter_has_nothing_to_say():
    assert lint(DOCKERFILE.read_text()) == ""
    assert "DL3006" in lint("FROM debian\n")  # it would say something: no tag


def test_all_that_is_copied_is_there():
    sources = copied()
    assert {"configs", "data", "train", "merge", "launch"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not left_out(source), source


def test_packages_are_installed_before_code_is_copied():
    names = [f"{name} {rest}" for name, rest in instructions()]
    install = next(i for i, text in enumerate(names) if "--requirement requirements.lock" in text)
    before = " ".join(names[:install])
    assert "COPY requirements.lock launch/cuda.lock" in before
    assert "COPY pyproject.toml" not in before and "COPY train" not in before


def test_the_ignore_file_lets_through_what_a_run_needs_and_nothing_else():
    tracked = subprocess.run(
        ["git", "ls-files", "configs", "data", "train", "merge", "launch"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    not_needed = ("launch/Dockerfile", "launch/kubernetes/", "launch/slurm/")
    assert len(tracked) > 200
    for path in tracked:
        assert left_out(path) == path.startswith(not_needed), path
    for path in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock", "launch/cuda.lock"):
        assert not left_out(path), path
    for path in (
        ".git/config", ".venv/bin/python", ".env", "outputs/sft/export/model.safetensors",
        "wandb/run/x", "train/__pycache__/x.pyc", "tests/conftest.py", "docs/DESIGN.md", "key.pem",
        "data.csv", "my/data/rows.jsonl",
    ):  # fmt: skip
        assert left_out(path), path


def test_the_base_images_are_pinned_and_fit_torch():
    images = of("FROM")
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"\S+:[\w.-]+@sha256:[0-9a-f]{64}( AS \w+)?", image), image
    cuda, system = re.match(r"nvidia/cuda:([\d.]+)-devel-([\w.]+)@", images[-1]).groups()
    assert locked("launch/cuda.lock")["cuda-toolkit"].startswith(cuda)
    assert f'base.name="docker.io/nvidia/cuda:{cuda}-devel-{system}"' in " ".join(of("LABEL"))
    torch = locked("requirements.lock")["torch"]
    for text in (DOCKERFILE.read_text(), (ROOT / "launch/cuda.lock").read_text()):
        assert f"torch {torch} of the package index" in text
    assert not set(locked("launch/cuda.lock")) & set(locked("requirements.lock"))
    (python,) = {v for rest in of("RUN") for v in re.findall(r"(?:install|--python) (3\S+)", rest)}
    assert f"Python {'.'.join(python.split('.')[:2])}" in (ROOT / "requirements.lock").read_text()


def test_its_user_is_the_pods_and_may_write_where_it_must():
    (user,) = of("USER")
    number, group = map(int, user.split(":"))
    last = [name for name, _ in instructions()][-4:]
    assert "RUN" not in last  # nothing is done as that user that root would have to mend
    text = "\n".join(path.read_text() for path in (ROOT / "launch/kubernetes").glob("*.yaml"))
    assert set(re.findall(r"runAsUser: (\d+)", text)) == {str(number)} != {"0"}
    assert set(re.findall(r"(?:runAsGroup|fsGroup): (\d+)", text)) == {str(group)}
    assert environment()["HOME"] == "/cache"
    assert any("1777 /cache /outputs" in rest for rest in of("RUN"))
    assert set(re.findall(r"image: \S+/(\S+)", text)) == {f"visiongraft:{VERSION}"}
    assert f'image.version="{VERSION}"' in " ".join(of("LABEL"))


def test_process_one_is_ours():
    (entry,), (folder,) = of("ENTRYPOINT"), of("WORKDIR")
    (path,) = yaml.safe_load(entry)
    script = ROOT / Path(path).relative_to(folder)
    assert os.access(script, os.X_OK)
    assert "exec " in script.read_text()  # no shell between the kubelet and torchrun.sh
    commands = [yaml.safe_load(rest) for rest in of("CMD")]
    assert commands == [["train", "--help"]]
    named = set(re.findall(rf"{folder}/\S+\.sh", yaml.safe_dump(manifests(), width=1000)))
    assert named == {f"{folder}/launch/torchrun.sh"}
    assert os.access(ROOT / "launch/torchrun.sh", os.X_OK)
