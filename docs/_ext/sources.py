"""Links from the pages to files of the repository lead to pages of the site that show them.

The manual points at kernels, at the launch code and at tests, relative to the page, as one reads it
in the repository. Here each file so named becomes a page with its text, and each folder a list of
its files with a page for each, so that the site can be read without the repository and offline.
"""

from __future__ import annotations

import html
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
FOLDER = "sources"  # of the site
INCLUDED = {
    "CONTRIBUTING": "contributing",
    "CHANGELOG": "changelog",
}  # pages of docs that hold them
LANGUAGES = {
    ".cu": "cuda", ".cuh": "cuda", ".py": "python", ".cpp": "cpp", ".h": "cpp", ".md": "markdown",
    ".toml": "toml", ".json": "json",
}  # fmt: skip


def page_of(path: Path) -> str:
    """The name of the page that shows a file or folder of the repository."""
    return f"{FOLDER}/{path.relative_to(ROOT).as_posix()}" + ("/index" if path.is_dir() else "")


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, and of those below it, that can be shown."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix in LANGUAGES)
    return [path for path in found if "__pycache__" not in path.parts]


def find_links(app, doctree) -> None:
    """Mark each link of a page to something outside of docs; `resolve_links` makes them real."""
    page = Path(app.env.doc2path(app.env.docname)).resolve().parent
    for node in list(doctree.findall(nodes.Element)):
        if isinstance(node, addnodes.pending_xref) and node.get("refdomain") == "doc":
            name = Path(node["reftarget"]).name
            node["reftarget"] = INCLUDED.get(name, node["reftarget"])
            continue
        path = _outside(page, _target(node))
        if path is None:
            continue
        name = path.relative_to(ROOT).as_posix()
        link = nodes.reference("", "", *node.children, refuri="", source_file=name, internal=True)
        node.replace_self(link)
        metadata = app.env.metadata[app.env.docname]
        metadata["sources"] = metadata.get("sources", "") + f"{name}\n"


def _target(node: nodes.Element) -> str:
    """Where a link of Markdown or of reStructuredText leads, without the anchor."""
    if isinstance(node, addnodes.pending_xref) and node.get("reftype") != "myst":
        return ""
    target = node.get("refuri") or node.get("reftarget") or ""
    return target.split("#")[0] if "://" not in target else ""


def _outside(page: Path, target: str) -> Path | None:
    """The file or folder of the repository that a link names, unless it is one of docs.

    What is included from above docs, such as the changelog, has its links from there.
    """
    for start in (page, ROOT) if target else ():
        path = (start / target).resolve()
        if path.exists():
            inside = path.is_relative_to(ROOT) and not path.is_relative_to(DOCS)
            return path if inside else None
    return None


def resolve_links(app, doctree, docname) -> None:
    """Give each link that was marked its place in the site."""
    for node in doctree.findall(nodes.reference):
        if "source_file" in node:
            page = page_of(ROOT / node["source_file"])
            node["refuri"] = app.builder.get_relative_uri(docname, page)


def make_pages(app):
    """(name, what it holds, template) of each page for a file or folder that a page links to."""
    if app.builder.format != "html":
        return
    linked = {
        ROOT / name
        for metadata in app.env.metadata.values()
        for name in metadata.get("sources", "").split("\n")
        if name
    }
    for folder in sorted(path for path in linked if path.is_dir()):
        inside = files_in(folder)
        linked.update(inside)
        here = page_of(folder)
        lines = (
            f'<li><a href="{app.builder.get_relative_uri(here, page_of(path))}">'
            f"{html.escape(path.relative_to(folder).as_posix())}</a></li>"
            for path in inside
        )
        yield _page(app, folder, "<ul>\n" + "\n".join(lines) + "\n</ul>")
    for path in sorted(path for path in linked if path.is_file()):
        language = LANGUAGES.get(path.suffix, "text")
        text = app.builder.highlighter.highlight_block(
            path.read_text("utf-8"), language, linenos=False
        )
        yield _page(app, path, text)


def _page(app, path: Path, body: str):
    name = path.relative_to(ROOT).as_posix()
    context = {"title": name, "body": f"<h1><code>{html.escape(name)}</code></h1>\n{body}"}
    return page_of(path), context, "page.html"


def setup(app) -> dict:
    # before Sphinx collects downloads, which it would copy
    app.connect("doctree-read", find_links, priority=100)
    app.connect("doctree-resolved", resolve_links)
    app.connect("html-collect-pages", make_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
