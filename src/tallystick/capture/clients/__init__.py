"""Python clients of model servers: ``wrap`` one client, or ``instrument`` all of a process.

Each file knows one library and hooks the one place that all of its paths go through. A wrapped client is the same object.
"""

from __future__ import annotations

from typing import Any

from ..recorder import Recorder


def wrap(recorder: Recorder, client: Any) -> Any:
    """The same client, its calls on record. ``TypeError`` for what is no client that is known here."""
    for kind in type(client).__mro__:
        module = kind.__module__.partition(".")[0]
        if module == "ollama":
            from . import ollama

            return ollama.wrap(recorder, client)
        if module == "openai":
            from . import openai

            return openai.wrap(recorder, client)
    raise TypeError(f"{type(client).__module__}.{type(client).__name__} is no client that can be wrapped; known are ollama.Client, "
                    "ollama.AsyncClient, openai.OpenAI and openai.AsyncOpenAI. For anything else: tally proxy")  # fmt: skip


def instrument(recorder: Recorder) -> list[str]:
    """All clients of this process, also those made later and by code that cannot be changed. Returns the names of the libraries that
    were found. A second call changes only the recorder."""
    from importlib.util import find_spec

    found = []
    if find_spec("ollama") is not None:
        from . import ollama

        ollama.instrument(recorder)
        found.append("ollama")
    if find_spec("openai") is not None:
        from . import openai

        openai.instrument(recorder)
        found.append("openai")
    return found


def uninstrument() -> None:
    """Everything as it was before ``instrument``."""
    import sys

    for name in ("ollama", "openai"):
        module = sys.modules.get(f"{__name__}.{name}")
        if module is not None:
            module.uninstrument()
