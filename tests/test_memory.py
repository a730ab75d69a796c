"""What a user knows of logs: what an older version wrote, and whose cosignatures count."""

from __future__ import annotations

import json

import pytest

from tallystick.core.cosignature import ALGORITHMS, CosignerKey
from tallystick.core.errors import ConfigError, VerificationError
from tallystick.memory import Known, Memory, pin_witness

A, B = (CosignerKey("w.example/1", ALGORITHMS[0], bytes([n]) * 32).verifier.format() for n in (1, 2))


def known(size: int = 3) -> Known:
    return Known("example/log", "v", "00", size, "11", 5)


def test_what_an_older_version_wrote_still_reads(tmp_path):
    old = {k: v for k, v in json.loads(json.dumps({"origin": "o", "vkey": "v", "genesis": "g", "size": 1, "root": "r",
                                                   "seen_us": 2, "full_size": 0, "full_us": 0})).items()}  # fmt: skip
    (tmp_path / "known_logs.json").write_text(json.dumps({str(tmp_path / "log"): old}))
    assert Memory(tmp_path).get(tmp_path / "log").witnesses == {}


def test_a_pinned_witness_stays_when_more_is_proven(tmp_path):
    memory, log = Memory(tmp_path / "state"), tmp_path / "log"
    memory.put(log, known())
    pin_witness(memory, log, "kanzlei", A)
    pin_witness(memory, log, "kanzlei", A)
    memory.put_proven(log, known(9))
    assert memory.get(log) == Known("example/log", "v", "00", 9, "11", 5, witnesses={"kanzlei": A})
    assert memory.unpin_witness(log, "kanzlei") and not memory.unpin_witness(log, "kanzlei")
    assert memory.get(log).witnesses == {}


def test_a_pin_is_never_replaced_and_a_key_counts_once(tmp_path):
    memory, log = Memory(tmp_path / "state"), tmp_path / "log"
    memory.put(log, known())
    pin_witness(memory, log, "kanzlei", A)
    with pytest.raises(VerificationError, match="another key"):
        pin_witness(memory, log, "kanzlei", B)
    with pytest.raises(VerificationError, match="as the witness kanzlei"):
        pin_witness(memory, log, "second", A)
    assert memory.get(log).witnesses == {"kanzlei": A}


def test_where_nothing_can_be_remembered_nothing_is_pinned(tmp_path):
    with pytest.raises(ConfigError, match="tally trust"):
        pin_witness(Memory(tmp_path / "state"), tmp_path / "log", "kanzlei", A)
    with pytest.raises(ConfigError, match="--policy"):
        pin_witness(Memory(None), tmp_path / "log", "kanzlei", A)
