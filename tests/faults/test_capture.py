"""Calls to models while the log cannot be written: refused, kept or counted, and always said afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tallystick import AuditLogger, event_id
from tallystick.capture import recorder as rec
from tallystick.capture.content import ContentPolicy
from tallystick.capture.recorder import Recorder
from tallystick.core.errors import CallBlocked
from tallystick.journal import LogJournal

from ..capture.server import ModelServer
from .disks import Died
from .judge import event, judge
from .lab import Bench, Lab
from .test_full_and_readonly import NoRoom

HELLO = [{"role": "user", "content": "hello, my name is Ada"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as one:
        yield one


def _open(lab: Lab, disk: NoRoom, failure: str, content: str = "commitment") -> Bench:
    log = lab.open(disk)
    log._recorder = Recorder(LogJournal(log), ContentPolicy(content), failure, look_up=False)
    return log


def _ask(log: AuditLogger, server: ModelServer, count: int = 1) -> list[str]:
    with log.wrap(ollama.Client(server.url)) as client:
        return [event_id(client.chat("ok", HELLO)) for _ in range(count)]


def _without_a_sign_of_life(log: Bench) -> None:
    """The process is gone: no helper drains, no file is closed in order."""
    recorder = log.recorder
    if recorder._helper is not None:
        recorder._late.put(None)
        recorder._helper.join()
    if recorder._spool._file is not None:
        recorder._spool._file.forget()
        recorder._spool._file = None
    log.vanish()


def _kinds(found: Any) -> list[str]:
    return [s.fields.event_type for s in found.lines]


def test_what_was_spooled_follows_a_gap_in_order_without_loss_or_duplicate(lab: Lab, server: ModelServer) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    before = _ask(log, server)
    disk.full = True
    kept = _ask(log, server, 3)
    disk.full = False
    after = _ask(log, server)
    log.close()
    found = judge(lab.folder, lab.memory, [*before, *kept, *after])
    assert _kinds(found)[1:] == ["ai_request", "ai_response", "log.gap", *["ai_request", "ai_response"] * 4, "data_access"]
    [gap] = found.of_type("log.gap")
    assert (gap.details["count"], gap.details["kept"], gap.details["cause"]) == (6, 6, "no space left")
    assert gap.action == "events come late"
    requests = [s.fields for s in found.lines if s.fields.event_type == "ai_request"]
    assert [r.event_id for r in requests] == [*before, *kept, *after]
    assert gap.details["first"] <= requests[1].timestamp <= requests[3].timestamp <= gap.details["last"]
    assert requests[3].recorded_at > requests[3].timestamp, "when it happened is kept beside when it was recorded"
    assert list((log._handle.keys.path / "spool").iterdir()) == []


def test_the_spool_drains_by_itself(lab: Lab, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rec, "_RETRY_S", 0.01)
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    log.recorder.expect_late()  # the helper is there already, and waits for notes alone
    drained = threading.Event()
    again = log.recorder.journal.again

    def watched(keywords: dict[str, Any], event_id: str) -> None:
        again(keywords, event_id)
        if keywords["event_type"] == "ai_response":
            drained.set()

    monkeypatch.setattr(log.recorder.journal, "again", watched)
    disk.full = True
    kept = _ask(log, server)
    disk.full = False
    assert drained.wait(20), "nobody called, and nothing was recorded"
    log.close()
    judge(lab.folder, lab.memory, kept)


@pytest.mark.parametrize("recorded_before_death", range(5))
def test_a_spool_outlives_its_process_and_a_half_drained_one_leaves_no_duplicate(
    lab: Lab, server: ModelServer, recorded_before_death: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    disk.full = True
    kept = _ask(log, server, 2)
    disk.full = False
    left, again = [recorded_before_death], log.recorder.journal.again

    def dies(keywords: dict[str, Any], event_id: str) -> None:
        if not left[0]:
            raise Died
        left[0] -= 1
        again(keywords, event_id)

    monkeypatch.setattr(log.recorder.journal, "again", dies)
    if recorded_before_death < 4:
        with pytest.raises(Died), log.recorder._lock:
            log.recorder._drain()
    _without_a_sign_of_life(log)
    second = _open(lab, NoRoom(), "spool")
    after = _ask(second, server)
    second.close()
    found = judge(lab.folder, lab.memory, [*kept, *after])
    requests = [s.fields.event_id for s in found.lines if s.fields.event_type == "ai_request"]
    assert requests == [*kept, *after]
    assert len([k for k in _kinds(found) if k == "ai_response"]) == 3
    assert found.of_type("log.gap")[-1].details["cause"] in ("kept in the spool of a process that ended", "no space left")
    assert list((second._handle.keys.path / "spool").iterdir()) == []


def test_block_refuses_the_call_before_a_byte_leaves(lab: Lab, server: ModelServer) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "block")
    _ask(log, server)
    seen = len(server.seen)
    disk.full = True
    with log.wrap(ollama.Client(server.url)) as client:
        with pytest.raises(CallBlocked, match="nothing was sent"):
            client.chat("ok", HELLO)
        with pytest.raises(CallBlocked):
            list(client.chat("ok", HELLO, stream=True))
    assert len(server.seen) == seen
    disk.full = False
    after = _ask(log, server)
    log.close()
    found = judge(lab.folder, lab.memory, after)
    [gap] = found.of_type("log.gap")
    assert gap.details["count"] == 2


def test_with_block_an_answer_that_cannot_be_recorded_is_in_the_error(lab: Lab, server: ModelServer) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "block")
    client = log.wrap(ollama.Client(server.url))
    original = client._client.request

    def fills(*args: Any, **keywords: Any) -> Any:
        disk.full = True
        return original(*args, **keywords)

    client._client.request = fills
    with pytest.raises(CallBlocked) as failed:
        client.chat("ok", HELLO)
    assert failed.value.result.message.content.startswith("Grüße")
    client.close()
    disk.full = False
    log.close()


def test_warn_counts_and_goes_on(lab: Lab, server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "warn")
    disk.full = True
    lost = _ask(log, server, 2)
    disk.full = False
    after = _ask(log, server)
    log.close()
    found = judge(lab.folder, lab.memory, after)
    [gap] = found.of_type("log.gap")
    assert (gap.details["count"], "kept" in gap.details, gap.action) == (4, False, "events could not be recorded")
    assert not {s.fields.event_id for s in found.lines} & set(lost)
    said = [r.message for r in caplog.records if r.name == "tallystick"]
    assert len(said) == 1 and "NOT recorded" in said[0]


def test_where_the_spool_cannot_be_written_either_memory_holds_what_it_can(
    lab: Lab, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tallystick.capture import spool

    monkeypatch.setattr(spool, "MEMORY_EVENTS_MAX", 4)
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    log.recorder._spool._disk = disk
    disk.full = True
    kept = _ask(log, server, 2)
    lost = _ask(log, server)
    disk.full = False
    after = _ask(log, server)
    log.close()
    found = judge(lab.folder, lab.memory, [*kept, *after])
    assert [s.fields.event_id for s in found.lines if s.fields.event_type == "ai_request"] == [*kept, *after]
    assert not {s.fields.event_id for s in found.lines} & set(lost)
    [gap] = found.of_type("log.gap")
    assert (gap.details["count"], gap.details["kept"], gap.action) == (6, 4, "events could not be recorded")


def test_what_comes_later_never_overtakes_what_only_memory_holds(lab: Lab, server: ModelServer) -> None:
    disk, spool_disk = NoRoom(), NoRoom()
    log = _open(lab, disk, "spool")
    log.recorder._spool._disk = spool_disk
    disk.full = spool_disk.full = True
    kept = _ask(log, server)
    spool_disk.full = False
    kept += _ask(log, server)
    disk.full = False
    log.close()
    found = judge(lab.folder, lab.memory, kept)
    assert [s.fields.event_id for s in found.lines if s.fields.event_type == "ai_request"] == kept


def test_content_in_the_spool_is_encrypted_and_its_files_are_the_owners(lab: Lab, server: ModelServer) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool", content="full")
    disk.full = True
    kept = _ask(log, server)
    folder = log._handle.keys.path / "spool"
    [path] = folder.iterdir()
    data = path.read_bytes()
    assert len(data) > 1000
    assert b"my name is Ada" not in data and b"ai_request" not in data
    assert path.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    assert (folder.parent / "spool.key").stat().st_mode & 0o777 == 0o600
    disk.full = False
    log.flush()
    assert b"Ada" in log.open_payload(kept[0], "prompt")
    log.close()
    judge(lab.folder, lab.memory, kept)


@pytest.mark.parametrize("damage", ["torn", "flipped", "exchanged", "foreign key"])
def test_of_a_damaged_spool_only_what_is_whole_is_recorded(lab: Lab, server: ModelServer, damage: str) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    disk.full = True
    kept = _ask(log, server, 2)
    path = log.recorder._spool._file.path
    _without_a_sign_of_life(log)
    data = path.read_bytes()
    ends, at = [], 0
    while at < len(data):
        at += 24 + int.from_bytes(data[at : at + 4], "big")
        ends.append(at)
    if damage == "torn":
        path.write_bytes(data[: ends[2] + 50])
    elif damage == "flipped":
        path.write_bytes(data[: ends[2] + 60] + bytes([data[ends[2] + 60] ^ 1]) + data[ends[2] + 61 :])
    elif damage == "exchanged":
        path.write_bytes(data[: ends[0] + 4] + data[ends[1] + 4 : ends[1] + 12] + data[ends[0] + 12 :])  # says it is another one
    else:
        (path.parent.parent / "spool.key").write_bytes(bytes(32))
    second = _open(lab, NoRoom(), "spool")
    after = _ask(second, server)
    second.close()
    found = judge(lab.folder, lab.memory, after)
    requests = [s.fields.event_id for s in found.lines if s.fields.event_type == "ai_request"]
    whole = {"torn": kept, "flipped": kept, "exchanged": kept[:1], "foreign key": []}[damage]
    assert requests == [*whole, *after]


def test_a_log_that_was_replaced_under_the_process_is_noticed_and_its_calls_are_kept(lab: Lab, server: ModelServer) -> None:
    import shutil

    log = _open(lab, NoRoom(), "spool")
    before = _ask(log, server)
    away = lab.folder.with_name("away")
    lab.folder.rename(away)
    shutil.copytree(away, lab.folder)
    kept = _ask(log, server)
    log.close()
    second = _open(lab, NoRoom(), "spool")
    after = _ask(second, server)
    second.close()
    found = judge(lab.folder, lab.memory, [*before, *kept, *after])
    assert [s.fields.event_id for s in found.lines if s.fields.event_type == "ai_request"] == [*before, *kept, *after]
    assert found.of_type("log.gap")[0].details["count"] == 2
    assert len((away / "segments" / f"{0:020d}.jsonl").read_bytes().splitlines()) == 3, "nothing more went where nobody looks"


def test_log_and_tools_raise_whatever_the_policy_is(lab: Lab) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    log.log(**event(0))
    disk.full = True

    @log.tool
    def weather(city: str) -> str:
        return f"fine in {city}"

    with pytest.raises(Exception, match="no space left") as failed:
        weather("Köln")
    assert failed.value.result == "fine in Köln"
    with pytest.raises(Exception, match="no space left"):
        log.log(**event(1))
    disk.full = False
    log.close()


def test_a_spool_from_which_a_frame_was_taken_is_kept_and_said(lab: Lab, server: ModelServer) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    disk.full = True
    kept = _ask(log, server, 2)
    path = log.recorder._spool._file.path
    _without_a_sign_of_life(log)
    data = path.read_bytes()
    first = 24 + int.from_bytes(data[:4], "big")
    second = first + 24 + int.from_bytes(data[first : first + 4], "big")
    path.write_bytes(data[:first] + data[second:])
    second_log = _open(lab, NoRoom(), "spool")
    after = _ask(second_log, server)
    second_log.close()
    found = judge(lab.folder, lab.memory, [kept[0], *after])
    gap = found.of_type("log.gap")[0]
    assert (gap.details["count"], gap.details["kept"]) == (2, 1) and "cannot be read whole" in gap.details["cause"]
    assert [p.suffix for p in path.parent.iterdir()] == [".damaged"]


def test_spools_whose_key_is_gone_stay_and_are_said(lab: Lab, server: ModelServer, caplog: pytest.LogCaptureFixture) -> None:
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    disk.full = True
    _ask(log, server)
    path = log.recorder._spool._file.path
    _without_a_sign_of_life(log)
    (path.parent.parent / "spool.key").unlink()
    second = _open(lab, NoRoom(), "spool")
    after = _ask(second, server)
    second.close()
    found = judge(lab.folder, lab.memory, after)
    assert "cannot be opened" in found.of_type("log.gap")[0].details["cause"]
    assert path.exists() and path.stat().st_size > 0
    assert any("cannot be opened" in r.message for r in caplog.records)


@pytest.mark.parametrize("bit", [0, 1, 2, 3])
def test_a_length_that_was_altered_hides_nothing(lab: Lab, server: ModelServer, bit: int) -> None:
    """A frame that says to be longer than the file looks like one that was never finished."""
    disk = NoRoom()
    log = _open(lab, disk, "spool")
    disk.full = True
    kept = _ask(log, server, 2)
    path = log.recorder._spool._file.path
    _without_a_sign_of_life(log)
    data = bytearray(path.read_bytes())
    first = 24 + int.from_bytes(data[:4], "big")
    data[first + bit] ^= 0x10
    path.write_bytes(data)
    second = _open(lab, NoRoom(), "spool")
    after = _ask(second, server)
    second.close()
    found = judge(lab.folder, lab.memory, [kept[0], *after])
    assert "cannot be read whole" in found.of_type("log.gap")[0].details["cause"]
    assert path.with_suffix(".damaged").read_bytes() == bytes(data)


def test_an_event_whose_group_was_taken_in_after_all_is_no_loss(lab: Lab, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, and yet said to have failed: it went into the spool as well, with another moment."""
    from tallystick.core.errors import StoreError

    log = _open(lab, NoRoom(), "spool")
    put = log.recorder.journal.put

    def puts_and_fails(keywords: dict[str, Any], event_id: str) -> None:
        put(keywords, event_id)
        raise StoreError("whether these events are on record is not known")

    monkeypatch.setattr(log.recorder.journal, "put", puts_and_fails)
    asked = _ask(log, server)
    monkeypatch.undo()
    after = _ask(log, server)
    log.close()
    found = judge(lab.folder, lab.memory, [*asked, *after])
    assert [s.fields.event_id for s in found.lines if s.fields.event_type == "ai_request"] == [*asked, *after]
