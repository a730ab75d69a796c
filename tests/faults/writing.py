"""A program that writes until it is killed: ``python -m tests.faults.writing FOLDER``. Prints each id when it has it."""

import sys
from pathlib import Path

from tallystick import AuditLogger

from .judge import event


def main() -> None:
    log = AuditLogger(Path(sys.argv[1]), create=False)
    for n in range(1_000_000):
        if n % 5 == 4:
            ids = log.log_many([event(n), event(n + 1)])
        else:
            ids = [log.log(**event(n, payloads={"a": f"text {n}" * 20} if n % 2 else None, subject=f"s{n % 3}"))]
        sys.stdout.write("".join(f"{i}\n" for i in ids))
        sys.stdout.flush()


main()
