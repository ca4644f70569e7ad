"""What MkDocs calls: the reference is made, links into the repository become words, llms.txt is written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import commands
import reference

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#\s]+)(?:#[^)]*)?\)")
"""Links to files of the repository that are no pages of the site."""
NO_PROSE = ("#", "|", "!", "-", "```", "<")
"""How paragraphs begin that are headings, tables, pictures, lists, blocks or comments."""
HEAD = """# Trenchcoat

> Linearize large Llamas on Kubernetes, one Cria at a time: an operator, and a command for one machine.

"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the reference."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Say of commands that no test runs them, and where in the repository a file is."""
    return OUTSIDE.sub(
        lambda link: f"{link.group(1)} (`{link.group(2)}` in the repository)", commands.marked(markdown)
    )


def on_post_build(config: Any) -> None:
    """Write llms.txt, and each page as Markdown beside its HTML."""
    docs, site = Path(config["docs_dir"]), Path(config["site_dir"])
    texts = {path.relative_to(docs).as_posix(): path.read_text() for path in sorted(docs.rglob("*.md"))}
    texts |= reference.pages()
    for path, text in texts.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (site / "llms.txt").write_text(HEAD + "".join(outline(config["nav"], texts)))


def outline(nav: list[Any], texts: dict[str, str]) -> list[str]:
    """Sections and pages of llms.txt in the order of the navigation, each page with its first sentence."""
    lines, sections = ["## Start\n\n"], []
    for item in nav:
        name, target = next(iter(item.items())) if isinstance(item, dict) else ("Home", item)
        if isinstance(target, list):
            sections.append((name, target))
        else:
            lines.append(line(name, target, texts))
    for name, pages in sections:
        lines.append(f"\n## {name}\n\n")
        lines += [line(*next(iter(page.items())), texts) for page in pages]
    return lines


def line(name: str, path: str, texts: dict[str, str]) -> str:
    """One page."""
    body = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", texts[path].partition("\n")[2])
    paragraphs = (" ".join(part.split()) for part in body.split("\n\n"))
    first = next((part for part in paragraphs if part and not part.startswith(NO_PROSE)), "")
    sentence = re.split(r"(?<=\.)\s", first)[0].removesuffix(":")
    return f"- [{name}]({path}): {sentence}\n" if sentence else f"- [{name}]({path})\n"
