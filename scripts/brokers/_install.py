"""Install what brokers need, through apt, pip and Maven: idempotent, and one clear line where it fails."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.brokers._broker import BrokerError, BrokerMissing, run_step

__all__ = ["apt_install", "cache_folder", "installed", "pip_install"]

_POLICY = Path("/usr/sbin/policy-rc.d")
_REFUSE = "#!/bin/sh\n# Written by msgbus's broker installer: do not start services.\nexit 101\n"


def cache_folder(name: str) -> Path:
    """Return where downloads for *name* are kept: ``MSGBUS_CACHE``, or ``~/.cache/msgbus``."""
    return Path(os.environ.get("MSGBUS_CACHE") or Path.home() / ".cache" / "msgbus") / name


def installed(package: str) -> str | None:
    """Return the version of an installed Python package, None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def _dpkg_installed(package: str) -> bool:
    try:
        return run_step(["dpkg-query", "-W", "-f=${Status}", package]).endswith("install ok installed")
    except BrokerError:  # dpkg does not know it
        return False
