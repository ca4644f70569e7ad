#!/usr/bin/env python3
"""Prepare the text and the tokenizer of benchmarks/quality from documentation packages of Debian 12.

    python benchmarks/quality/corpus.py --out build/quality

Needs apt and the network; what it leaves (about 20 MB) can be carried to a machine that has neither:
`corpus.jsonl.zst`, one JSON record {"path", "text"} per document, in the order of a hash so that any part of
it is a fair sample; `tokenizer/`, a byte-level BPE trained on the documents that are not held out; and
`corpus.json`, the packages' versions and what was counted. Pages that a package holds in two forms (kernel
documentation as HTML and as man pages, say) are taken once, so that a held-out document has no double in
the training text.
"""

import argparse
import hashlib
import html
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zstandard
from trenchcoat_trainer.stages.tokenize.reading import is_held_out

HELD_OUT_PERCENT = 2
VOCABULARY = 4096
MIN_CHARACTERS, MAX_CHARACTERS = 500, 400_000

# Package, files below its root, and files left out: lists of links, doubles and translations.
SOURCES = {
    "python3.11-doc": ("usr/share/doc/python3.11/html/**/*.html", r"genindex|/search\.html|/contents\.html"),
    "postgresql-doc-15": ("usr/share/doc/postgresql-doc-15/html/*.html", r"bookindex"),
    "perl-doc": ("usr/share/perl/**/*.pod", r"perltoc"),
    "linux-doc-6.1": ("usr/share/doc/**/*.html", r"genindex|/search\.html|/translations/"),
    "git-doc": ("usr/share/doc/git-doc/**/*.html", r"/RelNotes/"),
    "debian-handbook": ("usr/share/doc/debian-handbook/html/en-US/**/*.html", r"/(ix|index)[^/]*\.html"),
}

_MAIN = re.compile(  # of the two themes of Sphinx
    r'<div class="body" role="main">(.*?)<div class="sphinxsidebar"|itemprop="articleBody">(.*?)<footer', re.S
)
_DROPPED = re.compile(r"<(head|script|style|nav|footer)\b.*?</\1\s*>|<!--.*?-->", re.S | re.I)
_SIDEBARS = re.compile(r'<div class="(?:sphinxsidebar|related|navheader|navfooter)".*?</div>', re.S | re.I)
_PERMALINK = re.compile(r'<a class="headerlink".*?</a>', re.S | re.I)
_PREFORMATTED = re.compile(r"(<pre\b.*?</pre\s*>)", re.S | re.I)
_BLOCK = re.compile(
    r"</?(?:p|div|h[1-6]|li|ul|ol|dl|dt|dd|tr|table|pre|section|br|hr|blockquote)\b[^>]*>", re.I
)
_TAG = re.compile(r"<[^>]*>")


def main() -> None:
    """Download, strip, train the tokenizer, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder to write")
    parser.add_argument("--packages", type=Path, help="folder of .deb files downloaded before")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.packages or Path(scratch)
        if not arguments.packages:
            subprocess.run(["apt-get", "download", *SOURCES], cwd=folder, check=True)
        records, facts = collect(folder)
    write(arguments.out, records, facts)


def collect(folder: Path) -> tuple[list[dict[str, str]], dict[str, object]]:
    """Return the documents of all packages in `folder`, in the order of a hash, and facts of each package."""
    records: list[dict[str, str]] = []
    facts: dict[str, object] = {}
    seen: set[str] = set()
    for package in SOURCES:
        deb = next(folder.glob(f"{package}_*.deb"))
        found = [
            record
            for record in documents(package, deb)
            if not ((key := hashlib.sha256(record["text"].encode()).hexdigest()) in seen or seen.add(key))
        ]
        facts[package] = {
            "version": deb.name.split("_")[1].replace("%3a", ":"),
            "documents": len(found),
            "characters": sum(len(record["text"]) for record in found),
        }
        print(package, facts[package], flush=True)
        records += found
    records.sort(key=lambda record: hashlib.sha256(record["path"].encode()).digest())
    return records, facts


def documents(package: str, deb: Path) -> Iterator[dict[str, str]]:
    """Yield the documents of one package as plain text."""
    pattern, left_out = SOURCES[package]
    with tempfile.TemporaryDirectory() as root:
        subprocess.run(["dpkg", "-x", deb, root], check=True)
        for path in sorted(Path(root).glob(pattern)):
            name = f"{package}/{path.relative_to(root)}"
            if path.is_symlink() or re.search(left_out, name):
                continue
            raw = path.read_text(encoding="utf-8", errors="replace")
            text = plain_pod(raw) if path.suffix == ".pod" else plain_html(raw)
            for part, start in enumerate(range(0, len(text), MAX_CHARACTERS)):
                piece = text[start : start + MAX_CHARACTERS]
                if len(piece) >= MIN_CHARACTERS:
                    yield {"path": f"{name}#{part}", "text": piece}


def plain_html(raw: str) -> str:
    """Strip HTML to text: blocks on lines of their own, preformatted text as it stands."""
    main_part = _MAIN.search(raw)
    body = _DROPPED.sub("", next(filter(None, main_part.groups())) if main_part else raw)
    body = _PERMALINK.sub("", _SIDEBARS.sub("", body))
    parts = []
    for index, part in enumerate(_PREFORMATTED.split(body)):
        if index % 2:
            parts.append("\n\n" + html.unescape(_TAG.sub("", part)).strip("\n") + "\n\n")
        else:
            part = _BLOCK.sub("\n", re.sub(r"\s+", " ", part))
            lines = (line.strip() for line in html.unescape(_TAG.sub("", part)).split("\n"))
            parts.append("\n".join(lines))
    return _tidy("".join(parts))


def plain_pod(raw: str) -> str:
    """Strip Perl's pod to text: directives and the marks of formatting codes go."""
    text = re.sub(r"^=(?:cut|pod|over|back|encoding|begin|end|for)\b.*$", "", raw, flags=re.M)
    text = re.sub(r"^=(?:head\d|item)\s+", "", text, flags=re.M)
    for _ in range(3):  # codes nest
        text = re.sub(r"\b[IBCFSLXZ]<(?:[^<>|]*\|)?([^<>]*)>", r"\1", text)
    text = text.replace("E<gt>", ">").replace("E<lt>", "<").replace("<<", "").replace(">>", "")
    return _tidy(text)


def _tidy(text: str) -> str:
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def train_tokenizer(texts: list[str], vocabulary: int):
    """Byte-level BPE with a mark where a document begins."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", clean_up_tokenization_spaces=False
    )


def write(out: Path, records: list[dict[str, str]], facts: dict[str, object]) -> None:
    """Write text, tokenizer and facts below `out`."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    packed = zstandard.ZstdCompressor(level=15, threads=-1).compress(lines.encode())
    (out / "corpus.jsonl.zst").write_bytes(packed)
    training = [record["text"] for record in records if not is_held_out(record["text"], HELD_OUT_PERCENT)]
    train_tokenizer(training[::4], VOCABULARY).save_pretrained(out / "tokenizer")
    summary = {
        "packages": facts,
        "documents": len(records),
        "held_out_documents": len(records) - len(training),
        "characters": sum(len(record["text"]) for record in records),
        "compressed_bytes": len(packed),
    }
    (out / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
