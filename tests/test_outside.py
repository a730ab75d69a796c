"""What left and what came back: files that stock tools can read, changed by one at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tallystick.core.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from tallystick.core.cosignature import ALGORITHMS, CosignerKey, cosignatures
from tallystick.core.errors import Malformed, StoreError
from tallystick.core.note import SignerKey, split
from tallystick.outside import HandedOut, Parties, PartyState

LOG, OTHER = SignerKey.generate("log.example/a"), SignerKey.generate("log.example/a")
HEAD = Checkpoint("log.example/a", 7, bytes(range(32)))


@pytest.fixture
def handed(tmp_path: Path) -> HandedOut:
    (tmp_path / "checkpoints").mkdir()
    return HandedOut(tmp_path)


def test_the_note_is_never_rewritten_and_with_its_lines_it_is_a_note(handed: HandedOut) -> None:
    note = sign_checkpoint(HEAD, OTHER)
    handed.put(7, note)
    handed.put(7, sign_checkpoint(HEAD, OTHER, LOG))
    witnesses = [CosignerKey("w.example/1", algorithm, bytes([algorithm] * 32)) for algorithm in ALGORITHMS]
    for witness in witnesses * 2:
        handed.add(7, (witness.cosign(HEAD, 1_700_000_000),))
    assert handed.note(7) == note
    folder = handed.folder
    both = (folder / f"{7:020d}").read_bytes() + (folder / f"{7:020d}.signatures").read_bytes()
    assert handed.signed(7) == both
    assert open_checkpoint(both, [LOG.verifier], origin="log.example/a") == HEAD
    assert [c.key for c in cosignatures(both, [w.verifier for w in witnesses])] == [w.verifier for w in witnesses]
    assert handed.sizes() == [7]
    assert len(split(both)[1]) == 4


def test_another_history_is_not_written_over(handed: HandedOut) -> None:
    handed.put(7, sign_checkpoint(HEAD, LOG))
    with pytest.raises(StoreError, match="another history"):
        handed.put(7, sign_checkpoint(Checkpoint("log.example/a", 7, bytes(32)), LOG))
    with pytest.raises(StoreError, match="not there"):
        handed.add(8, split(sign_checkpoint(HEAD, OTHER))[1])


def test_many_add_at_once_and_none_is_lost(handed: HandedOut) -> None:
    handed.put(7, sign_checkpoint(HEAD, LOG))
    witnesses = [CosignerKey(f"w.example/{n}", ALGORITHMS[0], bytes([n] * 32)) for n in range(20)]
    start = threading.Barrier(20)

    def add(witness: CosignerKey) -> None:
        start.wait()
        HandedOut(handed.folder.parent).add(7, (witness.cosign(HEAD, 1),))

    threads = [threading.Thread(target=add, args=(w,)) for w in witnesses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = handed.signed(7)
    assert whole is not None
    assert len(cosignatures(whole, [w.verifier for w in witnesses])) == 20


def test_timestamps_and_states(handed: HandedOut, tmp_path: Path) -> None:
    handed.put_timestamp(7, "tsa.acme", b"\x30\x00")
    (handed.folder / "junk.tsr").write_bytes(b"")
    assert handed.timestamps() == [(7, "tsa.acme")]
    assert handed.timestamp(7, "tsa.acme") == b"\x30\x00"
    parties = Parties(tmp_path)
    state = PartyState("witness", "http://127.0.0.1:1", 7, 8, 9, "refused", True)
    parties.put("kanzlei", state)
    (tmp_path / "outside" / "junk.json").write_text("{")
    assert parties.all() == {"kanzlei": state}
    for name in ("", "A", "../x", "a/b", "x" * 41, ".a"):
        with pytest.raises(Malformed):
            parties.put(name, state)


def test_a_link_in_the_place_of_a_note_is_not_followed(handed: HandedOut, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (handed.folder / f"{7:020d}").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        handed.note(7)
