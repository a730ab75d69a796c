"""``log.toml``: what was decided when the log was made, and may be changed later (the change becomes an entry)."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from .anchor.configured import AnchorSettings, check_anchors
from .anchor.timestamp import TimestampSettings
from .capture.content import POLICIES
from .capture.recorder import FAILURES
from .core.checkpoint import check_origin
from .core.errors import ConfigError, Malformed
from .core.require import parse_duration
from .core.times import SECOND_US
from .disk import DISK, Disk, file_mode
from .reports.approvals import Rule

LEFT = re.compile(r"\.until-[0-9]{1,19}(?:\.[0-9]{1,4})?\Z", re.ASCII)  # how the name of an older part ends


_KEYD_TABLE = re.compile(rb"^\[keyd\][^\n]*\n(?:socket[^\n]*\n?)?", re.MULTILINE)


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``keep``: ``previews`` (arguments and results of audited functions, 500 characters each, encrypted) or ``none``."""

    keep: str = "previews"


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``days``: entries older than this may be archived."""

    days: int = 365


class Segments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``bytes``: a segment is sealed at the first group that would make it larger."""

    bytes: int = 64 * 1024 * 1024


class Epochs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the key that signs is changed and the old one destroyed. ``close``: ``daily`` (UTC) or ``never`` (only by ``tally key
    rotate``); ``entries``: also before an epoch would have more than so many, 0 for no such limit."""

    close: str = "daily"
    entries: int = 0


class AIRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Patterns (``*``, ``?``, ``[…]``) of model, actor and resource, and what is kept of the content of calls where all match."""

    content: str
    model: str = "*"
    actor: str = "*"
    resource: str = "*"


class AI(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calls to models. ``content``: ``none``, ``lengths``, ``commitment``, ``redacted`` or ``full``, unless one of ``rules``
    matches (the
    first does). ``failure``: ``block``, ``spool`` or ``warn`` when the log cannot be written. ``look_up``: ask Ollama for digests."""

    content: str = "commitment"
    failure: str = "spool"
    look_up: bool = True
    rules: tuple[AIRule, ...] = ()


class ApprovalRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What needs an approval: ``action`` (a pattern), and ``where``: ``details.amount > 50``, several joined by ``and``."""

    action: str
    where: str = ""


class Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When checkpoints go to witnesses and anchors: whenever an epoch was closed, and every ``minutes`` while there is something new
    (0: not)."""

    minutes: int = 0


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``every``: after so long without an entry a process that records gives a sign of life (``30min``, ``1h``); empty: never."""

    every: str = ""

    @property
    def every_us(self) -> int:
        """Microseconds, 0 for never. ``Malformed`` for what is no duration."""
        return parse_duration(self.every) if self.every else 0


class Keyd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``socket``: of the ``tally keyd`` that holds the epoch keys, relative to the log folder; empty: they are files of ``keys``."""

    socket: str = ""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. ``keys`` is relative to the log folder."""

    format: int
    origin: str
    timezone: str
    keys: str
    content: Content = Content()
    retention: Retention = Retention()
    segments: Segments = Segments()
    epochs: Epochs = Epochs()
    ai: AI = AI()
    approval: tuple[ApprovalRule, ...] = ()
    publish: Publish = Publish()
    anchor: tuple[AnchorSettings, ...] = ()
    heartbeat: Heartbeat = Heartbeat()
    keyd: Keyd = Keyd()


def build_settings(origin: str, timezone: str, keys: str, retention_days: int) -> bytes:
    """The text of a new ``log.toml``."""
    return f"""# tallystick log. A change here becomes an entry (log.config) at the next append.
format = 1
origin = "{origin}"
timezone = "{timezone}"   # days asked for are days here; stored times are UTC
keys = "{keys}"

[content]
keep = "previews"         # previews | none: values of arguments and results of audited functions, encrypted

[ai]
content = "commitment"    # none | lengths | commitment | redacted | full: what is kept of prompts and answers
failure = "spool"         # block | spool | warn: what a call does when this log cannot be written
look_up = true            # ask Ollama for the digest behind a model's name

# [[ai.rules]]            # the first rule that matches decides for its calls
# model = "llama3*"       # * ? and [ ] match; also actor, resource
# content = "full"

# [[approval]]            # what needs an approval; tally query, trace and status say what lacks it
# action = "post invoice"
# where = "details.amount > 50"

# [heartbeat]             # signs of life of whoever records, so that verify can name silences
# every = "1h"

[retention]
days = {retention_days}

[epochs]
close = "daily"           # daily | never: when the signing key is changed and the old one destroyed
entries = 0               # also after so many entries; 0: no such limit

[segments]
bytes = {Segments().bytes}

# [publish]               # to witnesses and anchors, whenever an epoch was closed, and also
# minutes = 60            # every so often while there is something new
""".encode()


def read_settings(folder: Path) -> Settings:
    """``ConfigError`` names the file and what is wrong. Whether this machine knows the time zone is the business of whoever
    prints or asks for times: it says nothing about the log."""
    path = folder / "log.toml"
    try:
        settings = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Settings)
        check_origin(settings.origin)
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there; {folder} is not a log of this program") from None
    except (ValueError, RecursionError, msgspec.ValidationError, Malformed) as e:  # ValueError: also of TOML and UTF-8
        raise ConfigError(f"{path}: {e}") from e
    if settings.format != 1:
        raise ConfigError(f"{path}: format {settings.format} is newer than this program, which knows format 1")
    try:
        if 0 < settings.heartbeat.every_us < 60 * SECOND_US:
            raise Malformed("at least 1min")
    except Malformed as e:
        raise ConfigError(f"{path}: heartbeat.every: {e}") from e
    if settings.content.keep not in ("previews", "none"):
        raise ConfigError(f'{path}: content.keep is "previews" or "none"')
    for number, word in enumerate((settings.ai.content, *(rule.content for rule in settings.ai.rules))):
        if word not in POLICIES:
            where = f"ai.rules[{number - 1}].content" if number else "ai.content"
            raise ConfigError(f"{path}: {where} is one of {', '.join(POLICIES)}")
    for number, rule in enumerate(settings.approval):
        try:
            Rule.parse(rule.action, rule.where)
        except (ValueError, TypeError) as e:
            raise ConfigError(f"{path}: approval[{number}]: {e}") from e
    if settings.ai.failure not in FAILURES:
        raise ConfigError(f"{path}: ai.failure is one of {', '.join(FAILURES)}")
    if settings.epochs.close not in ("daily", "never") or settings.epochs.entries < 0 or settings.epochs.entries == 1:
        raise ConfigError(f'{path}: epochs.close is "daily" or "never", epochs.entries 0 or at least 2')
    if settings.retention.days < 0 or settings.segments.bytes < 4096:
        raise ConfigError(f"{path}: retention.days is at least 0, segments.bytes at least 4096")
    if not 0 <= settings.publish.minutes <= 525_600:
        raise ConfigError(f"{path}: publish.minutes is 0 to 525600")
    try:
        check_anchors(settings.anchor)
    except Malformed as e:
        raise ConfigError(f"{path}: {e}") from e
    if not settings.keys or "\0" in settings.keys:
        raise ConfigError(f"{path}: keys is the path of a folder")
    return settings


def recorded(folder: Path) -> bytes:
    """What a change of becomes an entry: ``log.toml``, and ``policy`` where the log has one."""
    settings = (folder / "log.toml").read_bytes()
    try:
        return settings + b"\npolicy\n" + (folder / "policy").read_bytes()
    except FileNotFoundError:
        return settings


def keys_folder(folder: Path, settings: Settings) -> Path:
    """Where the keys are. ``log.toml`` stays the same in a copy and in an older part, so the folder's own name counts too: an older
    part, ``LOG.until-<size>``, has ``KEYS.until-<size>``; a copy beside its original has ``COPY.keys``, never the original's mark.
    """
    keys = Path(os.path.normpath(folder / settings.keys))
    left = LEFT.search(folder.name)
    if left is not None and left[0] not in keys.name:
        return keys.with_name(keys.name + left[0])
    home = keys.with_name(keys.name.removesuffix(".keys"))
    if settings.keys == f"../{home.name}.keys" and home.name != folder.name:
        own = folder.with_name(f"{folder.name}.keys")
        if own.is_dir() or (home / "log.vkey").is_file():
            return own
    return keys


def add_anchor(folder: Path, anchor: AnchorSettings, taken: Iterable[str] = (), disk: Disk = DISK) -> None:
    """Append an ``[[anchor]]`` table to ``log.toml``; the rest stays byte for byte. ``ConfigError`` if the file could not be read
    then, ``Malformed`` for values that cannot be or a name that is ``taken``. That it changed becomes an entry at the next append."""
    settings = read_settings(folder)
    check_anchors((*settings.anchor, anchor), taken)
    values = msgspec.to_builtins(anchor)
    defaults = {f.encode_name: f.default for f in msgspec.structs.fields(anchor)}
    lines = [f"{key} = {_toml(value)}\n" for key, value in values.items() if value != defaults.get(key)]
    data = (folder / "log.toml").read_bytes()
    gap = b"" if data.endswith(b"\n") else b"\n"
    _replace(folder, data + gap + ("\n[[anchor]]\n" + "".join(lines)).encode(), disk, anchor=(*settings.anchor, anchor))


def remove_anchor(folder: Path, name: str, disk: Disk = DISK) -> None:
    """Take the table of one anchor out of ``log.toml``. ``ConfigError`` if there is none, or if it is written in a way that a person
    has to edit."""
    settings, path = read_settings(folder), folder / "log.toml"
    at = next((number for number, one in enumerate(settings.anchor) if one.name == name), None)
    if at is None:
        raise ConfigError(f"{path}: there is no anchor {name}")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.strip().replace(" ", "").startswith("[[anchor]]")]
    if len(starts) != len(settings.anchor):
        raise ConfigError(f"{path}: the tables of anchors are written in another way; remove it there by hand")
    start = starts[at]
    end = next((n for n in range(start + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1  # what stands above the next table belongs to that one
    if start and not lines[start - 1].strip():
        start -= 1
    rest = "".join(lines[:start] + lines[end:]).encode()
    _replace(folder, rest, disk, anchor=settings.anchor[:at] + settings.anchor[at + 1 :])


def set_keyd(folder: Path, socket: str, disk: Disk = DISK) -> None:
    """Append ``[keyd]`` to ``log.toml``. ``ConfigError`` if there is one."""
    data = (folder / "log.toml").read_bytes()
    gap = b"" if data.endswith(b"\n") else b"\n"
    table = f"\n[keyd]                  # the epoch keys are in another process\nsocket = {_toml(socket)}\n"
    _replace(folder, data + gap + table.encode(), disk, keyd=Keyd(socket))


def without_keyd(data: bytes) -> bytes:
    """The text of a ``log.toml`` without its ``[keyd]`` table, for a successor whose keys are files: a daemon holds those of one log.
    ``ConfigError`` where that table is written in another way than ``set_keyd`` does."""
    if not _settings_of(data).keyd.socket:
        return data
    rest = _KEYD_TABLE.sub(b"", data, count=1)
    if msgspec.structs.replace(_settings_of(data), keyd=Keyd()) != _settings_of(rest):
        raise ConfigError("log.toml: the table [keyd] is written in a way that only a person should edit; take it out")
    return rest


def _settings_of(data: bytes) -> Settings:
    try:
        return msgspec.convert(tomllib.loads(data.decode("utf-8")), Settings)
    except (ValueError, RecursionError, msgspec.ValidationError) as e:
        raise ConfigError(f"log.toml: {e}") from None


def files_beside(settings: Settings) -> list[str]:
    """Names of files of the log folder that ``log.toml`` refers to: they go where it goes."""
    named = (one.certificate for one in settings.anchor if isinstance(one, TimestampSettings))
    return [name for name in named if "/" not in name and name.endswith(".pem")]


def _replace(folder: Path, data: bytes, disk: Disk, **changes: object) -> None:
    """Write ``log.toml`` if it says then what was meant, and nothing else."""
    path, before = folder / "log.toml", read_settings(folder)
    try:
        after = _settings_of(data)
    except ConfigError as e:
        raise ConfigError(f"{path} would not be readable any more ({e}); edit it by hand") from None
    if after != msgspec.structs.replace(before, **changes):
        raise ConfigError(f"{path} is written in a way that only a person should edit; nothing was changed")
    disk.write_file(path, data, file_mode(folder), like=folder)


def _toml(value: str | bool) -> str:
    """A basic string (TOML 1.0) or a boolean. ``Malformed`` for text that is not Unicode."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Malformed("a path or name that is not UTF-8 cannot stand in log.toml")
    return '"' + "".join(f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in value) + '"'
