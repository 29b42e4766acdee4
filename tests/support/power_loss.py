"""A folder as a power loss leaves it: what was synced, and nothing else."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Platter:
    """What of a folder is on the disk for certain.

    A file holds what it held when it was last synced, nothing if it never was; a folder the names
    it had then, less those that have been unlinked: a disk need not wait for a sync to lose them.
    Files are known by their inode, kept open so that none is used again.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, patch: pytest.MonkeyPatch) -> "Platter":
        """Take everything there is as synced, and follow what is synced from now on."""
        platter = cls(root)
        for path in (root, *root.rglob("*")):
            platter.sync(path)
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, platter.following(getattr(os, name)))
        return platter

    def following(self, real: Callable[[int], None]) -> Callable[[int], None]:
        """The same call, followed."""

        def sync(file: int) -> None:
            real(file)
            self.sync(Path(f"/proc/self/fd/{file}"))

        return sync

    def sync(self, path: Path) -> None:
        """Bring a file's content, or a folder's names, onto the disk."""
        number = os.fstat(os.open(path, os.O_RDONLY)).st_ino
        if path.is_dir():
            self.names[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[number] = path.read_bytes()

    def unlink(self, path: Path) -> None:
        """Take a name off the disk."""
        self.names[path.parent.stat().st_ino].pop(path.name, None)

    def after_power_loss(self, folder: Path) -> Path:
        """Write what is left into another folder."""
        self._restore(self.root.stat().st_ino, folder)
        return folder

    def _restore(self, number: int, path: Path) -> None:
        if number not in self.names:
            path.write_bytes(self.contents.get(number, b""))
            return
        path.mkdir()
        for name, inner in self.names[number].items():
            self._restore(inner, path / name)


def images_of_unlinks(root: Path, into: Path, patch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Cut the power after each file that is unlinked from now on: its name, and what is left."""
    platter, real = Platter.of(root, patch), Path.unlink
    images: list[tuple[str, Path]] = []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        is_there = self.exists()
        real(self, missing_ok)
        if is_there:
            platter.unlink(self)
            images.append((self.name, platter.after_power_loss(into / str(len(images)))))

    into.mkdir()
    patch.setattr(Path, "unlink", unlink)
    return images
