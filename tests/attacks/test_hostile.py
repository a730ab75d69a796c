"""Whatever lies in the folder or is handed in: a verdict or an error of ours, in bounded time and memory, never a traceback.

Each case is judged in a process of its own with 1 GiB more of address space and 20 seconds of processor time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tallystick.core import entry as ent
from tallystick.core.checkpoint import Checkpoint, sign_checkpoint
from tallystick.core.errors import AuditError, ConfigError, Malformed
from tallystick.core.note import SignerKey
from tallystick.core.proof import InclusionProof
from tallystick.keys import KeyFolder
from tallystick.memory import Memory
from tallystick.verification import verify_log, verify_proof

from .conftest import Case


def judge(what: str, path: Path, state: Path, extra: str = "") -> dict[str, Any]:
    """The verdict as a dictionary, or the name of an error of ours; anything else fails here."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receive)
            with open("/proc/self/statm", encoding="ascii") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            os.write(send, json.dumps(_judge(what, path, state, extra)).encode())
        except BaseException:  # this is what must not happen: the parent reads it
            os.write(send, json.dumps({"traceback": traceback.format_exc()[-3000:]}).encode())
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        said: dict[str, Any] = json.loads(pipe.read() or b'{"traceback": "died"}')
    _, status = os.waitpid(child, 0)
    assert "traceback" not in said, said["traceback"]
    assert status == 0
    assert len(said.get("text", "")) < 2000
    return said


def _judge(what: str, path: Path, state: Path, extra: str) -> dict[str, Any]:
    memory = Memory(state)
    try:
        if what == "proof":
            verdict = verify_proof(path.read_bytes(), b"{}", vkey=extra or None, memory=memory)
        else:
            kept = Path(extra).read_bytes() if extra else None
            verdict = verify_log(path, memory=memory, checkpoint=kept, content=what == "content")
    except AuditError as e:
        return {"error": type(e).__name__, "text": str(e)}
    assert all(len(f.text) < 2000 for f in verdict.findings)
    said = verdict.as_dict()
    return said | {"issues": said["issues"][:100]}


def judge_log(case: Case, **options: str) -> dict[str, Any]:
    assert case.memory.folder is not None
    return judge(options.get("what", "log"), case.folder, case.memory.folder, options.get("extra", ""))


def _last(case: Case) -> str:
    return case.segments()[-1]


# -- segments ----------------------------------------------------------------------------------------------------------

LINES: dict[str, bytes] = {
    "deep arrays": b"[" * 200_000,
    "deep arrays that fit": b"[" * 65_000,
    "deep objects": b'{"a":' * 13_000,
    "a line of 20 MB": b"x" * 20_000_000,
    "NUL": bytes(5000),
    "not UTF-8": b'{"v":1,"log":"\xff\xfe"}',
    "a lone surrogate": b'{"v":1,"log":"\\ud800"}',
    "10,000 digits": b'{"v":' + b"1" * 10_000 + b"}",
    "a huge exponent": b'{"v":1e999999999}',
    "empty": b"",
    "2 million empty lines": b"\n" * 2_000_000,
    "not an object": b"null",
}


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_hostile_line(case: Case, name: str) -> None:
    """In place of a signed one in a sealed segment, and after the end of the growing one."""
    line = case.line(20)
    case.replace_line(20, LINES[name])
    said = judge_log(case)
    assert said["exit_code"] == 6
    first = min(i["index"] for i in said["issues"] if "index" in i)
    assert first == 20
    assert (line.file, line.offset) in {(i.get("file"), i.get("offset")) for i in said["issues"]}


@pytest.mark.parametrize("name", sorted(LINES))
def test_a_hostile_tail(case: Case, name: str) -> None:
    case.put(_last(case), case.read(_last(case)) + LINES[name] + b"\n")
    said = judge_log(case)
    assert said["exit_code"] == 3
    assert [i["index"] for i in said["issues"]] == [case.size]


@pytest.mark.parametrize("name", ["deep arrays that fit", "a lone surrogate", "10,000 digits", "a huge exponent", "NUL"])
def test_a_hostile_line_that_was_signed(case: Case, name: str) -> None:
    """With the keys: root and head agree with it, the grammar does not."""
    case.replace_line(20, LINES[name])
    case.resign(mark=True)
    said = judge_log(case)
    assert said["exit_code"] == 6
    assert 20 in [i.get("index") for i in said["issues"] if i["issue"] == "checksum_mismatch"]


def test_a_sparse_segment_of_a_terabyte(case: Case) -> None:
    (case.folder / _last(case)).chmod(0o600)
    with (case.folder / _last(case)).open("r+b") as file:
        file.truncate(1 << 40)
    assert judge_log(case)["exit_code"] == 3


OWN_DETAILS: dict[str, Any] = {
    "archived: parts is a number": ("log.archived", {"parts": 7}),
    "archived: a part is a number": ("log.archived", {"parts": [7]}),
    "archived: a part is null": ("log.archived", {"parts": [None]}),
    "archived: more than there is": ("log.archived", {"parts": [{"first": 0, "end": 2**63, "name": "x"}]}),
    "archived: true is not 1": ("log.archived", {"parts": [{"first": False, "end": True, "name": "x"}]}),
    "archived: nothing": ("log.archived", {}),
    "recovered: text": ("log.recovered", {"first": "1", "end": "2"}),
    "recovered: everything": ("log.recovered", {"first": 1, "end": 40}),
    "recovered: payloads are a number": ("log.recovered", {"first": 1, "end": 1, "missing_payloads": 5}),
    "epoch_close: no key": ("log.epoch_close", {}),
    "epoch_close: a key that is none": ("log.epoch_close", {"next_key": "+" * 10_000}),
    "created: twice": ("log.created", {"epoch_key": "x"}),
    "config: a number": ("log.config", {"sha256": 5}),
}


@pytest.mark.parametrize("name", sorted(OWN_DETAILS))
@pytest.mark.parametrize("signed", [False, True])
def test_hostile_lifecycle_lines(case: Case, name: str, signed: bool) -> None:
    """They are read before any signature is believed, because they name the key."""
    kind, details = OWN_DETAILS[name]
    own = ent.decode(case.line(0).data)
    fields = {n: getattr(own, n) for n in ent.FIELD_NAMES} | {"event_type": kind, "details": details}
    line = ent.encode(ent.Fields(**fields))
    case.replace_line(30, line)
    if signed:
        case.resign(mark=True)
    said = judge_log(case)
    assert said["exit_code"] == 6


# -- heads, trees, keys ------------------------------------------------------------------------------------------------


def _head(case: Case, size: int | str, signer: SignerKey | None = None) -> bytes:
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    text = case.read("checkpoint").split(b"\n")
    if isinstance(size, int) and signer is not None:
        return sign_checkpoint(Checkpoint(origin, size, bytes(31) + b"x"), signer)
    text[1] = str(size).encode()
    return b"\n".join(text)


@pytest.mark.parametrize(("size", "signed"), [
    (0, False), *((size, signed) for size in (1, 51, 10**6, 2**40, 2**62, 2**63 - 1) for signed in (False, True))])  # fmt: skip
def test_heads_of_any_size(case: Case, size: int, signed: bool) -> None:
    case.put("checkpoint", _head(case, size, KeyFolder(case.keys).epoch_key(0) if signed else None))
    said = judge_log(case)
    assert said["exit_code"] == 6
    if size > 51 and signed:
        assert any(i["issue"] == "missing" and i["end"] == size for i in said["issues"])


@pytest.mark.parametrize("beyond", [10**6, 10**15, 2**62])
def test_a_gap_as_large_as_one_likes(case: Case, beyond: int) -> None:
    """A head of any size over a segment named as if it began far on: said in a range, not built in memory."""
    last = _last(case)
    (case.folder / last).rename(case.folder / f"segments/{beyond:020d}.jsonl")
    case.put("checkpoint", _head(case, 2**63 - 1, KeyFolder(case.keys).epoch_key(0)))
    said = judge_log(case)
    assert said["exit_code"] == 6
    assert (int(Path(last).stem), beyond) in {(i.get("index"), i.get("end")) for i in said["issues"]}


NOTES: dict[str, Callable[[bytes], bytes]] = {
    "10 MB": lambda note: note + b"x" * 10_000_000,
    "10,000 signatures": lambda note: note + note.split(b"\n\n")[1] * 10_000,
    "64 foreign signatures": lambda note: note + "".join(
        SignerKey.generate("a.example").sign(b"x") and f"— a{i}.example {'AAAAAAAA' * 11}\n" for i in range(64)).encode(),
    "control characters": lambda note: note.replace(b"\n", b"\x07\n", 1),
    "CRLF": lambda note: note.replace(b"\n", b"\r\n"),
    "NUL": lambda note: note + b"\0",
    "leading zero": lambda note: note.replace(b"\n5", b"\n05", 1),
    "plus": lambda note: note.replace(b"\n5", b"\n+5", 1),
    "size 2^64": lambda note: b"\n".join([note.split(b"\n")[0], b"18446744073709551616", *note.split(b"\n")[2:]]),
    "10,000 digits": lambda note: b"\n".join([note.split(b"\n")[0], b"9" * 10_000, *note.split(b"\n")[2:]]),
    "arabic digits": lambda note: b"\n".join([note.split(b"\n")[0], "٥٠".encode(), *note.split(b"\n")[2:]]),
    "not UTF-8": lambda note: b"\xff" + note,
    "empty": lambda note: b"",
    "newlines": lambda note: b"\n" * 100,
    "no signature": lambda note: note.split(b"\n\n")[0] + b"\n\n",
    "a lone dash": lambda note: note.split(b"\n\n")[0] + "\n\n— \n".encode(),
    "base64 with a space": lambda note: note.replace(b"=\n", b"= \n", 1),
    "another empty line": lambda note: note.replace(b"\n\n", b"\n\n\n", 1),
    "an extension line of 1 MB": lambda note: note.replace(b"\n\n", b"\n" + b"x" * 1_000_000 + b"\n\n", 1),
}  # fmt: skip


UNDONE = ("CRLF", "NUL", "another empty line", "base64 with a space", "64 foreign signatures")  # where a mail was saved


@pytest.mark.parametrize("name", sorted(NOTES))
def test_hostile_heads(case: Case, name: str) -> None:
    case.put("checkpoint", NOTES[name](case.read("checkpoint")))
    said = judge_log(case)
    assert said["exit_code"] == 6
    assert "bad_signature" in {i["issue"] for i in said["issues"]} or name == "64 foreign signatures"


@pytest.mark.parametrize("name", sorted(NOTES))
def test_hostile_checkpoints_handed_in(case: Case, name: str, tmp_path: Path) -> None:
    """Malformed input that was handed in is not the log's fault: 4, and the rest of the log is judged all the same. What mail
    programs do to lines is undone; then the signature decides."""
    (tmp_path / "note").write_bytes(NOTES[name](case.read("checkpoint")))
    said = judge_log(case, extra=str(tmp_path / "note"))
    if name in UNDONE and said["exit_code"] == 0:
        assert said["anchored_until"] == case.size
        return
    assert said["exit_code"] == 4, said
    assert [i["issue"] for i in said["issues"]] == ["malformed"]


@pytest.mark.parametrize("name", sorted(NOTES))
def test_hostile_vkey_files(case: Case, name: str) -> None:
    hostile = NOTES[name](case.read("log.vkey").replace(b"\n1\n", b"\n51\n"))
    case.put("log.vkey", hostile)
    assert judge_log(case)["exit_code"] == 6


@pytest.mark.parametrize("name", sorted(NOTES))
def test_hostile_kept_checkpoints(case: Case, name: str) -> None:
    (case.folder / "checkpoints" / "51").write_bytes(NOTES[name](case.read("checkpoint")))
    said = judge_log(case)
    assert said["exit_code"] == 6
    assert {i["file"] for i in said["issues"]} == {"checkpoints/51"}


@pytest.mark.parametrize("data", [b"", b"x", bytes(8192), b"1 " * 600, b"9" * 5000 + b" a 1 x 0 y\n", b"\xff" * 9000])
def test_hostile_marks(case: Case, data: bytes) -> None:
    """No slot that can be read: what was last signed is not known here, and that is said."""
    (case.keys / "mark").write_bytes(data)
    said = judge_log(case)
    assert said["exit_code"] == 0
    assert any("mark" in text for text in said["not_proven"])


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b"format = 1\n" * 3, b'format = 1e400\norigin = ""\n',
                                  b"a = " + b"1" * 10_000, b"x" * 10_000_000, b'origin = "x"\n[keys]\n'])  # fmt: skip
def test_hostile_settings(case: Case, data: bytes) -> None:
    case.put("log.toml", data)
    assert judge_log(case)["exit_code"] == 6


@pytest.mark.parametrize("keys", ["/dev", "../../../../../../etc", "nowhere", "", "\\u0000"])
def test_settings_that_lead_elsewhere(case: Case, keys: str) -> None:
    case.put("log.toml", case.read("log.toml").replace(b"../audit_log.keys", keys.encode()))
    said = judge_log(case)
    assert said["exit_code"] in (0, 6)
    if said["exit_code"] == 0:
        assert any("log.toml" in text for text in said["not_proven"])


# -- files that are none -----------------------------------------------------------------------------------------------

TARGETS = ["log.toml", "log.vkey", "checkpoint", "tree/0", "tree/1", "index.db", "keylines.jsonl", "checkpoints/9",
           "segments/first", "segments/last", "payloads/first", "segments", "tree", "payloads", "checkpoints"]  # fmt: skip


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to a FIFO", "link to itself", "link to /dev/zero", "a file"])
@pytest.mark.parametrize("target", TARGETS)
def test_something_else_instead_of_a_file(case: Case, target: str, kind: str, tmp_path: Path) -> None:
    name = {"segments/first": case.segments()[0], "segments/last": _last(case),
            "payloads/first": next(f for f in case.files() if f.startswith("payloads/"))}.get(target, target)  # fmt: skip
    path = case.folder / name
    if path.exists():
        path.rename(tmp_path / "away")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a FIFO":
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to(tmp_path / "fifo")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"x\n" * 100)
    said = judge_log(case)
    if (target, kind) == ("tree", "folder"):  # an empty one: derived, comes back
        assert said["exit_code"] == 0
        return
    harmless = target in ("index.db", "checkpoints") or (target in ("tree/1", "keylines.jsonl", "checkpoints/9", "tree/0"))
    assert said["exit_code"] in ((0, 2, 6) if harmless else (2, 6)), said
    if not harmless:
        assert said["exit_code"] == 6 or kind != "folder", said


@pytest.mark.parametrize("kind", ["FIFO", "link to a FIFO", "link to itself", "link to /dev/zero"])
@pytest.mark.parametrize("target", ["mark", "log.key", "epoch-0.key", "slots"])
def test_something_else_instead_of_a_key(case: Case, target: str, kind: str, tmp_path: Path) -> None:
    """Nobody waits for ever for a key that never comes."""
    path = case.keys / (next(p.name for p in case.keys.iterdir() if p.suffix == ".slots") if target == "slots" else target)
    path.unlink()
    if kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    else:
        fifo = path if kind == "FIFO" else tmp_path / "fifo"
        os.mkfifo(fifo)
        if fifo != path:
            path.symlink_to(fifo)
    said = judge_log(case)
    assert (said["exit_code"], said["issues"][0]["file"]) == (6, f"{case.keys.name}/{path.name}")


# -- proofs ------------------------------------------------------------------------------------------------------------

PROOF = b"c2sp.org/tlog-proof@v1\nindex 5\n"
PROOFS = {
    "empty": b"",
    "10 MB": b"c2sp.org/tlog-proof@v1\n" + b"x" * 10_000_000,
    "a million hashes": PROOF + b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n" * 20_000 + b"\n",
    "index 2^64": b"c2sp.org/tlog-proof@v1\nindex 18446744073709551616\n\n",
    "10,000 digits": b"c2sp.org/tlog-proof@v1\nindex " + b"1" * 10_000 + b"\n\n",
    "leading zero": b"c2sp.org/tlog-proof@v1\nindex 05\n\n",
    "CRLF": PROOF.replace(b"\n", b"\r\n") + b"\r\n",
    "no checkpoint": PROOF + b"\n",
    "an empty extra": b"c2sp.org/tlog-proof@v1\nextra \nindex 5\n\n",
    "not base64": PROOF + b"!!!!\n\n",
    "NUL": PROOF + b"\0\n\n",
    "not UTF-8": b"\xff" * 1000,
    "newlines": b"\n" * 1_000_000,
}


@pytest.mark.parametrize("name", sorted(PROOFS))
@pytest.mark.parametrize("end", ["nothing", "a checkpoint"])
def test_hostile_proofs(case: Case, name: str, end: str, tmp_path: Path) -> None:
    data = PROOFS[name] + (case.read("checkpoint") if end == "a checkpoint" else b"")
    if name == "no checkpoint" and end == "a checkpoint":
        data = data.replace(b"index 5", b"index 99")  # well-formed, and of no entry of that tree
    assert case.memory.folder is not None
    vkey = case.read("log.vkey").split(b"\n")[0].decode()
    (tmp_path / "proof").write_bytes(data)
    if name in ("10 MB", "a million hashes", "newlines"):
        said = judge("proof", tmp_path / "proof", case.memory.folder, vkey)
        assert said.get("error") == "Malformed"
        return
    try:
        verdict = verify_proof(data, b"{}", vkey=vkey, memory=case.memory)
    except Malformed:
        return
    assert verdict.exit_code == 6


def test_every_byte_of_a_proof(case: Case) -> None:
    """No flipped bit leaves a proof that holds."""
    from tallystick.core.merkle import leaf_hash
    from tallystick.core.tiles import prove_inclusion

    lines = [line.data for line in case.lines()]

    def read(level: int, start: int, count: int) -> bytes:
        assert level == 0
        return b"".join(leaf_hash(x) for x in lines[start : start + count])

    key = KeyFolder(case.keys).log_key()
    origin = case.read("checkpoint").split(b"\n")[0].decode()
    head = Checkpoint(origin, case.size, bytes.fromhex(case.verify().root))
    whole = InclusionProof(7, tuple(prove_inclusion(read, 7, case.size)), sign_checkpoint(head, key)).format()
    vkey = key.verifier.format()
    assert verify_proof(whole, lines[7], vkey=vkey, memory=case.memory).exit_code == 0
    assert verify_proof(whole, lines[8], vkey=vkey, memory=case.memory).exit_code == 6
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        try:
            verdict = verify_proof(bytes(data), lines[7], vkey=vkey, memory=case.memory)
        except Malformed:
            continue
        assert verdict.exit_code == 6, at


# -- the memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "x", "[]", "{\"a\":", "{\"a\":{}}", "null", "[" * 100_000, "\xff", "{\"a\":{\"size\":1e99}}"])
def test_a_broken_memory_is_an_error_and_no_empty_one(case: Case, text: str) -> None:
    assert case.memory.path is not None
    case.memory.path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="known_logs"):
        case.verify()
    assert case.memory.path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(("field", "value"), [
    ("root", "zz"), ("root", ""), ("root", "00"), ("size", -1), ("size", 2**63), ("size", 2**70), ("vkey", ""),
    ("vkey", "++"), ("genesis", ""), ("origin", "x"), ("full_size", -5),
])  # fmt: skip
def test_a_memory_with_impossible_values(case: Case, field: str, value: Any) -> None:
    path = case.memory.path
    assert path is not None
    text = json.loads(path.read_text())
    for known in text.values():
        known[field] = value
    path.write_text(json.dumps(text))
    try:
        verdict = case.verify()
    except AuditError:
        return
    assert verdict.exit_code in (0, 6)
    assert verdict.exit_code == 6 or field in ("genesis", "full_size", "size")


def test_no_memory_at_all(case: Case) -> None:
    assert verify_log(case.folder, memory=Memory(None)).exit_code == 3


# -- payloads ----------------------------------------------------------------------------------------------------------


def _frame(body: bytes, length: int | None = None) -> bytes:
    data = b"TPL1" + (len(body) if length is None else length).to_bytes(4, "big") + body
    return data + zlib.crc32(data).to_bytes(4, "big")


FRAMES = {
    "a name longer than the frame": _frame(b"\xff" + bytes(60)),
    "an id longer than the frame": _frame(b"\x01a\xff" + bytes(60)),
    "a name that is not ASCII": _frame(b"\x02\xff\xff\x01a" + bytes(60)),
    "shorter than a nonce": _frame(b"\x01a\x01b" + bytes(44)),
    "4 GB": _frame(b"x" * 60, 2**32 - 1),
    "no frame": b"x" * 5000,
    "nothing": b"",
}


@pytest.mark.parametrize("name", sorted(FRAMES))
@pytest.mark.parametrize("where", ["instead", "before", "after", "another part"])
def test_hostile_payload_frames(case: Case, name: str, where: str) -> None:
    file = next(f for f in case.files() if f.startswith("payloads/"))
    data = case.read(file)
    if where == "another part":
        (case.folder / file.replace(".seg", ".1.seg")).write_bytes(FRAMES[name])
    else:
        case.put(file, {"instead": FRAMES[name], "before": FRAMES[name] + data, "after": data + FRAMES[name]}[where])
    said = judge_log(case)
    if where in ("instead", "before") and not (where == "before" and name in ("nothing",)):
        assert said["exit_code"] in (0, 6)
        assert said["exit_code"] == 6 or where == "before", said  # a whole frame before the others hides none of them
    else:
        assert said["exit_code"] == 0, said


@pytest.mark.parametrize("left", range(31))
def test_a_frame_with_the_right_names_and_hardly_any_content(case: Case, left: int) -> None:
    """The newest frame of a name counts: this one, which nobody can open."""
    file = next(f for f in case.files() if f.startswith("payloads/"))
    line = next(x for x in case.lines() if b'"payloads":' in x.data)
    fields = ent.decode(line.data)
    name, event_id = next(iter(fields.payloads)).encode(), fields.event_id.encode()
    body = bytes([len(name)]) + name + bytes([len(event_id)]) + event_id + bytes(left)
    case.put(file, case.read(file) + _frame(body))
    said = judge_log(case)
    if len(body) >= 48:
        assert [(i["issue"], i["index"]) for i in said["issues"]] == [("checksum_mismatch", line.index)]
    assert said["exit_code"] == (6 if len(body) >= 48 else 0)


@pytest.mark.parametrize("data", [b"", b"x" * 63, bytes(64 * 100), b"TSL1" * 1600])
def test_hostile_key_slots(case: Case, data: bytes) -> None:
    """Content that cannot be opened any more, without a record of that, is missing."""
    (slots,) = case.keys.glob("payload-*.slots")
    slots.write_bytes(data)
    said = judge_log(case)
    assert said["exit_code"] == 6
    assert {i["issue"] for i in said["issues"]} == {"missing"}
