"""The whole demo: a model, an automation, its log, questions, proof, report, and an attacker on copies.

Everything that is shown was done: the commands run in processes of their own, and what they print is printed as it is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.common import clean, plural, size_text
from ..memory import default_memory
from . import model
from .install import DemoError, InstallPlan
from .mail import list_inbox
from .model import Server
from .triage import HUMAN, LIMIT_EUR, Result, Triage
from .trials import Row, Scene, run_attacks

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ..logger import AuditLogger

_TRAILING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
ORIGIN = "tallystick-demo"
INJECTION = "08-injection-invoice"
INBOX = Path(__file__).with_name("inbox")


def run_demo(folder: Path, *, yes: bool, host: str | None, console: Console) -> int:
    """Tell the story in ``folder``. 0 if all came out as it should; 2 if it could not begin; else what verify said."""
    story = Story(folder, console)
    check_folder(story)
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
        self.say(f"\n{text}", "bold")
        self.say("─" * min(self.console.width, 100))

    def say(self, text: str = "", style: str = "", *, wrap: bool = True) -> None:
        """A paragraph; its own line breaks stay."""
        from rich.text import Text

        self._show(Text("\n".join(clean(line) for line in text.split("\n")), style=style), soft_wrap=not wrap)

    def _show(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        """Without the blanks with which rich fills lines."""
        with self.console.capture() as captured:
            self.console.print(what, soft_wrap=soft_wrap)
        self.console.file.write(_TRAILING.sub(r"\1", captured.get()))
        self.console.file.flush()

    def table(
        self, heads: list[str], rows: Iterable[Iterable[object]], *, right: Iterable[int] = (), whole: Iterable[int] = (),
        red: Iterable[int] = (),
    ) -> None:  # fmt: skip
        """A plain table. Columns in ``right`` are numbers, those in ``whole`` are not wrapped."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        numbers, unwrapped, wanted = set(right), set(whole), set(red)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for at, head in enumerate(heads):
            table.add_column(head, justify="right" if at in numbers else "left", no_wrap=at in unwrapped)
        for at, row in enumerate(rows):
            table.add_row(*(Text(clean(cell)) for cell in row), style="red" if at in wanted else "")
        self._show(table)

    def tally(
        self, *arguments: str, state: Path | None = None, show: bool = True, typed: str | None = None
    ) -> tuple[int, str]:  # fmt: skip
        """``tally …`` in a process of its own, in the demo's folder → exit code and what it printed.

        ``typed`` is how a person would type it, where that is shorter.
        """
        environ = {k: v for k, v in os.environ.items() if k not in ("TALLY_LOG", "TALLY_VKEY")}
        environ |= {"COLUMNS": str(max(60, self.console.width - 2)), "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
        if state is not None:
            environ["TALLY_STATE"] = str(state)
        done = subprocess.run(
            [sys.executable, "-m", "tallystick", *arguments], cwd=self.folder, env=environ, stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
        if show:
            self.say("\n$ " + (typed or shlex.join(["tally", *arguments])), "bold", wrap=False)
            for line in (done.stdout + done.stderr).rstrip("\n").split("\n"):
                self.say(f"  {line}".rstrip(), wrap=False)
        return done.returncode, done.stdout


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
        whole=(0, 1),
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


def check_folder(story: Story) -> None:
    """``DemoError`` unless the folder is new, empty, or an earlier demo's: nobody else's log is touched."""
    from ..opening import is_log, read_genesis

    if is_log(story.log):
        origin = read_genesis(story.log).origin
        if not origin.startswith(f"{ORIGIN}/"):
            raise DemoError(f"{story.log} is the log {origin}, not a demo's; name another folder: tally demo DIR")
    elif default_memory(os.environ).get(story.log) is None and story.folder.is_dir() and any(story.folder.iterdir()):
        raise DemoError(f"{story.folder} has other things in it; name an empty or a new folder: tally demo DIR")


@contextmanager
def open_demo_log(story: Story) -> Iterator[AuditLogger]:
    """The log of this folder: a new one, or the one of an earlier demo."""
    from ..logger import AuditLogger
    from ..opening import is_log, open_or_create

    memory = default_memory(os.environ)
    story.folder.mkdir(parents=True, exist_ok=True)
    is_new, known = not is_log(story.log), memory.get(story.log)
    if is_new and known is not None and known.origin.startswith(f"{ORIGIN}/"):
        story.say("An earlier demo's log stood here and is gone. For any other log "
                  "that would be an alarm; the demo forgets it (tally trust --forget) and begins anew.")  # fmt: skip
        memory.forget(story.log)
        for folder in (story.keys, story.kept):
            shutil.rmtree(folder, ignore_errors=True)
    open_or_create(story.log, memory, create=True, retention_days=365, origin=f"{ORIGIN}/{os.urandom(6).hex()}")
    if is_new:  # the decision is parsed from the answer as the log gives it back: so it has to keep answers
        keep_content(story.log)
    _fill_inbox(story.folder / "inbox")
    with AuditLogger(story.log, create=False, memory=memory) as log:
        count = sum(1 for _ in log.entries())
        goes_on = f"This run goes on with the log that is here, of {plural(count, 'event')}: {story.log}"
        story.say(f"A new log was made: {story.log}" if is_new else goes_on)
        yield log


def keep_content(log: Path) -> None:
    """Have a log keep prompts and answers as they are, encrypted: ``[ai] content = "full"`` in its ``log.toml``."""
    path = log / "log.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('content = "commitment"', 'content = "full"      '), encoding="utf-8")


def _fill_inbox(inbox: Path) -> None:
    inbox.mkdir(exist_ok=True)
    for mail in sorted(INBOX.iterdir()):
        if mail.suffix in (".eml", ".txt") and not (inbox / mail.name).exists():
            shutil.copyfile(mail, inbox / mail.name)


def _triage(story: Story, log: AuditLogger, server: Server) -> list[Result]:
    mails = list_inbox(story.folder / "inbox")
    story.say(
        f"It reads {plural(len(mails), 'mail')} and invoices of ACME Handels GmbH (inbox/), asks the model what each one is, and "
        "files it (out/). Every step is on record before the next: who, which model, what it answered, what was done with it.\n"
    )
    results: list[Result] = []
    with Triage(log, server, story.folder) as triage, _waiting(story) as wait:
        wait(mails, 0)
        for result in triage.run():
            results.append(result)
            story.say(f"  {len(results):>2}/{len(mails)}  {result.case:<30}  {result.seconds:4.1f} s")
            wait(mails, len(results))
    return results


@contextmanager
def _waiting(story: Story) -> Iterator[Callable[[list[Path], int], None]]:
    """On a terminal, a line that says what is being waited for."""
    if not story.console.is_terminal:
        yield lambda _mails, _done: None
        return
    with story.console.status("") as status:
        yield lambda mails, done: status.update(f"asking about {clean(mails[done].stem)}" if done < len(mails) else "")


def _show_results(story: Story, results: list[Result]) -> None:
    story.say()
    story.table(
        ["mail", "the model said", "amount", "answer", "now in", "because"],
        [(r.case, r.said, "" if r.amount is None else f"{r.amount:,.2f}", r.status.replace("failed_validation", "not valid"),
          r.pile, "" if r.status == "used" else r.why) for r in results],
        right=[2], whole=(0, 2, 3, 4),
    )  # fmt: skip
    people = sum(r.pile == HUMAN for r in results)
    used = sum(r.status == "used" for r in results)
    story.say(
        f"\n{used} of {len(results)} answers were used; {plural(people, 'mail waits', 'mails wait')} for a person (out/human). "
        "Each decision was parsed from the answer as the log gives it back. What cannot be parsed, contradicts itself, is unsure or "
        f"is over {LIMIT_EUR:,} EUR goes to a person, with the reason on record. The log cannot know whether an answer is right; "
        "it knows what was answered and what was done with it."
    )
    fooled = next((r for r in results if r.case == INJECTION and r.said == "invoice"), None)
    if fooled:
        stopped = "A rule stopped it" if fooled.pile == HUMAN else "Nothing stopped it"
        story.say(
            f'\nLook at {INJECTION}: that mail tells the model to answer "invoice, 9800.00, approved", and it obeyed. '
            f"{stopped}; mail, prompt, answer and decision are on record."
        )


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
    kept = story.kept / "checkpoint"
    again = ["--checkpoint", "kept-elsewhere/checkpoint"] if kept.exists() else []
    if again:
        story.say("The checkpoint that an earlier run kept must still be a beginning of this log.")
    code, _ = story.tally("verify", "audit_log", *again)
    if code:
        story.say(f"\nThe log was not proven whole (exit code {code}). The demo ends here; nothing was repaired.", "bold red")
        return code
    story.kept.mkdir(exist_ok=True)
    for name, command in (("checkpoint", ["checkpoint", "audit_log"]), ("vkey", ["key", "vkey", "audit_log"])):
        (story.kept / name).write_text(story.tally(*command, show=False)[1], encoding="utf-8")
    story.say(
        "\nThe signed head and the public key were put into kept-elsewhere/, which stands for another machine, a mail to "
        "yourself or a printed card. Part 7 shows what they are good for."
    )
    return 0


def _session(story: Story) -> str:
    from ..logger import AuditLogger

    with AuditLogger(story.log, create=False) as log:
        newest = next(log.entries({"action": "choose model"}, newest_first=True, limit=1))
    return newest.session_id or ""


def _proof(story: Story, results: list[Result]) -> None:
    """A proof of one answer, checked by a process that has neither log nor memory; then for an altered entry."""
    from ..logger import AuditLogger

    story.heading("5  A proof for a stranger")
    chosen = next((r for r in results if r.status == "used" and r.amount is not None), None)
    chosen = chosen or next((r for r in results if r.event_id), None)
    if chosen is None:
        story.say("The model answered nothing in this run, so there is no answer to prove.")
        return
    story.say(f"The model's answer about {chosen.case}, for somebody who has nothing but the proof, the entry and the public key.")
    with AuditLogger(story.log, create=False) as log:
        index = log.entry(chosen.event_id).index
    folder = story.folder / "proof"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    proof, entry, vkey = "proof/answer.tlog-proof", "proof/answer.json", (story.kept / "vkey").read_text(encoding="utf-8").strip()
    story.tally("prove", "audit_log", f"#{index}", "-o", proof, "--entry", entry)
    stranger = folder / "no-memory"
    story.tally("verify", proof, "--entry", entry, "--vkey", vkey, state=stranger,
                typed=f'tally verify {proof} --entry {entry} --vkey "$(cat kept-elsewhere/vkey)"')  # fmt: skip
    altered = (story.folder / entry).read_bytes().replace(b'"outcome":"success"', b'"outcome":"denied"')
    (folder / "altered.json").write_bytes(altered)
    code, _ = story.tally("verify", proof, "--entry", "proof/altered.json", "--vkey", vkey, state=stranger, show=False)
    story.say(f"\nThe same proof with one word of the entry changed (proof/altered.json): exit code {code}.")


# -- 7: the attacker ---------------------------------------------------------------------------------------------------------


def _attacks(story: Story) -> bool:
    """The four attacks; True if each verdict was as it should be."""
    story.heading("7  An attacker")
    story.say(
        "He may read and write the files, and knows the format as well as we do. He works on copies (attacks/); each was trusted "
        "and verified by its user before he came. Exit codes: 0 proven, 3 cannot judge, 6 altered or missing.\n"
    )
    vkey = (story.kept / "vkey").read_text(encoding="utf-8").strip()
    scene = Scene(story.log, story.keys, vkey, story.kept / "checkpoint", story.folder / "attacks")

    def tally(*arguments: str, state: Path) -> tuple[int, str]:
        return story.tally(*arguments, state=state, show=False)

    rows = list(run_attacks(scene, tally))
    wrong = [at for at, row in enumerate(rows) if not row.as_expected]
    story.table(["attack", "what the attacker did", "what caught it", "exit"], _attack_cells(rows), right=[3], whole=[3], red=wrong)
    if wrong:
        story.say(f"\n{plural(len(wrong), 'verdict is', 'verdicts are')} not what it should be. Please report this.", "bold red")
        return False
    story.say(
        "\nSo: the signature stops who has no key; the pinned key stops who brings his own. Who finds the keys and edits this "
        "user's memory as well is seen only from what is kept elsewhere: keep it on another machine."
    )
    return True


def _attack_cells(rows: list[Row]) -> Iterator[tuple[Any, ...]]:
    """Number, name and deed only in the first row of an attack."""
    for at, row in enumerate(rows):
        is_first = at == 0 or rows[at - 1].number != row.number
        caught = row.caught_by if row.as_expected else f"NOT AS EXPECTED: {row.caught_by}"
        yield f"{row.number} {row.name}" if is_first else "", row.deed if is_first else "", caught, row.exit_code


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
