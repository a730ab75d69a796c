"""evidence.html in real Chromium without a network: amber, green, red; the same judgement as verify.py; hostile content stays text."""

import re

import pytest

from tallystick.core.note import SignerKey, VerifierKey, sign, split
from tallystick.core.packfile import parse_pack
from tallystick.evidence import page as build_page

from .browser import chromium, opened
from .conftest import CASE, HOSTILE, PEOPLE, ours
from .test_sweep import alterations

STATES = {0: "green", 3: "amber", 4: "red", 6: "red"}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def show(browser, tmp_path):
    """Open the page of some members; what it asked of the network and said on the console is looked at in the end."""
    asked, said, contexts = [], [], []

    def open_page(members, **how):
        path = tmp_path / f"evidence{len(contexts)}.html"
        path.write_bytes(build_page({n: d for n, d in members.items() if n not in PEOPLE}))
        page = opened(browser, path, asked=asked, said=said, **how)
        contexts.append(page.context)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert all(url.startswith("file:") for url in asked), asked
    assert said == []


def state(page):
    page.evaluate("() => new Promise(done => setTimeout(done, 0))")
    return page.get_attribute("#verdict", "data-state"), page.inner_text("#verdict")


def give(page, text):
    """Type it, and wait until the page has judged anew."""
    page.evaluate("() => { document.getElementById('verdict').removeAttribute('data-state'); }")
    page.fill("#key", text)
    page.click("#form button")
    page.wait_for_selector("#verdict[data-state]")
    return state(page)


def hand_in(page, name, data):
    page.evaluate("() => { document.getElementById('verdict').removeAttribute('data-state'); }")
    page.set_input_files("#file", {"name": name, "mimeType": "text/plain", "buffer": data})
    page.wait_for_selector("#verdict[data-state]")
    return state(page)


def test_amber_until_the_reader_gives_the_key(made, show):
    page = show(made.members)
    key = VerifierKey.parse(made.vkey)
    assert state(page)[0] == "amber"
    assert "NOTHING IS PINNED" in state(page)[1]
    body = page.inner_text("body")
    assert key.fingerprint not in body and made.vkey not in body  # nobody can copy it from here into the field
    for short in (f"{key.key_id:08x}", key.fingerprint[:20], "", "nonsense", made.vkey[:-1]):
        assert give(page, short)[0] == "amber", short
    assert "can be imitated" in (give(page, f"{key.key_id:08x}") and page.inner_text("#said"))
    for right in (key.fingerprint, key.fingerprint.upper(), key.fingerprint.replace(" ", ""), f"  {key.fingerprint.replace(' ', ':')} ", made.vkey):
        assert give(page, right)[0] == "green", right
    other = SignerKey.generate(key.name).verifier
    for wrong in (other.fingerprint, other.format(), key.fingerprint[:-1] + ("0" if key.fingerprint[-1] != "0" else "1")):
        assert give(page, wrong)[0] == "red", wrong
    assert give(page, key.fingerprint)[0] == "green"
    assert "Read this first" in page.inner_text("main")


def card_of(made, form):
    """What ``tally key card`` prints, or what its code says."""
    from click.testing import CliRunner

    from tallystick.cli import cli

    if form == "text":
        return made.vkey.encode() + b"\n" + made.genesis
    done = CliRunner().invoke(cli, ["key", "card", str(made.folder)])
    assert done.exit_code == 0, done.output
    return done.stdout_bytes


def test_a_card_a_mail_or_an_older_checkpoint_pins_it_too(made, show):
    page = show(made.members)
    assert hand_in(page, "log.vkey", made.members["log.vkey"])[0] == "green"
    assert "sealed to 14" in page.inner_text("#checks")
    assert hand_in(page, "card.txt", b"KEY CARD\n\n  " + made.vkey.encode() + b"\n\nkeep it\n")[0] == "green"
    assert "sealed to" not in page.inner_text("#checks")  # a key alone seals nothing
    assert hand_in(page, "kept", made.kept)[0] == "green"
    mail = b"From: log@example\r\nSubject: closed\r\n\r\nGood evening\r\n\r\n" + made.kept.replace(b"\n", b"\r\n") + b"\r\n-- \r\nbye\r\n"
    assert hand_in(page, "mail.eml", mail)[0] == "green"
    for form in ("terminal", "text"):
        assert hand_in(page, "card", card_of(made, form))[0] == "green", form
        assert "sealed to 14" in page.inner_text("#checks")
    from .test_pack import mailed

    assert hand_in(page, "sent by us.eml", mailed(made.kept))[0] == "green" and hand_in(page, "crlf.eml", mailed(made.kept).replace(b"\n", b"\r\n"))[0] == "green"
    assert hand_in(page, "answered.eml", b"> " + made.kept.replace(b"\n", b"\n> ") + b"\n\nthanks\n")[0] == "green"
    key = VerifierKey.parse(made.vkey)
    assert hand_in(page, "typed off", f"fingerprint\n{key.fingerprint[:19]}\n{key.fingerprint[20:]}\n".encode())[0] == "green"
    other = SignerKey.generate(made.vkey.split("+")[0])
    assert hand_in(page, "typed off", other.verifier.fingerprint.encode())[0] == "red"
    assert hand_in(page, "forged", sign(split(made.kept)[0], other))[0] == "red"
    assert hand_in(page, "other.vkey", other.verifier.format().encode())[0] == "red"
    assert hand_in(page, "empty", b"")[0] == "amber"
    assert hand_in(page, "picture", bytes(range(256)))[0] == "amber"
    page.evaluate("() => { document.getElementById('verdict').removeAttribute('data-state'); }")
    page.evaluate("""text => { const data = new DataTransfer(); data.items.add(new File([text], "card.txt"));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })); }""", made.genesis.decode())
    page.wait_for_selector("#verdict[data-state]")
    assert state(page)[0] == "green"


def test_what_entries_say_stays_text(made, show):
    page = show(made.members)
    give(page, made.vkey)
    assert page.title() == "Evidence"
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, link[rel=stylesheet], a[href]').length") == 0
    shown = page.evaluate("document.getElementById('entries').textContent")
    assert "</script><script>document.title='owned'</script>" in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029\x00-\x08\x1b]", page.evaluate("document.documentElement.textContent"))
    assert "\\u202egnp.exe" in shown and CASE in shown
    assert HOSTILE.encode() not in page.evaluate("document.documentElement.outerHTML").encode()


def test_no_script_but_its_own_runs_and_nothing_is_loaded(made, browser, tmp_path):
    (tmp_path / "evidence.html").write_bytes(made.members["evidence.html"])
    said = []
    page = opened(browser, tmp_path / "evidence.html", said=said)
    policy = page.get_attribute("meta[http-equiv]", "content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s); }")
    assert page.title() == "Evidence"
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'loaded', () => 'refused')") == "refused"
    assert len(said) >= 2 and all("Content Security Policy" in text for text in said)
    page.context.close()


def test_a_browser_without_ed25519_never_says_green(made, browser, tmp_path):
    path = tmp_path / "evidence.html"
    path.write_bytes(build_page({n: d for n, d in made.members.items() if n not in PEOPLE}))
    context = browser.new_context(offline=True)
    for script in ("crypto.subtle.importKey = () => Promise.reject(new DOMException('no', 'NotSupportedError'))",
                   "crypto.subtle.verify = () => Promise.resolve(true)"):  # fmt: skip
        page = context.new_page()
        page.add_init_script(script)
        page.goto(path.as_uri())
        page.wait_for_selector("#verdict[data-state]")
        assert give(page, made.vkey)[0] == "amber"
        assert "CANNOT JUDGE HERE" in state(page)[1]
    context.close()
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.get_attribute("#verdict", "class") == "amber"
    assert "Cannot judge here" in page.inner_text("main")
    context.close()


def test_altered_members_are_refused_as_verify_py_refuses_them(made, show):
    """A part of the sweep: the judgement of the page's own code over each, against our core's."""
    page = show(made.members)
    give(page, made.vkey)
    tried = 0
    for at, (what, members) in enumerate(alterations(made.members)):
        if at % 6 == 0 or "signatures" in what or (what.startswith("keys/") and at % 2 == 0):
            with_key = state_of(page, members, made.vkey)
            assert with_key == STATES[ours(members, vkey=made.vkey)], what
            tried += 1
    assert tried > 120


def state_of(page, members, vkey):
    """The state of a page with these members, judged under the key: its data are replaced, its script runs anew."""
    source = build_page({n: d for n, d in members.items() if n not in PEOPLE}).decode()
    page.set_content(source)
    page.wait_for_selector("#verdict[data-state]")
    before = page.get_attribute("#verdict", "data-state")
    if before == "red":
        return "red"
    return give(page, vkey)[0]


def test_it_fits_a_phone_and_prints(made, show, tmp_path):
    for width in (1000, 390):
        page = show(made.members, width=width, height=844)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    give(page, made.vkey)
    pdf = page.pdf(path=str(tmp_path / "page.pdf"))
    assert pdf.startswith(b"%PDF") and len(pdf) > 10_000
    # without colour: the word and the sign are there, and are announced
    assert "GREEN" in state(page)[1] and "✓" in state(page)[1]
    assert page.get_attribute("#verdict", "role") == "status"


def test_the_page_in_the_pack_is_that_of_its_members(made):
    members = parse_pack(made.data)
    assert members["evidence.html"] == build_page({n: d for n, d in members.items() if n not in PEOPLE})
