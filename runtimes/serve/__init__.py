"""The service of a cart: an HTTP server around one bundle that keeps its studies on this machine.

``server`` starts it, ``app`` puts it together, ``worker`` runs the model, ``studies`` keeps what was
answered, ``audit`` what was done, ``health`` says whether answers can be trusted and kept. ``page/`` is what
a browser shows. It needs the extra ``serve``.
"""

from __future__ import annotations
