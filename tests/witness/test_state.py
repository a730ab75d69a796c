"""What a witness keeps: before it answers, one history, for ever; and what it does when it was made to forget."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import pytest

from tallystick.core.cosignature import cosignatures
from tallystick.core.errors import Malformed, StateUnknown, StoreError
from tallystick.core.merkle import verify_consistency
from tallystick.core.note import COSIGNATURE_ML_DSA_44, split
from tallystick.core.tiles import prove_consistency
from tallystick.witness import state
from tallystick.witness.folder import add_log, create, read_keys, read_logs, read_vkeys
from tallystick.witness.state import Witness, contradictions, cosigned_logs

from .conftest import NAME, Asked, MadeLog


def opened(answer, note, vkeys):
    """The cosignatures in an answer, verified over the note."""
    assert answer.status == 200, answer
    return cosignatures(note + answer.body, vkeys)


def test_a_log_that_grows_is_cosigned_at_the_time_of_the_clock(witness, log, clock):
    old = 0
    for size in (1, 2, 2, 64, 65, 300):
        clock.second += 60
        answer = witness(log.body(old, size))
        (found,) = opened(answer, log.note(size), witness.witness.vkeys)
        assert found.time_s == clock.second
        old = size
    assert cosigned_logs(witness.folder)[log.origin][:2] == (300, clock.second)


def test_both_algorithms_in_one_answer(tmp_path, log, clock):
    create(tmp_path / "w", NAME, ml_dsa=True)
    add_log(tmp_path / "w", log.key.verifier.format())
    asked = Asked(tmp_path / "w", clock)
    found = opened(asked(log.body(0, 5)), log.note(5), read_vkeys(tmp_path / "w"))
    assert [one.key.algorithm for one in found] == [4, 6]
    asked.witness.close()
    again = Asked(tmp_path / "w", clock)
    assert again(log.body(5, 9)).status == 200
    again.witness.close()
    assert read_vkeys(tmp_path / "w")[1].algorithm == COSIGNATURE_ML_DSA_44


def test_what_was_answered_is_there_after_a_new_start(folder, log, clock):
    first = Asked(folder, clock)
    assert first(log.body(0, 7)).status == 200
    os.close(os.dup(first.witness._lock))  # not closed in an orderly way: its lock goes with the descriptor
    os.close(first.witness._lock)
    first.witness._lock = None
    second = Asked(folder, clock)
    answer = second(log.body(0, 9))
    assert (answer.status, answer.body, answer.content_type) == (409, b"7\n", "text/x.tlog.size")
    assert second(log.branch(3).body(7, 9)).status == 422
    assert second(log.body(7, 9)).status == 200
    second.witness.close()
    first.witness.close()


def test_nothing_is_answered_that_a_kill_would_lose(folder, log):
    """The answer is printed by a process that kills itself right after: what it printed must be known to the next one."""
    script = (
        "import os,sys,pathlib\n"
        "from tallystick.witness.folder import read_keys, read_logs\nfrom tallystick.witness.state import Witness\n"
        "f=pathlib.Path(sys.argv[1]); w=Witness(f, read_keys(f)); logs=read_logs(f)\n"
        "a=w.settle([w.authenticate(sys.stdin.buffer.read(), logs)])[0]\n"
        "os.write(1, a.body); os.kill(os.getpid(), 9)\n"
    )
    old = 0
    for size in (1, 3, 80):
        done = subprocess.run([sys.executable, "-c", script, folder], input=log.body(old, size), capture_output=True, check=False)
        assert done.returncode == -9, done.stderr
        assert done.stdout.startswith("— ".encode())
        old = size
    assert cosigned_logs(folder)[log.origin].size == 80


def test_every_commit_is_synced(witness):
    """What ``kill -9`` cannot show, a power loss would: SQLite's own word for it."""
    db = witness.witness._db
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_nothing_is_answered_before_it_is_kept(witness, log, monkeypatch):
    """When keeping fails nothing was cosigned, and nothing is from then on."""

    class Full:
        def execute(self, sql, *more):
            if sql == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return db.execute(sql, *more)

        def executemany(self, *more):
            return db.executemany(*more)

        close = property(lambda self: db.close)

    db = witness.witness._db
    witness.witness._db = Full()
    answer = witness(log.body(0, 5))
    assert answer.status == 503
    assert "—" not in answer.body.decode()
    witness.witness._db = db
    assert witness(log.body(0, 5)).status == 503
    assert "full" in witness.witness.broken
    db.execute("ROLLBACK")
    assert cosigned_logs(witness.folder) == {}


def test_the_race_of_the_specification(witness, log, clock):
    """A (size N) is checked, B (size N+K) is checked and stored, then A would be stored and roll K leaves back. Here B begins while A is
    being decided: it has to wait, and then meets what A stored."""
    assert witness(log.body(0, 5)).status == 200
    found = {}

    def other():
        found["b"] = witness(log.body(5, 90))

    racing = threading.Thread(target=other)

    def asked():
        if not racing.is_alive() and "b" not in found:
            clock.asked = lambda: None
            racing.start()
            racing.join(0.2)
            assert "b" not in found  # B is not decided while A is between its check and its store

    clock.asked = asked
    a = witness(log.body(5, 60))
    racing.join()
    assert a.status == 200
    assert (found["b"].status, found["b"].body) == (409, b"60\n")
    assert cosigned_logs(witness.folder)[log.origin].size == 60


def test_many_threads_never_make_it_go_back(witness, log):
    """Whatever is cosigned extends everything that was cosigned before it."""
    order = []
    sizes = list(range(1, 120))

    def client(seed):
        known = 0
        for size in sizes[seed % 3 :: 3]:
            for _ in range(50):
                answer = witness(log.body(known, size)) if known <= size else None
                if answer is None:
                    break
                if answer.status == 200:
                    order.append(size)
                    known = size
                    break
                assert answer.status == 409
                known = int(answer.body)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = sqlite3.connect(witness.folder / "state.db")
    kept = [row[0] for row in rows.execute("SELECT size FROM cosigned ORDER BY size")]
    rows.close()
    assert sorted(set(order)) == kept
    assert max(kept) == 119
    for a, b in zip(kept, kept[1:], strict=False):
        verify_consistency(a, b, log.checkpoint(a).root, log.checkpoint(b).root, prove_consistency(log.read, a, b))


def test_one_batch_is_decided_in_its_order(witness, log):
    bodies = [log.body(0, 5), log.body(5, 9), log.body(5, 7), log.branch(2).body(9, 12), log.body(9, 9), log.body(9, 300)]
    assert [answer.status for answer in witness(*bodies)] == [200, 200, 409, 422, 200, 200]
    assert cosigned_logs(witness.folder)[log.origin].size == 300


def test_two_processes_do_not_serve_one_witness(witness, folder):
    with pytest.raises(StoreError, match="another process"):
        Witness(folder, read_keys(folder))


# -- the clock ---------------------------------------------------------------------------------------------------------------


def test_a_clock_that_went_back_states_no_earlier_time(witness, log, clock):
    assert witness(log.body(0, 5)).status == 200
    clock.second -= 2
    answer = witness(log.body(5, 9))
    assert (answer.status, answer.retry_s) == (503, 2)
    assert witness(MadeLog("log.example/other").body(0, 5)).status == 404
    clock.second += 2
    assert witness(log.body(5, 9)).status == 200


def test_another_log_is_not_held_up_by_it(witness, log, clock):
    other = MadeLog("log.example/other")
    add_log(witness.folder, other.key.verifier.format())
    assert witness(log.body(0, 5)).status == 200
    clock.second -= 100
    assert [a.status for a in witness(log.body(5, 9), other.body(0, 9))] == [503, 200]


def test_a_clock_that_ran_ahead_is_forgiven_by_its_operator(folder, log, clock):
    clock.second += 10**9
    asked = Asked(folder, clock)
    assert asked(log.body(0, 5)).status == 200
    clock.second -= 10**9
    assert asked(log.body(5, 9)).status == 503
    asked.witness.forget_time(log.origin)
    assert asked(log.body(5, 9)).status == 200
    asked.witness.close()
    again = Asked(folder, clock)
    assert again(log.body(9, 10)).status == 200
    again.witness.close()


def test_asked_again_within_the_second_gives_the_same_answer_without_a_write(witness, log, clock):
    first = witness(log.body(0, 5))
    sequence = witness.witness._sequence
    assert witness(log.body(5, 5)) == first
    assert witness.witness._sequence == sequence
    clock.second += 1
    later = witness(log.body(5, 5))
    assert later.status == 200 and later != first
    assert witness.witness._sequence == sequence + 1


# -- evidence ----------------------------------------------------------------------------------------------------------------


def test_a_split_view_is_kept_as_two_signed_checkpoints(witness, log):
    other = log.branch(3)
    assert witness(log.body(0, 5)).status == 200
    assert witness(log.body(5, 9)).status == 200
    assert witness(other.body(9, 9)).status == 422
    assert witness(other.body(0, 9)).status == 409  # seen again: kept once
    assert witness(other.body(0, 5)).status == 409  # also for a size that is not the newest
    found = contradictions(witness.folder)
    assert [(one.size, one.kind) for one in found] == [(5, "split"), (9, "split")]
    for one in found:
        texts = {split(note)[0] for note in (one.request, one.known)}
        assert len(texts) == 2
        assert {text.split("\n")[1] for text in texts} == {str(one.size)}
        for note in (one.request, one.known):  # both are signed by the log: that is the proof
            assert any(s.key_id == log.key.verifier.key_id for s in split(note)[1])


def test_a_history_that_does_not_extend_ours_is_kept_too(witness, log):
    assert witness(log.body(0, 5)).status == 200
    assert witness(log.branch(3).body(5, 9)).status == 422
    assert [(one.size, one.kind) for one in contradictions(witness.folder)] == [(9, "unproven")]


def test_what_is_shown_to_extend_ours_after_all_is_no_evidence_any_more(witness, log):
    assert witness(log.body(0, 5)).status == 200
    assert witness(log.body(5, 9).replace(b"old 5\n", b"old 5\n" + b"A" * 43 + b"=\n")).status == 422  # anybody can send that
    assert [one.kind for one in contradictions(witness.folder)] == ["unproven"]
    assert witness(log.body(5, 9)).status == 200
    assert contradictions(witness.folder) == []


def test_what_nobody_signed_is_no_evidence(witness, log):
    assert witness(log.body(0, 5)).status == 200
    forger = MadeLog()
    assert witness(forger.branch(3).body(5, 9)).status == 403
    assert witness(log.body(3, 4)).status == 409  # older, and of the same history
    assert contradictions(witness.folder) == []


def test_evidence_is_bounded(witness, log, monkeypatch):
    monkeypatch.setattr(state, "EVIDENCE_MAX", 3)
    assert witness(log.body(0, 5)).status == 200
    for start in range(5):
        assert witness(log.branch(start).body(5, 5)).status == 422
    assert len(contradictions(witness.folder)) == 3


def test_old_checkpoints_are_let_go_of_and_the_newest_stays(witness, log, monkeypatch):
    monkeypatch.setattr(state, "KEPT", 5)
    monkeypatch.setattr(state, "_PRUNE_EVERY", 1)
    for size in range(1, 30):
        assert witness(log.body(size - 1, size)).status == 200
    seen = cosigned_logs(witness.folder)[log.origin]
    assert seen.size == 29
    assert 5 <= seen.kept <= 10


# -- a lost database ---------------------------------------------------------------------------------------------------------


def _served_once(folder, log, clock):
    asked = Asked(folder, clock)
    assert asked(log.body(0, 5)).status == 200
    asked.witness.close()


def test_it_does_not_start_without_its_database(folder, log, clock):
    _served_once(folder, log, clock)
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(os.urandom(8192)),
                   lambda p: p.write_bytes(p.read_bytes()[:4096])):
        copy = folder.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        damage(copy / "state.db")
        with pytest.raises(StateUnknown, match=r"must not go on under the same key.*tally witness init NEWDIR"):
            Witness(copy, read_keys(copy))


def test_it_does_not_start_on_an_older_database(folder, log, clock):
    _served_once(folder, log, clock)
    backup = (folder / "state.db").read_bytes()
    asked = Asked(folder, clock)
    assert asked(log.body(5, 9)).status == 200
    asked.witness.close()
    (folder / "state.db").write_bytes(backup)
    with pytest.raises(StateUnknown, match="older than what this witness has answered"):
        Witness(folder, read_keys(folder))


def test_it_does_not_start_without_the_record_of_what_it_served(folder, log, clock):
    _served_once(folder, log, clock)
    whole = (folder / "served").read_bytes()
    for damage in (None, b"", b"x" * 96, whole[:-1], whole.replace(whole[:8], b"00000000")):
        if damage is None:
            (folder / "served").unlink()
        else:
            (folder / "served").write_bytes(damage)
        with pytest.raises(StateUnknown, match="served"):
            Witness(folder, read_keys(folder))
    (folder / "served").write_bytes(whole)
    Witness(folder, read_keys(folder)).close()


def test_it_does_not_start_on_the_database_of_another_witness(folder, tmp_path, log, clock):
    create(tmp_path / "x", NAME)
    shutil.copy(tmp_path / "x" / "state.db", folder / "state.db")
    with pytest.raises(StateUnknown, match="another witness"):
        Witness(folder, read_keys(folder))


@pytest.mark.parametrize("change", ["size = 4", "root = zeroblob(32)", "time_s = time_s - 1"])
def test_a_row_that_says_other_than_its_note_does_not_start_it(folder, log, clock, change):
    """The columns decide what is cosigned next: with another root the note beside it would still verify."""
    _served_once(folder, log, clock)
    with contextlib.closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as db:
        db.execute(f"UPDATE cosigned SET {change}")
    with pytest.raises(StateUnknown, match="is not what was signed here"):
        Witness(folder, read_keys(folder), clock)


def test_a_row_that_it_did_not_sign_does_not_start_it(folder, log, clock):
    _served_once(folder, log, clock)
    db = sqlite3.connect(folder / "state.db")
    db.execute("UPDATE cosigned SET note = replace(note, ?, ?)", (b"\n5\n", b"\n4\n"))
    db.execute("UPDATE cosigned SET note = ?", (log.note(4),))
    db.commit()
    db.close()
    with pytest.raises(StateUnknown, match="not signed here"):
        Witness(folder, read_keys(folder))


# -- the folder --------------------------------------------------------------------------------------------------------------


def test_keys_are_its_own_alone(folder):
    assert (folder.stat().st_mode & 0o777, (folder / "witness.key").stat().st_mode & 0o777) == (0o700, 0o600)
    assert "PRIVATE" not in repr(read_keys(folder))
    (folder / "witness.key").chmod(0o640)
    with pytest.raises(StoreError, match="chmod 600"):
        read_keys(folder)


def test_a_second_witness_is_not_made_over_the_first(folder):
    with pytest.raises(StoreError, match="is a witness already"):
        create(folder, NAME)


def test_several_keys_of_one_log_and_an_origin_that_is_not_the_name_of_the_key(folder, log):
    other = MadeLog()
    assert add_log(folder, other.key.verifier.format()) == (log.origin, True)
    assert add_log(folder, other.key.verifier.format()) == (log.origin, False)
    assert add_log(folder, "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8", "go.sum database tree")[1]
    logs = read_logs(folder)
    assert len(logs[log.origin]) == 2
    assert "go.sum database tree" in logs


def test_its_own_key_is_not_that_of_a_log(folder):
    own = read_vkeys(folder)[0]
    with pytest.raises(Malformed, match="own key"):
        add_log(folder, own.format())


def test_a_bad_line_of_the_list_is_named(folder):
    with (folder / "logs").open("ab") as file:
        file.write(b"# a comment\nnonsense\n")
    with pytest.raises(StoreError, match="line 3"):
        read_logs(folder)
