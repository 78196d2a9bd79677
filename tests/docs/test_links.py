"""Relative links of the pages at the top and of the manual lead to files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
MANUAL = (page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)
PAGES = (*TOP, *MANUAL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing
