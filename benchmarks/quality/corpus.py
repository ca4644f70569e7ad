#!/usr/bin/env python3
"""Prepare the text and the tokenizer of benchmarks/quality from documentation packages of Debian 12.

    python benchmarks/quality/corpus.py --out build/quality

Needs apt and the network; what it leaves (about 20 MB) can be carried to a machine that has neither:
`corpus.jsonl.zst`, one JSON record {"path", "text"} per document, in the order of a hash so that any part of
it is a fair sample; `tokenizer/`, a byte-level BPE trained on the documents that are not held out; and
`corpus.json`, the packages' versions and what was counted. Below `other/`, in the same form, text of kinds
that are not in the corpus: `prose.jsonl.zst` (an FAQ on politics) and `code.jsonl.zst` (Python's source),
the first 20,000 characters of documents drawn by a hash. Pages that a package holds in two forms (kernel
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
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard
from trenchcoat_trainer.stages.tokenize.reading import is_held_out

HELD_OUT_PERCENT = 2
VOCABULARY = 4096
MIN_CHARACTERS, MAX_CHARACTERS = 500, 400_000
OTHER_CHARACTERS, OTHER_DOCUMENT_CHARACTERS = 700_000, 20_000
"""Of each text of another kind, and of each document in it: well over 65,536 tokens, of many documents."""

# Package, files below its root, and files left out: lists of links, doubles and translations.
SOURCES = {
    "python3.11-doc": ("usr/share/doc/python3.11/html/**/*.html", r"genindex|/search\.html|/contents\.html"),
    "postgresql-doc-15": ("usr/share/doc/postgresql-doc-15/html/*.html", r"bookindex"),
    "perl-doc": ("usr/share/perl/**/*.pod", r"perltoc"),
    "linux-doc-6.1": ("usr/share/doc/**/*.html", r"genindex|/search\.html|/translations/"),
    "git-doc": ("usr/share/doc/git-doc/**/*.html", r"/RelNotes/"),
    "debian-handbook": ("usr/share/doc/debian-handbook/html/en-US/**/*.html", r"/(ix|index)[^/]*\.html"),
}
# The same, of text of other kinds by its name.
OTHER = {
    "prose": ("anarchism", "usr/share/doc/anarchism/html/sec*.html", r"con\.html"),
    "code": ("mercurial-common", "usr/lib/python3/dist-packages/**/*.py", r"/i18n/"),
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
            others = [package for package, _, _ in OTHER.values()]
            subprocess.run(["apt-get", "download", *SOURCES, *others], cwd=folder, check=True)
        records, facts = collect(folder)
        others = {name: collect_other(folder, *source) for name, source in OTHER.items()}
    write(arguments.out, records, facts, others)


def collect(folder: Path) -> tuple[list[dict[str, str]], dict[str, object]]:
    """Return the documents of all packages in `folder`, in the order of a hash, and facts of each package."""
    records: list[dict[str, str]] = []
    facts: dict[str, object] = {}
    seen: set[str] = set()
    for package, (pattern, left_out) in SOURCES.items():
        deb = next(folder.glob(f"{package}_*.deb"))
        found = [
            record
            for record in documents(deb, pattern, left_out)
            if not ((key := hashlib.sha256(record["text"].encode()).hexdigest()) in seen or seen.add(key))
        ]
        facts[package] = told(deb, found)
        print(package, facts[package], flush=True)
        records += found
    records.sort(key=by_hash)
    return records, facts


def collect_other(
    folder: Path, package: str, pattern: str, left_out: str
) -> tuple[list[dict[str, str]], dict[str, object]]:
    """Return so much of a text of another kind as is wanted, in the order of a hash, and facts of it."""
    deb = next(folder.glob(f"{package}_*.deb"))
    found, characters = [], 0
    for record in sorted(documents(deb, pattern, left_out, OTHER_DOCUMENT_CHARACTERS, 1), key=by_hash):
        if characters >= OTHER_CHARACTERS:
            break
        found.append(record)
        characters += len(record["text"])
    return found, {"package": package} | told(deb, found)


def by_hash(record: dict[str, str]) -> bytes:
    """Return what sorts documents into an order that has nothing to do with what they say."""
    return hashlib.sha256(record["path"].encode()).digest()


def told(deb: Path, records: list[dict[str, str]]) -> dict[str, object]:
    """Return facts of a package's documents."""
    return {
        "version": deb.name.split("_")[1].replace("%3a", ":"),
        "documents": len(records),
        "characters": sum(len(record["text"]) for record in records),
    }


def documents(
    deb: Path, pattern: str, left_out: str, longest: int = MAX_CHARACTERS, parts: int | None = None
) -> Iterator[dict[str, str]]:
    """Yield the documents of one package as plain text, the first `parts` of each in `longest` characters."""
    package = deb.name.split("_")[0]
    with tempfile.TemporaryDirectory() as root:
        subprocess.run(["dpkg", "-x", deb, root], check=True)
        for path in sorted(Path(root).glob(pattern)):
            name = f"{package}/{path.relative_to(root)}"
            if path.is_symlink() or re.search(left_out, name):
                continue
            raw = path.read_text(encoding="utf-8", errors="replace")
            text = PLAIN[path.suffix](raw)
            for part, start in enumerate(range(0, len(text), longest)[:parts]):
                piece = text[start : start + longest]
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


PLAIN: dict[str, Callable[[str], str]] = {".html": plain_html, ".pod": plain_pod, ".py": _tidy}


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


def write(
    out: Path,
    records: list[dict[str, str]],
    facts: dict[str, object],
    others: dict[str, tuple[list[dict[str, str]], dict[str, object]]],
) -> None:
    """Write text, texts of other kinds, tokenizer and facts below `out`."""
    compressed = write_records(out / "corpus.jsonl.zst", records)
    (out / "other").mkdir(exist_ok=True)
    for name, (other, _) in others.items():
        write_records(out / "other" / f"{name}.jsonl.zst", other)
    training = [record["text"] for record in records if not is_held_out(record["text"], HELD_OUT_PERCENT)]
    train_tokenizer(training[::4], VOCABULARY).save_pretrained(out / "tokenizer")
    summary = {
        "packages": facts,
        "documents": len(records),
        "held_out_documents": len(records) - len(training),
        "characters": sum(len(record["text"]) for record in records),
        "compressed_bytes": compressed,
        "other": {name: told_other for name, (_, told_other) in others.items()},
    }
    (out / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def write_records(file: Path, records: list[dict[str, str]]) -> int:
    """Write documents and return the bytes that they take."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    packed = zstandard.ZstdCompressor(level=15, threads=-1).compress(lines.encode())
    return file.write_bytes(packed)


if __name__ == "__main__":
    main()
