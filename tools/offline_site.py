"""A Sphinx extension: leave out sphinx-thebe, which Jupyter Book always adds.

Its "live code" would load a kernel client from a content network and run cells on a public server; the
site promises to work without a network. Its scripts also fail, being added twice by this Sphinx version.
"""

from typing import Any


def drop_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove its scripts and styles from a page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if not _is_thebe(file)]


def _is_thebe(file: Any) -> bool:
    body = getattr(file, "attributes", {}).get("body") or ""
    return "thebe" in str(getattr(file, "filename", file) or "") or "THEBE" in body


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
