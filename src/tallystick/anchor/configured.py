"""The ``[[anchor]]`` tables of ``log.toml``: what each kind needs, and the anchor that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.errors import Malformed
from ..disk import DISK, Disk
from ..outside import check_party_name
from . import Anchor
from .folder import Folder, FolderSettings
from .mail import Mail, MailSettings
from .timestamp import Timestamp, TimestampSettings

AnchorSettings = MailSettings | FolderSettings | TimestampSettings


def check_anchors(anchors: Sequence[AnchorSettings], taken: Iterable[str] = ()) -> None:
    """``Malformed`` names the table. ``taken``: names of witnesses, which share the file names in ``outside/``."""
    names = set(taken)
    for number, one in enumerate(anchors):
        try:
            check_party_name(one.name)
            if one.name in names:
                raise Malformed(f"the name {one.name} is taken")
            one.check()
        except Malformed as e:
            raise Malformed(f"anchor[{number}]: {e}") from None
        names.add(one.name)


def build_anchor(settings: AnchorSettings, origin: str, log: Path, keys: Path, disk: Disk = DISK) -> Anchor:
    """The anchor behind one table. Contacts nobody."""
    if isinstance(settings, MailSettings):
        return Mail(settings, log, keys)
    if isinstance(settings, FolderSettings):
        return Folder(settings, origin, log, disk)
    return Timestamp(settings, log, disk)
