"""What makes pages of the repository a site: pages beside `docs/` become part of it, links follow, and llms.txt.

The pages keep the links by which they work in the repository. `index.md` is the README.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    **{
        path: path
        for path in (
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "CODE_OF_CONDUCT.md",
            "forwarder/README.md",
            "operator/README.md",
            "charts/channels-zmq/README.md",
            "examples/chat/README.md",
        )
    },
}
"""Pages beside `docs/`, by their paths in the repository, and where the site has them."""
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside `docs/`."""
    for path, site_path in OUTSIDE.items():
        files.append(File.generated(config, site_path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to pages of the site; of what the site does not have only the text stays."""
    here = page.file.src_uri
    in_repository = {site: path for path, site in OUTSIDE.items()}.get(here, f"docs/{here}")

    def changed(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), target))
        site = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if site == "design":
            site = "design/README.md"
        if not site or files.get_file_from_path(site) is None:
            if not (ROOT / path).exists():
                raise ValueError(f"{in_repository}: {target} is not in the repository")
            return f"{match['text']} (`{path}`)"
        link = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"{match['image']}[{match['text']}]({link}{anchor})"

    return LINK.sub(changed, markdown)


def on_post_build(config: MkDocsConfig, **kwargs: Any) -> None:
    """Write llms.txt: the title and the first paragraph of each page, for programs that read them."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for path in sorted(Path(config.docs_dir).glob("*.md")):
        title, _, rest = path.read_text(encoding="utf-8").removeprefix("# ").partition("\n")
        first = LINK.sub(r"\g<text>", " ".join(rest.strip().partition("\n\n")[0].split()))
        lines.append(f"- [{title}]({path.stem}/): {first}")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
