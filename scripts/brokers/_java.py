"""Brokers that run on the JVM: jars resolved by Maven into a cache, classes archived so that they start faster."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar

from scripts.brokers._broker import Broker
from scripts.brokers._install import apt_install, cache_folder, maven_jars

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JavaBroker"]


class JavaBroker(Broker):
    """A broker whose server is a main class in jars from Maven Central."""

    artifacts: ClassVar[tuple[str, ...]]  # group:artifact:version; the first one's version names the cache folder
    heap: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._archive_to: Path | None = None

    @classmethod
    def jars(cls) -> Path:
        """Return the cache folder with the jars; it is there if they are installed."""
        return cache_folder(f"{cls.name}-{cls.artifacts[0].rpartition(':')[2]}")

    @classmethod
    def _missing(cls) -> str | None:
        if shutil.which("java") is None:
            return "java not found: apt-get install openjdk-17-jre-headless"
        if not cls.jars().is_dir():
            return f"no jars in {cls.jars()}: python -m scripts.brokers --install {cls.name}"
        return None

    @classmethod
    def _install(cls) -> None:
        if shutil.which("java") is None:
            apt_install(cls.name, "openjdk-17-jre-headless")
        maven_jars(cls.name, cls.jars(), cls.artifacts)
        cls._archive_classes()

    @classmethod
    def _archive_classes(cls) -> None:
        """Run the server once and let the JVM write down, already parsed, the classes that it loaded.

        Without the archive, or with one that no longer fits the JVM, the server starts all the same, only slower.
        """
        broker = cls()
        broker._archive_to = broker.folder / "classes.jsa"
        with broker:
            broker.stop()  # the JVM writes it at its orderly end
            if broker._archive_to.exists():
                complete = _archive(cls.jars()).with_suffix(".new")
                shutil.move(broker._archive_to, complete)
                complete.replace(_archive(cls.jars()))

    def _java(self, *arguments: str) -> list[str]:
        # The client compiler alone: on two cores the optimising one competes with the Python client for minutes.
        command = ["java", f"-Xmx{self.heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        if self._archive_to is not None:
            command.append(f"-XX:ArchiveClassesAtExit={self._archive_to}")
        elif _archive(self.jars()).exists():
            command.append(f"-XX:SharedArchiveFile={_archive(self.jars())}")
        return [*command, "-cp", f"{self.jars()}/*", *arguments]


def _archive(jars: Path) -> Path:
    return jars / "classes.jsa"
