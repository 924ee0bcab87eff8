"""Hooks of mkdocs: pages that lie outside docs/ become part of the site, and links between them keep working.

In the repository a page of docs/ links to `../benches/RESULTS.md`, which is right on a code host. On the site, docs/ is
the root, so that page is `benches/RESULTS.md`, and links are rewritten. Links to README.md lead to the home page.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["CHANGELOG.md", "CONTRIBUTING.md", "benches/README.md", "benches/RESULTS.md", "examples/collections.md"]
CODE = ["collection.sh", "own_autoencoder.py", "train.py"]  # of examples/, linked as they are
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and example programs from outside docs/."""
    for name in PAGES + [f"examples/{name}" for name in CODE]:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links between repository paths to links between site paths."""
    site_path = page.file.src_uri
    folder = posixpath.dirname(site_path if site_path in PAGES else f"docs/{site_path}")

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1])).removeprefix("docs/")
        target = "index.md" if target == "README.md" else target
        return posixpath.relpath(target, posixpath.dirname(site_path) or ".") + link[2]

    return LINK.sub(rewrite, markdown)
