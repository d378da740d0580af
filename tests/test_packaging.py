"""Git and the built wheel hold all four layers; the usual templates and discovery lose `env`."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("compressors", "env", "agent", "experiments")
FILES = {str(path.relative_to(ROOT)) for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


needs_git = pytest.mark.skipif(
    shutil.which("git") is None or git("rev-parse", "--show-toplevel").stdout.strip() != str(ROOT),
    reason="this is no git checkout",
)


@needs_git
@pytest.mark.parametrize("layer", LAYERS)
def test_git_tracks_every_layer(layer):
    tracked = git("ls-files", layer).stdout.split()
    assert {path for path in FILES if path.startswith(f"{layer}/")} <= set(tracked)


@needs_git
def test_git_ignores_no_source_file():
    found = git("check-ignore", "--no-index", "--", *sorted(FILES))
    assert found.stdout.split() == []
    assert found.returncode == 1  # 128 would be an error


@needs_git
def test_type_checkers_find_the_layers():
    for layer in LAYERS:
        link = ROOT / "plywise" / layer
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{layer}"
        assert f"plywise/{layer}" in git("ls-files", "plywise").stdout.split()


def test_the_wheel_holds_every_layer(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in (*LAYERS, "plywise"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    command = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        str(tmp_path),
        ".",
    )
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("plywise-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"plywise/{name}" for name in FILES} <= names
    assert "plywise/env/costs/latency.py" in names
    assert {"plywise/__init__.py", "plywise/py.typed"} <= names
    assert {f"plywise/experiments/pages/templates/{name}.html" for name in ("base", "report", "compare")} <= names
    assert not [name for name in names if name.split("/")[0] in (*LAYERS, "tests")]
