"""What others confirmed: it counts under keys that the verifier chose, and whatever contradicts it is found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tallystick import AuditLogger
from tallystick.anchor.folder import folder_name
from tallystick.anchor.timestamp import Timestamp, TimestampSettings
from tallystick.clock import CLOCK
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.cosignature import ALGORITHMS, CosignerKey
from tallystick.core.errors import Malformed
from tallystick.core.note import Signature, SignerKey, VerifierKey, split
from tallystick.core.policy import Group, Log, Policy, Witness
from tallystick.core.tiles import root_at
from tallystick.core.times import SECOND_US
from tallystick.keys import KeyFolder
from tallystick.log import anchored
from tallystick.memory import pin_witness
from tallystick.outside import HandedOut, Parties, PartyState
from tallystick.store.segments import SegmentStore

from ..anchor.servers import TimestampServer, authority
from .conftest import Case, fill

ANNA, BEN, CARL = (CosignerKey(f"w.example/{n}", ALGORITHMS[0], bytes([n]) * 32) for n in (1, 2, 3))
NOW_S = CLOCK.wall_us() // SECOND_US


def checkpoint(case: Case, size: int, root: bytes | None = None) -> Checkpoint:
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    return Checkpoint(origin, size, root or root_at(SegmentStore(case.folder).hashes, size))


def hand_out(case: Case, size: int, *witnesses: CosignerKey, root: bytes | None = None, time_s: int = NOW_S) -> None:
    keys, made = KeyFolder(case.keys), checkpoint(case, size, root)
    handed = HandedOut(case.folder)
    handed.put(size, sign_checkpoint(made, keys.epoch_key(0), keys.log_key()))
    handed.add(size, tuple(w.cosign(made, time_s) for w in witnesses))


def pin(case: Case, **witnesses: CosignerKey) -> None:
    for name, key in witnesses.items():
        pin_witness(case.memory, case.folder, name, key.verifier.format())


def own_policy(case: Case, *witnesses: Witness) -> Policy:
    return Policy((Log(KeyFolder(case.keys).log_key().verifier),), witnesses, (), witnesses[0].name)


def test_confirmed_by_a_pinned_witness_up_to_what_it_saw(case: Case) -> None:
    pin(case, kanzlei=ANNA)
    hand_out(case, 20, ANNA)
    hand_out(case, 30, ANNA)
    for options in ({}, {"new_only": True}, {"content": True}):
        verdict = case.check(0, **options)
        assert (verdict.witnessed_to, verdict.confirmed_to, verdict.anchored_to) == (30, 30, 0)
        assert f"all but the newest {case.size - 30} also confirmed outside this machine." in verdict.sentence
        assert [(s.start, s.end) for s in verdict.spans if s.outside == ("witness kanzlei",)] == [(0, 30)]
    hand_out(case, case.size, ANNA)
    assert "all of them also confirmed outside" in case.check(0).sentence


def test_a_witness_that_is_not_pinned_is_named_and_does_not_count(case: Case) -> None:
    case.put("policy", own_policy(case, Witness("ben", BEN.verifier)).format())
    hand_out(case, 30, BEN)
    verdict = case.check(0)
    assert verdict.confirmed_to == 0 and "none of them is confirmed outside this machine yet" in verdict.sentence
    (one,) = verdict.confirmations
    assert (one.by, one.size, one.counts, one.remark) == ("witness ben", 30, False, "its key is not pinned here")
    assert all(s.outside == () for s in verdict.spans)


def test_a_cosignature_by_a_pinned_witness_that_it_did_not_make(case: Case) -> None:
    pin(case, kanzlei=ANNA)
    hand_out(case, 30)
    line = ANNA.cosign(checkpoint(case, 29), NOW_S)
    HandedOut(case.folder).add(30, (Signature(line.name, line.key_id, line.signature),))
    verdict = case.check(6, ("bad_signature", None))
    assert "witness kanzlei" in verdict.findings[0].text and verdict.confirmed_to == 0


def test_a_log_cut_off_below_what_a_witness_saw(case: Case) -> None:
    """Also for whoever has the keys and forgot nothing but the witness."""
    pin(case, kanzlei=ANNA)
    hand_out(case, case.size + 100, ANNA, root=b"r" * 32)
    verdict = case.check(6, ("rolled_back", case.size))
    text = verdict.findings[0].text
    assert text.startswith("witness kanzlei (at 20") and f"confirmed {case.size + 100:,} entries, this log ends at" in text
    assert verdict.spans[-1].contents == ("missing",)


@pytest.mark.parametrize("good", [(), (12,), (12, 25)])
def test_a_confirmed_checkpoint_of_other_entries_narrows_down_where_they_differ(case: Case, good: tuple[int, ...]) -> None:
    pin(case, kanzlei=ANNA)
    for size in good:
        hand_out(case, size, ANNA)
    hand_out(case, 40, ANNA, root=b"r" * 32)
    hand_out(case, 44, ANNA, root=b"s" * 32)
    verdict = case.check(6, ("replaced", max(good, default=0)))
    (found,) = verdict.findings
    assert found.end == 40 and "kanzlei" in found.text and "1 later ones too" in found.text
    assert verdict.confirmed_to == max(good, default=0)


def test_the_quorum_of_a_given_policy_decides(case: Case) -> None:
    log = Log(KeyFolder(case.keys).log_key().verifier)
    three = tuple(Witness(n, k.verifier) for n, k in (("anna", ANNA), ("ben", BEN), ("carl", CARL)))
    policy = Policy((log,), three, (Group("two", 2, ("anna", "ben", "carl")),), "two").format()
    hand_out(case, 10, ANNA, BEN)
    hand_out(case, 20, BEN)
    hand_out(case, 30, CARL)
    verdict = case.check(0, policy=policy)
    assert (verdict.witnessed_to, verdict.confirmed_to) == (20, 20)  # carl saw 30, ben 20: of 20 both
    assert case.check(0).confirmed_to == 0  # nothing of it is remembered


def test_a_policy_of_another_log_is_refused_and_one_with_another_key_is_another_log(case: Case) -> None:
    hand_out(case, 10, ANNA)
    witness = Witness("anna", ANNA.verifier)
    other = VerifierKey.of("elsewhere.example/log", bytes(range(32)))
    case.check(4, ("malformed", None), policy=Policy((Log(other),), (witness,), (), "anna").format())
    same_name = VerifierKey.of(checkpoint(case, 1).origin, bytes(range(32)))
    verdict = case.verify(policy=Policy((Log(same_name),), (witness,), (), "anna").format())
    assert verdict.exit_code == 6 and verdict.findings[0].issue == "replaced"
    with pytest.raises(Malformed):
        case.verify(policy=b"no policy")


def test_a_witness_on_this_machine_is_not_independent(case: Case) -> None:
    pin(case, anna=ANNA, ben=BEN)
    case.put("policy", own_policy(case, Witness("x", ANNA.verifier, "http://127.0.0.1:8080/")).format())
    Parties(case.folder).put("ben", PartyState("witness", "https://w.example/", local=True))
    hand_out(case, 30, ANNA, BEN)
    verdict = case.check(0)
    assert verdict.confirmed_to == 0 and {c.remark for c in verdict.confirmations} == {"not independent: it runs on this machine"}


@pytest.mark.parametrize("after_s", [40 * 86_400, 1 << 62])
def test_a_time_in_the_future_is_no_time(case: Case, after_s: int) -> None:
    """It would never be too old; and what no calendar has must not stop a verification, whoever wrote it."""
    case.put("policy", own_policy(case, Witness("ben", BEN.verifier)).format())
    pin(case, kanzlei=ANNA)
    hand_out(case, 30, ANNA, BEN, time_s=NOW_S + after_s)
    verdict = case.check(3, ("not_confirmed", None), require="max-age=1d")
    assert verdict.confirmed_to == 30 and all("in the future" in c.remark for c in verdict.confirmations)
    assert all(c["time"] is None for c in verdict.as_dict()["confirmations"])


def test_a_log_does_not_witness_itself(case: Case) -> None:
    for number, key in enumerate((KeyFolder(case.keys).log_key(), KeyFolder(case.keys).epoch_key(0))):
        own = CosignerKey(f"w.example/own{number}", ALGORITHMS[0], key._private.private_bytes_raw())
        pin(case, **{f"own{number}": own})
        hand_out(case, 30 + number, own)
    verdict = case.check(0)
    assert verdict.confirmed_to == 0
    assert {c.remark for c in verdict.confirmations} == {"not independent: its key is one of this log"}


def test_a_given_key_and_a_given_policy_that_disagree(case: Case) -> None:
    log, witness = KeyFolder(case.keys).log_key().verifier, Witness("anna", ANNA.verifier)
    other = Policy((Log(VerifierKey.of(log.name, bytes(range(32)))),), (witness,), (), "anna").format()
    case.check(4, ("malformed", None), policy=other, vkey=log.format())
    case.check(0, policy=Policy((Log(log),), (witness,), (), "anna").format(), vkey=log.format())


@pytest.mark.parametrize("name", ["policy", "predecessor"])
def test_a_pipe_is_not_waited_for(case: Case, name: str) -> None:
    os.mkfifo(case.folder / name)
    assert case.verify().findings[0].file == name


def test_stale_is_said_with_the_time_since_when(case: Case) -> None:
    pin(case, kanzlei=ANNA)
    hand_out(case, 30, ANNA, time_s=NOW_S - 40 * 86_400)
    verdict = case.check(0)
    assert ", nothing newer since 20" in verdict.sentence and verdict.stale_since_us == (NOW_S - 40 * 86_400) * SECOND_US


def test_what_is_required_and_not_proven(case: Case) -> None:
    assert case.check(0, require="witnessed,anchored,sealed,content").exit_code == 0  # all entries are younger than 25 h
    pin(case, kanzlei=ANNA)
    case.check(3, ("not_confirmed", None), require="max-age=1d")
    hand_out(case, 30, ANNA, time_s=NOW_S - 3 * 86_400)
    case.check(5, ("stale", None), require="max-age=1d")
    case.check(0, require="max-age=4d,witnessed")
    for text in ("witnesed", "max-age", "max-age=1w", "", "alive=3"):
        with pytest.raises(Malformed):
            case.verify(require=text)


def test_required_of_all_entries_that_are_old_enough(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    now = CLOCK.wall_us() + 30 * 3600 * SECOND_US
    monkeypatch.setattr(type(CLOCK), "wall_us", lambda _self: now)
    verdict = case.check(3, ("not_witnessed", 0), require="witnessed")
    assert verdict.findings[0].end == case.size and "tally witness add" in verdict.findings[0].text
    pin(case, kanzlei=ANNA)
    hand_out(case, 30, ANNA)
    verdict = case.check(3, ("not_witnessed", 30), require="witnessed")
    case.check(0, require="witnessed,max-age=2d")
    hand_out(case, case.size, ANNA)
    case.check(0, require="witnessed")
    case.check(3, ("not_anchored", 0), ("not_sealed", 0), require="witnessed,anchored,sealed")


def test_a_given_checkpoint_counts_as_an_anchor(case: Case, tmp_path: Path) -> None:
    verdict = case.check(0, checkpoint=sign_checkpoint(checkpoint(case, 17), KeyFolder(case.keys).log_key()))
    assert (verdict.anchored_to, verdict.confirmed_to, verdict.witnessed_to) == (17, 17, 0)


def test_who_cosigned_a_given_checkpoint_counts(case: Case) -> None:
    """As a witness serves it: nothing of it need be in the folder any more."""
    made, keys = checkpoint(case, 40), KeyFolder(case.keys)
    log = Log(keys.log_key().verifier)
    policy = Policy((log,), (Witness("anna", ANNA.verifier),), (), "anna").format()
    note = sign_checkpoint(made, keys.log_key())
    cosigned = note + ANNA.cosign(made, NOW_S).format().encode() + b"\n"
    assert case.check(0, policy=policy, checkpoint=note).witnessed_to == 0
    verdict = case.check(0, policy=policy, checkpoint=cosigned)
    assert (verdict.witnessed_to, verdict.anchored_to) == (40, 40)
    hand_out(case, 44, ANNA)
    assert case.check(0, policy=policy, checkpoint=cosigned).witnessed_to == 44
    wrong = note + ANNA.cosign(checkpoint(case, 39), NOW_S).format().encode() + b"\n"
    case.check(4, ("malformed", None), policy=policy, checkpoint=wrong)


def test_many_checkpoints_do_not_hide_one(case: Case) -> None:
    for size in range(2, case.size):
        hand_out(case, size, root=b"x" * 32 if size == 33 else None)
    verdict = case.check(6, ("replaced", 32))
    assert verdict.findings[0].end == 33


def test_what_closed_epochs_seal(case: Case) -> None:
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.rotate()
        fill(log, 3)
        log.rotate()
        fill(log, 2)
    closes = HandedOut(case.folder).sizes()
    verdict = case.check(0)
    assert verdict.sealed_to == closes[-1] and len(closes) == 2
    assert [(s.start, s.end, s.epoch) for s in verdict.spans] == [(0, closes[-1], "sealed"), (closes[-1], case.size, "epoch open")]
    for path in (case.folder / "checkpoints").glob(f"{closes[0]:020d}*"):
        path.unlink()
    verdict = case.check(6, ("missing", None))
    assert verdict.findings[0].file == f"checkpoints/{closes[0]:020d}"
    assert verdict.sealed_to == 0 and {s.epoch for s in verdict.spans} == {f"seal missing at {closes[0]:,}", "epoch open"}


def test_the_last_closing_checkpoint_may_still_be_on_its_way_and_no_other(case: Case) -> None:
    """A writer that died just after the close has not kept it yet: the next one does, before it appends."""
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.rotate()
        log.rotate()
    first, last = HandedOut(case.folder).sizes()
    (case.folder / f"checkpoints/{last:020d}").unlink()
    assert case.check(0).sealed_to == last == case.size  # the head is that checkpoint
    with AuditLogger(case.folder, memory=case.memory) as log:
        fill(log, 1)
    assert case.check(0).sealed_to == last
    (case.folder / f"checkpoints/{first:020d}").unlink()
    case.check(6, ("missing", None))


def test_a_closing_checkpoint_signed_with_another_epochs_key(case: Case) -> None:
    """What CVE-2023-31439 was: an old epoch sealed anew with a newer key. The log key's line beside it does not make it one."""
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.rotate()
        fill(log, 1)
    (size,) = HandedOut(case.folder).sizes()
    keys = KeyFolder(case.keys)
    case.put(f"checkpoints/{size:020d}", sign_checkpoint(checkpoint(case, size), keys.epoch_key(1), keys.log_key()))
    case.check(6, ("missing", None))


def test_nothing_is_sealed_in_a_log_whose_key_nobody_pinned(case: Case) -> None:
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.rotate()
    assert case.check(0).sealed_to == case.size
    case.memory.forget(case.folder)
    verdict = case.check(3, ("unknown", None))
    assert verdict.sealed_to == 0 and verdict.spans[0].epoch == "epoch closed, its key not pinned"


def test_lines_out_of_place_do_not_make_the_head_look_unsigned(case: Case) -> None:
    """The close of an epoch names the next key, and its own index: one line less before it, and the head seems to be of no key."""
    with AuditLogger(case.folder, memory=case.memory) as log:
        log.rotate()
        fill(log, 2)
    line = case.line(3)
    case.change_lines(line.file, lambda lines: lines.pop(3))
    verdict = case.check(6, ("missing", 3))
    assert verdict.sealed_to == HandedOut(case.folder).sizes()[0]


def configure_folder(case: Case, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    case.put("log.toml", case.read("log.toml") + f'\n[[anchor]]\nname = "share"\nkind = "folder"\nfolder = "{folder}"\n'.encode())


def keep_in(folder: Path, case: Case, size: int, root: bytes | None = None) -> bytes:
    made = checkpoint(case, size, root)
    note = sign_checkpoint(made, KeyFolder(case.keys).log_key())
    home = folder / folder_name(made.origin)
    home.mkdir(exist_ok=True)
    (home / f"{size:020d}.checkpoint").write_bytes(note)
    return note


@pytest.fixture
def share(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as a share of another machine."""
    monkeypatch.setattr(anchored, "_on_this_machine", lambda a, b: "")
    configure_folder(case, tmp_path / "share")
    return tmp_path / "share"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system here")  # nothing that could be installed
def test_another_disk_of_this_machine_is_not_outside_it(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is root here changes it too; a share of another machine counts."""
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        assert os.stat(elsewhere).st_dev != os.stat(case.folder).st_dev
        configure_folder(case, elsewhere)
        keep_in(elsewhere, case, 30)
        [found] = case.check(0).confirmations
        assert not found.counts and "attached to this machine" in found.remark
        monkeypatch.setattr(anchored, "remote_file_system", lambda path: "nfs4")
        [found] = case.check(0).confirmations
        assert found.counts
    finally:
        shutil.rmtree(elsewhere)


def test_the_newest_in_a_folder_elsewhere_confirms(case: Case, share: Path) -> None:
    assert case.check(0).pending == ["folder share: nothing is there yet"]
    keep_in(share, case, 10)
    keep_in(share, case, 30)
    for options in ({}, {"new_only": True}):
        verdict = case.check(0, **options)
        assert (verdict.anchored_to, verdict.confirmed_to) == (30, 30)
        assert verdict.spans[0].outside == ("folder share",) and verdict.confirmations[0].time_us


def test_a_folder_that_keeps_more_or_other_entries(case: Case, share: Path) -> None:
    notes = {keep_in(share, case, case.size + 50, b"r" * 32)}
    verdict = case.check(6, ("rolled_back", case.size))
    assert "folder share keeps" in verdict.findings[0].text
    assert notes <= {Path(p).read_bytes() for p in verdict.evidence}
    (share / folder_name(checkpoint(case, 1).origin) / f"{case.size + 50:020d}.checkpoint").unlink()
    keep_in(share, case, 30, b"r" * 32)
    case.check(6, ("replaced", 0))


def test_what_was_handed_out_before_a_log_was_put_back_still_contradicts(case: Case, share: Path) -> None:
    """The newest there agrees: it was handed out by the history that went on."""
    keep_in(share, case, 20)
    other = keep_in(share, case, 30, b"r" * 32)
    keep_in(share, case, 44)
    verdict = case.check(6, ("replaced", 0))
    assert "other entries below #30" in verdict.findings[0].text and other in {Path(p).read_bytes() for p in verdict.evidence}
    (share / folder_name(checkpoint(case, 1).origin) / f"{30:020d}.checkpoint").unlink()
    junk = sign_checkpoint(checkpoint(case, 25, b"r" * 32), SignerKey.generate(checkpoint(case, 1).origin))
    (share / folder_name(checkpoint(case, 1).origin) / f"{25:020d}.checkpoint").write_bytes(junk)
    assert case.check(0).anchored_to == 44


def test_what_others_left_in_the_folder_is_no_finding_about_the_log(case: Case, share: Path) -> None:
    keep_in(share, case, 20)
    other = CosignerKey("x", ALGORITHMS[0], bytes(32))
    forged = keep_in(share, case, 40, b"r" * 32).replace(b"AAAA", b"AAAB")
    path = share / folder_name(checkpoint(case, 1).origin) / f"{40:020d}.checkpoint"
    text, _ = split(forged)
    path.write_bytes(text.encode() + b"\n" + other.cosign(Checkpoint.parse(text), NOW_S).format().encode() + b"\n")
    assert case.check(0).anchored_to == 20


def test_an_anchor_is_what_it_was_when_it_was_first_seen(case: Case, share: Path, tmp_path: Path) -> None:
    keep_in(share, case, 30)
    assert case.check(0).anchored_to == 30
    elsewhere = tmp_path / "attacker"
    elsewhere.mkdir()
    keep_in(elsewhere, case, case.size)
    settings = case.read("log.toml")
    case.put("log.toml", settings.replace(str(share).encode(), str(elsewhere).encode()))
    verdict = case.check(0)
    assert verdict.anchored_to == 0 and "is not what was pinned here" in verdict.confirmations[0].remark
    keep_in(elsewhere, case, case.size)
    more = f'\n[[anchor]]\nname = "more"\nkind = "folder"\nfolder = "{elsewhere}"\n'.encode()
    case.put("log.toml", settings + more)
    assert f"anchor more is new since you verified last; pinned as it is now: folder {elsewhere}" in case.check(0).seen
    case.put("log.toml", settings[: settings.index(b"\n[[anchor]]")])
    assert any("anchor share is not configured any more" in text for text in case.check(0).seen)


def test_a_folder_on_the_disk_of_the_log_is_not_independent(case: Case, tmp_path: Path) -> None:
    configure_folder(case, case.folder.parent / "beside")
    keep_in(case.folder.parent / "beside", case, 30)
    verdict = case.check(0)
    assert verdict.anchored_to == 0 and verdict.confirmations[0].remark.startswith("not independent")
    shutil.rmtree(case.folder.parent / "beside")
    (pending,) = case.check(0).pending
    assert "is it mounted?" in pending


@pytest.mark.skipif(not os.environ.get("CI") and not (shutil.which("openssl") and importlib.util.find_spec("rfc3161_client")),
                    reason="needs openssl and rfc3161-client")  # fmt: skip
def test_a_timestamp_over_a_kept_checkpoint(case: Case, tmp_path: Path) -> None:
    authority(tmp_path)
    shutil.copy(tmp_path / "ca.pem", case.folder / "tsa.pem")
    hand_out(case, 20)
    hand_out(case, 30)
    with TimestampServer(tmp_path) as server:
        tables = f'\n[[anchor]]\nname = "stamp"\nkind = "timestamp"\nurl = "{server.url}"\ncertificate = "tsa.pem"\n'
        case.put("log.toml", case.read("log.toml") + tables.encode())
        assert case.check(0).pending == ["timestamp stamp: nothing came back from it yet"]
        settings = TimestampSettings("stamp", server.url, "tsa.pem")
        for size in (20, 30):
            Timestamp(settings, case.folder).hand_over(size, HandedOut(case.folder).note(size) or b"")
    verdict = case.check(0)
    assert verdict.anchored_to == 30 and abs(verdict.confirmations[0].time_us // SECOND_US - NOW_S) < 3600
    case.put(f"checkpoints/{30:020d}.stamp.tsr", case.read(f"checkpoints/{20:020d}.stamp.tsr"))
    assert case.check(0).anchored_to == 20
    authority(tmp_path, "other")
    shutil.copy(tmp_path / "other.pem", case.folder / "tsa.pem")
    assert case.check(0).anchored_to == 0
