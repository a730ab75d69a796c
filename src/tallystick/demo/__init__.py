"""The demo: a small real automation on a real local model, its log, and an attacker loose on copies of it.

``run.run_demo`` tells the whole story; the other modules are its parts and import each other only downwards:
``install`` (what the model needs, from the package registries), ``model`` (finds or starts the server),
``mail`` (what comes in), ``triage`` (the automation), ``attacks`` (the attacker), ``run``. The product
imports only ``run_demo``, when it is asked for.
"""

from __future__ import annotations
