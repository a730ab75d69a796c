"""What a scheduler asks of a verdict: ``witnessed,anchored,sealed,content,alive,max-age=1d`` (decision 25). Pure.

The newest entries cannot be confirmed yet, so ``witnessed``, ``anchored`` and ``sealed`` are asked of all entries that are older
than ``max-age`` (25 hours unless given: a day and the time that a daily run takes). ``max-age``, where it is given, also asks that
the newest confirmation by somebody outside is no older. ``content``: of no entry only the hash is here. ``alive``: the newest entry
is no older than two heartbeats. What is not proven is 3, what is too old is 5.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import Malformed
from .times import SECOND_US
from .verify import HASHES_ONLY, Finding, Verdict, minute_text

WORDS = ("witnessed", "anchored", "sealed", "content", "alive")
MAX_AGE_US = 25 * 3600 * SECOND_US
_DURATION = re.compile(r"([1-9][0-9]{0,5})(s|min|h|d)", re.ASCII)
_UNIT_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_WHO = {"witnessed": ("a witness", "tally witness add NAME VKEY URL"), "anchored": ("an anchor", "tally anchor add --help"),
        "sealed": ("a closed epoch", "tally key rotate")}  # fmt: skip


def parse_duration(text: str) -> int:
    """``90s``, ``30min``, ``25h``, ``1d`` as microseconds. ``Malformed`` for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise Malformed(f"{text[:40]!r} is no duration; write 90s, 30min, 25h or 1d")
    return int(match[1]) * _UNIT_S[match[2]] * SECOND_US


class Requirements(NamedTuple):
    """``words`` of ``WORDS``; ``max_age_us`` where it was given."""

    words: frozenset[str] = frozenset()
    max_age_us: int | None = None

    @classmethod
    def parse(cls, text: str) -> Requirements:
        """``Malformed`` names the word that is none."""
        words, age = set(), None
        for part in text.split(","):
            name, is_, value = part.strip().partition("=")
            if name == "max-age" and is_ and age is None:
                age = parse_duration(value)
            elif name in WORDS and not is_:
                words.add(name)
            else:
                raise Malformed(f"{part.strip()[:40]!r} cannot be required; {', '.join(WORDS)} and max-age=1d can")
        return cls(frozenset(words), age)

    @property
    def age_us(self) -> int:
        """Entries younger than this need no confirmation yet."""
        return MAX_AGE_US if self.max_age_us is None else self.max_age_us

    def lacking(self, verdict: Verdict, due: int, now_us: int, newest_us: int, beat_us: int) -> list[Finding]:
        """What is asked and not proven. ``due``: so many entries are older than ``age_us``; ``newest_us``: when the newest entry was
        recorded; ``beat_us``: how often the log gives a sign of life, 0 if it does not."""
        found = []
        reach = {"witnessed": verdict.witnessed_to, "anchored": verdict.anchored_to, "sealed": verdict.sealed_to}
        for word in ("witnessed", "anchored", "sealed"):
            if word in self.words and reach[word] < due:
                (who, command), start = _WHO[word], reach[word]
                found.append(Finding(f"not_{word}", f"{_range(start, due)} should be {word} by now and {_are(start, due)} not; "
                                     f"{who} adds it: {command}", 3, start, due))  # fmt: skip
        if "content" in self.words:
            bare = [s for s in verdict.spans if s.contents[0] == HASHES_ONLY]
            found += [Finding("not_content", f"{_range(s.start, s.end)}: {', '.join(s.contents)}; the archives have it: tally "
                              "verify ARCHIVE", 3, s.start, s.end) for s in bare]  # fmt: skip
        if self.max_age_us is not None:
            found += self._age(verdict, now_us)
        if "alive" in self.words:
            found += _alive(now_us, newest_us, beat_us)
        return found

    def _age(self, verdict: Verdict, now_us: int) -> list[Finding]:
        newest = max((c.time_us for c in verdict.confirmations if c.counts), default=0)
        if not newest:
            return [Finding("not_confirmed", "nobody outside confirmed this log at a time that he states; a witness adds it: tally "
                            "witness add NAME VKEY URL", 3)]  # fmt: skip
        if newest < now_us - self.age_us:
            return [Finding("stale", f"the newest confirmation from outside is of {minute_text(newest)}, older than asked for", 5)]
        return []


def _alive(now_us: int, newest_us: int, beat_us: int) -> list[Finding]:
    if not beat_us:
        return [Finding("not_alive", "this log gives no sign of life that could be missed; it does with [heartbeat] "
                        "every = \"1h\" in log.toml", 3)]  # fmt: skip
    if newest_us < now_us - 2 * beat_us:
        return [Finding("silent", f"the newest entry is of {minute_text(newest_us)}; a sign of life is due every "
                        f"{beat_us // SECOND_US // 60:,} min", 5)]  # fmt: skip
    return []


def _range(start: int, end: int) -> str:
    return f"entry #{start:,}" if end == start + 1 else f"entries #{start:,}–#{end - 1:,}"


def _are(start: int, end: int) -> str:
    return "is" if end == start + 1 else "are"
