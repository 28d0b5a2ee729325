"""Which kind of file system a directory is on, as the kernel's list of mounts says."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "orangefs",
    "panfs",
    "9p",
    "wekafs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.juicefs",
    "fuse.rclone",
    "fuse.s3fs",
}
_MOUNTS = Path("/proc/self/mountinfo")


def kind_of_filesystem(directory: Path) -> str:
    """Type of the file system (``ext4``, ``nfs4``) that holds ``directory``, which need not exist yet; "" where unknown."""
    place = directory.resolve()
    best, kind = -1, ""
    with suppress(OSError):
        for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            point = Path(before.split()[4].encode().decode("unicode_escape"))  # a space is written \040
            depth = len(point.parts)
            if depth >= best and place.is_relative_to(
                point
            ):  # of two mounts on one point the later one is seen
                best, kind = depth, after.split()[0]
    return kind


def is_network(directory: Path) -> bool:
    """Whether other machines may write to ``directory`` too: there, locks and databases cannot be trusted."""
    return kind_of_filesystem(directory) in _NETWORK
