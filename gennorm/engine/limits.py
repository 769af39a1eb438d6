"""Limits of memory and processor time that the system sets for this process: control groups and `ulimit`.

A container is limited by control groups. The kernel shows the groups of a process in ``/proc/self/cgroup`` and their
limits in files below ``/sys/fs/cgroup``. A file that is missing or cannot be read means that there is no limit.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["memory", "processors"]

UNLIMITED = 1 << 60  # version 1 writes a limit near 2**63 where there is none


def memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes of memory this process may use, or None where the system does not say.

    Parameters
    ----------
    root : Path
        Folder in which ``proc`` and ``sys`` are found.
    """
    limits = [_physical(), _address_space()]
    for folder, version in _groups(root, "memory"):
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        limits += [_integer(word) for name in names for word in _words(folder / name)[:1]]
    return min((limit for limit in limits if limit is not None and 0 < limit < UNLIMITED), default=None)


def processors(root: Path = Path("/")) -> int | None:
    """Return how many whole processors the quota of this process is worth, at least 1, or None without a quota.

    A part of a processor does not count. A group that has used up its quota stops until the next period, with all of
    its threads: one thread too many makes every call wait.

    Parameters
    ----------
    root : Path
        Folder in which ``proc`` and ``sys`` are found.
    """
    found = []
    for folder, version in _groups(root, "cpu"):
        if version == 2:
            pair = _words(folder / "cpu.max")
        else:
            pair = [*_words(folder / "cpu.cfs_quota_us")[:1], *_words(folder / "cpu.cfs_period_us")[:1]]
        quota, period = (_integer(word) for word in pair) if len(pair) == 2 else (None, None)
        if quota is not None and period is not None and quota > 0 and period > 0:
            found.append(max(1, quota // period))
    return min(found, default=None)


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of this process's groups that limit a resource, and all that contain them, with their version.

    Inside a container the path may be that of the host, of which only the last folder is mounted, as the first.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            tops, version = (mounted, mounted / "unified"), 2
        elif controller in controllers.split(","):
            tops, version = (mounted / controllers, mounted / controller), 1
        else:
            continue
        inner = Path(path.strip().lstrip("/"))
        for top in tops:
            for folder in (inner, *inner.parents):
                yield top / folder, version


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return ()


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _integer(word: str) -> int | None:
    """The number that a word is; None for ``max``, which means no limit."""
    try:
        return int(word)
    except ValueError:
        return None


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _address_space() -> int | None:
    try:
        resource = importlib.import_module("resource")
        limit: int = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, AttributeError, ValueError, OSError):  # Windows has no such module
        return None
    return limit
