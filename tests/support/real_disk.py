"""File systems of their own, which really fill up, turn read-only or fail."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, struct.pack("I", 2)  # EXT4_IOC_SHUTDOWN in linux/ext4.h


def run(command: str, *arguments: str | Path) -> int:
    """Run a command of the system; its exit status."""
    path = shutil.which(command)
    return subprocess.run([path, *arguments], check=False).returncode if path else 127


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory that holds so much and no more."""
    folder.mkdir()
    if run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        pytest.skip("may not mount a file system: needs root")
    try:
        yield folder
    finally:
        run("umount", folder)


@dataclass(frozen=True)
class Ext4:
    """An ext4 of eight megabytes on a loop device."""

    image: Path
    folder: Path

    def turn_read_only(self) -> None:
        """Do what the kernel does after an error in the journal: everything is EROFS."""
        assert run("mount", "-o", "remount,abort", self.folder) == 0

    def fail(self) -> None:
        """Do what a device does that is pulled out: everything is EIO."""
        file = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(file, SHUTDOWN, WITHOUT_FLUSH)
        finally:
            os.close(file)

    def bring_back(self) -> None:
        """Put in another disk with what was on this one, whoever still has files open on it."""
        other = self.image.with_suffix(".other")
        shutil.copyfile(self.image, other)
        assert run("umount", "-l", self.folder) == 0
        assert run("e2fsck", "-fy", other) in {0, 1}
        assert run("mount", "-o", "loop", other, self.folder) == 0


@contextmanager
def ext4_disk(folder: Path) -> Iterator[Ext4]:
    """A file system that can be made to fail while it is in use."""
    disk = Ext4(folder.with_suffix(".img"), folder)
    folder.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(8 * 1024 * 1024)
    if run("mkfs.ext4", "-q", disk.image) or run("mount", "-o", "loop", disk.image, folder):
        pytest.skip("may not mount an ext4 on a loop device: needs root and mkfs.ext4")
    try:
        yield disk
    finally:
        run("umount", "-l", folder)


def fill(path: Path) -> None:
    """Write until nothing fits any more."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1024)):
            pass
