"""What records calls to models elsewhere: OpenLLMetry and OpenInference, each as its documentation says, with all content on, and
spans kept in memory."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import Any

PRODUCTS = {
    "OpenLLMetry": {"opentelemetry-instrumentation-ollama": "opentelemetry.instrumentation.ollama:OllamaInstrumentor",
                    "opentelemetry-instrumentation-openai": "opentelemetry.instrumentation.openai:OpenAIInstrumentor"},
    "OpenInference": {"openinference-instrumentation-ollama": "openinference.instrumentation.ollama:OllamaInstrumentor",
                      "openinference-instrumentation-openai": "openinference.instrumentation.openai:OpenAIInstrumentor"},
}  # fmt: skip


class Spans:
    """The spans that ended."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def take(self) -> list[Any]:
        """Those that ended since the last time."""
        found = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return found


def instrument(product: str) -> Spans | None:
    """The clients of this process, from now on; None for nobody."""
    if product not in PRODUCTS:
        return None
    os.environ["TRACELOOP_TRACE_CONTENT"] = "true"
    spans = Spans()
    for where in PRODUCTS[product].values():
        module, _, name = where.partition(":")
        getattr(importlib.import_module(module), name)().instrument(tracer_provider=spans.provider)
    return spans


def versions() -> dict[str, str]:
    """Product → versions of its packages, or that it is not installed."""
    packages = {**PRODUCTS, "clients": ("ollama", "openai")}
    return {name: ", ".join(f"{one.rpartition('-')[2]} {_version(one)}" for one in of) for name, of in packages.items()}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "NOT INSTALLED"
