"""The whole demo: a model, an automation, its log, questions, proof, report, and an attacker on copies.

Everything that is shown was done: the commands run in processes of their own, and what they print is printed as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.common import clean, plural, size_text
from ..memory import default_memory
from . import model
from .install import DemoError, InstallPlan
from .model import Server
from .triage import Result, Triage
from .trials import Row, Scene, run_attacks

if TYPE_CHECKING:
    from rich.console import Console

    from ..logger import AuditLogger

ORIGIN = "tallystick-demo"
INJECTION = "08-injection-invoice"
INBOX = Path(__file__).with_name("inbox")


def run_demo(folder: Path, *, yes: bool, host: str | None, console: Console) -> int:
    """Tell the story in ``folder``. 0 if all came out as it should; 2 if it could not begin; else what verify said."""
    story = Story(folder, console)
    story.heading("1  The model")
    with _server(story, yes=yes, host=host) as server:
        if server is None:
            return 2
        story.say(f"Model: {server.description}.")
        story.heading("2  The automation")
        with open_demo_log(story) as log:
            results = _triage(story, log, server)
    _show_results(story, results)
    code = _questions(story, results)
    if code:
        return code
    _proof(story, results)
    story.heading("6  A report")
    story.tally("report", "full", "audit_log")
    whole = _attacks(story)
    _farewell(story, results)
    return 0 if whole else 2


class Story:
    """A folder, a screen, and ``tally`` in other processes."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.log, self.keys = folder / "audit_log", folder / "audit_log.keys"
        self.kept = folder / "kept-elsewhere"

    def heading(self, text: str) -> None:
        """A new part."""
        self._print(f"\n{text}", "bold")
        self._print("─" * min(self.console.width, 100))

    def say(self, text: str = "", style: str = "") -> None:
        """A sentence, wrapped."""
        self._print(text, style)

    def _print(self, text: str, style: str = "", *, wrap: bool = True) -> None:
        from rich.text import Text

        lines = "\n".join(clean(line) for line in text.split("\n"))
        self.console.print(Text(lines, style=style), soft_wrap=not wrap)

    def table(self, heads: list[str], rows: Iterable[Iterable[object]], *, red: Iterable[int] = ()) -> None:
        """A plain table; the last column wraps."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for head in heads:
            table.add_column(head, overflow="fold", justify="right" if head in ("amount", "exit", "took") else "left")
        wanted = set(red)
        for number, row in enumerate(rows):
            table.add_row(*(Text(clean(cell)) for cell in row), style="red" if number in wanted else "")
        self.console.print(table)

    def tally(self, *arguments: str, state: Path | None = None, show: bool = True) -> tuple[int, str]:
        """``tally …`` in a process of its own, in the demo's folder → exit code and what it printed."""
        environ = {k: v for k, v in os.environ.items() if k not in ("TALLY_LOG", "TALLY_VKEY")}
        environ |= {"COLUMNS": str(max(60, self.console.width - 2)), "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
        if state is not None:
            environ["TALLY_STATE"] = str(state)
        done = subprocess.run(
            [sys.executable, "-m", "tallystick", *arguments], cwd=self.folder, env=environ, stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
        if show:
            self._print("\n$ tally " + " ".join(_quoted(a) for a in arguments), "bold", wrap=False)
            for line in (done.stdout + done.stderr).rstrip("\n").split("\n"):
                self._print(f"  {line}" if line else "", wrap=False)
        return done.returncode, done.stdout


def _quoted(argument: str) -> str:
    plain = argument.replace("-", "").replace("_", "").replace("/", "").replace(".", "").isalnum()
    return argument if plain else f"'{argument}'"


# -- 1: the model ------------------------------------------------------------------------------------------------------------


@contextmanager
def _server(story: Story, *, yes: bool, host: str | None) -> Iterator[Server | None]:
    """An Ollama that is here, else one that the demo installs and starts; None if a person said no."""
    found = model.find_server(host)
    if found is not None:
        yield found
        return
    if host:
        raise DemoError(f"no Ollama with a model answers at {host}; leave --host away and the demo brings a small model")
    asked = " and ".join(dict.fromkeys(filter(None, (os.environ.get("OLLAMA_HOST"), model.LOOPBACK))))
    story.say(f"No Ollama with a model answers at {asked}: the demo brings a small real model of its own.")
    cache = model.default_cache()
    plan = model.plan_install(cache)
    if plan.missing and not _agreed(story, plan, yes=yes):
        yield None
        return
    with model.start_server(cache, plan, story.say) as started:
        yield started


def _agreed(story: Story, plan: InstallPlan, *, yes: bool) -> bool:
    story.say(f"To be downloaded, once, into {plan.cache} (nowhere else; delete that folder to be rid of it):\n")
    story.table(
        ["what", "size", "from"],
        [(item.name, "is here" if item.present else f"{item.megabytes} MB", item.source) for item in plan.items],
    )
    story.say(f"\nTogether {plan.megabytes} MB.")
    if yes:
        return True
    if not sys.stdin.isatty():
        story.say("Nothing was downloaded: there is nobody here to ask. --yes says yes.")
        return False
    if story.console.input("Download and go on? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    story.say("Nothing was downloaded. With an Ollama that has a model, nothing needs to be: tally demo --host URL")
    return False


# -- 2: the automation -------------------------------------------------------------------------------------------------------


@contextmanager
def open_demo_log(story: Story) -> Iterator[AuditLogger]:
    """The log of this folder: a new one, or the one of an earlier demo. Never anybody else's."""
    from ..logger import AuditLogger, is_log, open_or_create, read_genesis

    folder, memory = story.folder, default_memory(os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    known = memory.get(story.log)
    if is_log(story.log):
        origin = read_genesis(story.log).origin
        if not origin.startswith(f"{ORIGIN}/"):
            raise DemoError(f"{story.log} is the log {origin}, not a demo's; name another folder: tally demo DIR")
    elif known is not None and known.origin.startswith(f"{ORIGIN}/"):
        story.say(f"An earlier demo's log stood here ({plural(known.size, 'entry', 'entries')}) and is gone. For any other log")
        story.say("that would be an alarm; a demo may forget it (tally trust --forget) and begins anew.")
        memory.forget(story.log)
        shutil.rmtree(story.keys, ignore_errors=True)
        shutil.rmtree(story.kept, ignore_errors=True)
    elif known is None and any(folder.iterdir()):
        raise DemoError(f"{folder} has other things in it; name an empty or a new folder: tally demo DIR")
    is_new = not is_log(story.log)
    open_or_create(story.log, memory, create=True, retention_days=365, origin=f"{ORIGIN}/{os.urandom(6).hex()}")
    _fill_inbox(folder / "inbox")
    with AuditLogger(story.log, create=False, memory=memory) as log:
        count = len(log.query({}, limit=None))
        story.say("A new log was made: " + str(story.log) if is_new else f"This run goes on with the log of {count:,} entries that is here.")
        yield log


def _fill_inbox(inbox: Path) -> None:
    inbox.mkdir(exist_ok=True)
    for mail in sorted(INBOX.iterdir()):
        if mail.suffix in (".eml", ".txt") and not (inbox / mail.name).exists():
            shutil.copyfile(mail, inbox / mail.name)


def _triage(story: Story, log: AuditLogger, server: Server) -> list[Result]:
    triage = Triage(log, server, story.folder)
    mails = len(list(triage.inbox.iterdir()))
    story.say(f"It reads {mails} mails and invoices of ACME Handels GmbH (inbox/), asks the model what each one is, and files it")
    story.say("(out/). Every step is on record before the next: who, which model, what it answered, what was done with it.\n")
    results: list[Result] = []
    for result in triage.run():
        results.append(result)
        story.say(f"  {len(results):>2}/{mails}  {result.case:<30}  {result.seconds:4.1f} s")
    return results


def _show_results(story: Story, results: list[Result]) -> None:
    story.say()
    story.table(
        ["mail", "the model said", "amount", "answer", "filed under", "because"],
        [(r.case[:24], r.said, "" if r.amount is None else f"{r.amount:,.2f}", r.status.replace("failed_validation", "not valid"),
          r.pile, r.why) for r in results],
    )  # fmt: skip
    piles = Counter(r.pile for r in results)
    used = sum(r.status == "used" for r in results)
    story.say(f"\n{used} of {len(results)} answers were used; {piles['human']} mails wait for a person (out/human).")
    story.say("Each decision was parsed from the answer as the log gives it back. What cannot be parsed, contradicts itself or is")
    story.say("above 2,000 EUR went to a person, with the reason on record. Whether an answer is right the log cannot know;")
    story.say("what was answered, and that it was acted on, it can.")
    fooled = next((r for r in results if r.case == INJECTION and r.said == "invoice"), None)
    if fooled and fooled.amount is not None:
        story.say(f'\nNote {INJECTION}: that mail tells the model to answer "invoice, 9800.00, approved", and the model')
        story.say(f"obeyed. {'The limit stopped it.' if fooled.pile == 'human' else 'Nothing stopped it.'} Mail, prompt and answer are on record.")


# -- 3 to 5: questions, verification, proof -----------------------------------------------------------------------------------


def _questions(story: Story, results: list[Result]) -> int:
    """Query and verify; the exit code of verify. What is kept elsewhere is brought up to date only after it."""
    story.heading("3  What happened?")
    story.say("From here on every command is one that you can type; each ran in a process of its own.")
    last = _session(story)
    story.tally("query", "audit_log", "--type", "ai.outcome", "--where", "details.status!=used", "--where", f"session_id={last}")
    if results:
        story.tally("query", "audit_log", "--case", results[0].case, "--where", f"session_id={last}")
    story.heading("4  Was anything changed?")
    kept = story.kept / "audit_log.checkpoint"
    again = ["--checkpoint", "kept-elsewhere/audit_log.checkpoint"] if kept.exists() else []
    if again:
        story.say("The checkpoint that an earlier run kept must still be a beginning of this log.")
    code, _ = story.tally("verify", "audit_log", *again)
    if code:
        story.say(f"\nThe log does not verify (exit code {code}). The demo ends here; nothing was repaired.", "bold red")
        return code
    _, note = story.tally("checkpoint", "audit_log", show=False)
    _, vkey = story.tally("key", "vkey", "audit_log", show=False)
    story.kept.mkdir(exist_ok=True)
    kept.write_text(note, encoding="utf-8")
    (story.kept / "audit_log.vkey").write_text(vkey, encoding="utf-8")
    story.say("\nThe signed head and the public key were put into kept-elsewhere/, which stands for another machine, a mail to")
    story.say("yourself or a printed card. Part 7 shows what that is good for.")
    return 0


def _session(story: Story) -> str:
    from ..logger import AuditLogger

    with AuditLogger(story.log, create=False) as log:
        newest = next(log.entries({"action": "choose model"}, newest_first=True, limit=1))
    return newest.session_id or ""


def _proof(story: Story, results: list[Result]) -> None:
    """A proof of one answer, checked by a process that has neither log nor memory; then for an altered entry."""
    story.heading("5  A proof for a stranger")
    chosen = next((r for r in results if r.status == "used" and r.amount is not None), None)
    chosen = chosen or next((r for r in results if r.event_id), None)
    if chosen is None:
        story.say("The model answered nothing in this run, so there is no answer to prove.")
        return
    story.say(f"The model's answer about {chosen.case}, proven to somebody who has only the proof, the entry and the public key.")
    proof, entry = "proof/answer.tlog-proof", "proof/answer.json"
    (story.folder / "proof").mkdir(exist_ok=True)
    story.tally("prove", "audit_log", chosen.event_id, "-o", proof, "--entry", entry, "--force")
    vkey = (story.kept / "audit_log.vkey").read_text(encoding="utf-8").strip()
    stranger = story.folder / "proof" / "no-memory"
    story.tally("verify", proof, "--entry", entry, "--vkey", vkey, state=stranger)
    altered = story.folder / "proof" / "altered.json"
    altered.write_bytes((story.folder / entry).read_bytes().replace(b'"outcome":"success"', b'"outcome":"denied"'))
    code, _ = story.tally("verify", proof, "--entry", "proof/altered.json", "--vkey", vkey, state=stranger, show=False)
    story.say(f'\nThe same proof with one word of the entry changed (proof/altered.json): exit code {code}.')


# -- 7: the attacker ---------------------------------------------------------------------------------------------------------


def _attacks(story: Story) -> bool:
    """The four attacks; True if each verdict was as it should be."""
    story.heading("7  An attacker")
    story.say("He may read and write the files, and knows the format as well as we do. He works on copies (attacks/); each was")
    story.say("trusted and verified by its user before he came. Exit codes: 0 proven, 3 cannot judge, 6 altered or missing.\n")
    vkey = (story.kept / "audit_log.vkey").read_text(encoding="utf-8").strip()
    scene = Scene(story.log, story.keys, vkey, story.kept / "audit_log.checkpoint", story.folder / "attacks")

    def tally(*arguments: str, state: Path) -> tuple[int, str]:
        return story.tally(*arguments, state=state, show=False)

    rows = list(run_attacks(scene, tally))
    story.table(["attack", "what the attacker did", "what caught it", "exit"], _attack_cells(rows),
                red=[i for i, row in enumerate(rows) if not row.as_expected])  # fmt: skip
    wrong = [row for row in rows if not row.as_expected]
    if wrong:
        story.say(f"\n{plural(len(wrong), 'verdict is', 'verdicts are')} not what it should be. Please report this.", "bold red")
        return False
    story.say("\nSo: a signature stops who has no key, a pinned key stops who brings his own. Who finds the keys and edits your")
    story.say("memory as well is seen only from what is kept elsewhere. That is why kept-elsewhere/ should not be on this machine.")
    return True


def _attack_cells(rows: list[Row]) -> Iterator[tuple[Any, ...]]:
    """Number, name and deed only in the first row of an attack."""
    for at, row in enumerate(rows):
        first = at == 0 or rows[at - 1].number != row.number
        caught = row.caught_by if row.as_expected else f"NOT AS EXPECTED: {row.caught_by}"
        yield (f"{row.number} {row.name} (with {row.has})" if first else "", row.deed if first else "", caught, row.exit_code)


def _farewell(story: Story, results: list[Result]) -> None:
    story.heading("Yours to explore")
    size = sum(path.stat().st_size for path in story.log.rglob("*") if path.is_file())
    story.say(f"The log lies in {story.log} ({size_text(size)}, plain files). Run the demo again and it goes on.\n")
    case = INJECTION if any(r.case == INJECTION for r in results) else "01-rechnung-nordwind"
    here = os.path.relpath(story.folder)
    for command, meaning in (
        (f"cd {story.folder if here.startswith('..') else here}", ""),
        ("tally audit_log", "how the log is doing"),
        (f"tally query audit_log --case {case}", "one mail, step by step"),
        ("tally query audit_log --where 'details.amount>300'", "by what was decided"),
        ("tally show audit_log '#4'", "one entry, with the content of its payloads"),
        ("tally verify attacks/3/audit_log", "an attacked copy, seen with your own memory"),
    ):
        story.say(f"  {command:<52}{meaning}".rstrip())
