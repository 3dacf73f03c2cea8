"""A disk whose power can be cut: an ext4 image behind a loop device, shut down by ioctl."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from benchmarks.oracle.leftovers import own_folder

# EXT4_IOC_SHUTDOWN and its flag: the journal is not written either, as when the power is cut.
_EXT4_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_UNMOUNT_WITHIN_S = 20.0
_COMMAND_S = 30.0
_SPARE_BYTES = 16 * 1024


class PowerDisk:
    """`mount` is where its files are; `image` holds what has reached it."""

    def __init__(self, image: Path, mount: Path, mebibytes: int) -> None:
        self._image, self.mount = image, mount
        image.parent.mkdir(parents=True, exist_ok=True)
        mount.mkdir(mode=0o700, parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(mebibytes * 1024 * 1024)
        try:
            _run("mkfs.ext4", "-q", "-F", "-J", "size=4", str(image))
            self.turn_on()
            (mount / "lost+found").rmdir()
            mount.chmod(0o700)
        except BaseException:
            # Whoever interrupts this has nothing to close.
            self.close()
            raise

    def cut(self) -> None:
        """From now on nothing reaches the disk, and what had not been synced never will."""
        fd = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def turn_off(self) -> None:
        """Drops what memory still holds; its users must have ended. Raises OSError."""
        give_up_s = time.monotonic() + _UNMOUNT_WITHIN_S
        while self.mount.is_mount():
            try:
                _run("umount", str(self.mount))
            except OSError:
                if time.monotonic() > give_up_s:
                    raise
                time.sleep(0.05)

    def turn_on(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.mount))

    def fill(self) -> Path:
        """A file that takes all of its room; delete it to make room again."""
        junk = self.mount / "junk"
        with junk.open("wb") as file:
            free = os.statvfs(self.mount).f_bavail * os.statvfs(self.mount).f_frsize
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, free - _SPARE_BYTES))
            with suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))
        # Root may use what is kept for it: the rest is taken until nothing is left.
        with (self.mount / "junk2").open("wb") as file, suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))
        return junk

    def drain(self) -> None:
        """Undoes `fill`."""
        for name in ("junk", "junk2"):
            (self.mount / name).unlink(missing_ok=True)

    def close(self) -> None:
        with suppress(OSError):
            self.turn_off()
        if self.mount.is_mount():
            _run("umount", "-l", str(self.mount))
        self._image.unlink(missing_ok=True)


@cache
def why_no_disks() -> str:
    """Why no power can be cut here; empty when it can."""
    if os.geteuid() != 0:
        return "only root may mount a disk whose power can be cut"
    with own_folder("disk") as folder:
        disk: PowerDisk | None = None
        try:
            disk = PowerDisk(folder / "image", folder / "mount", 16)
            disk.cut()
        except OSError as error:
            if error.errno == errno.ENOENT:
                return f"a program is missing: {error.filename}"
            return f"no ext4 image can be mounted and shut down here: {error}"
        finally:
            if disk is not None:
                disk.close()
    return ""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{command[0]}: {done.stderr.strip()}")
