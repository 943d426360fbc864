"""Pairs of texts with a score, as rows of token ids.

`pairs:PLACE` is one file, or a folder with a file for each split: "train", "test" and perhaps "dev" or "val" is part of
its name. Each line has its fields between tabs; STS-B's fourth, fifth and sixth (counted from 0) are the score and the
two sentences. Options:

- `score`, `first`, `second`: numbers of these fields, counted from 0.
- `length`: tokens of each text; longer ones are cut at their end, shorter ones padded at their beginning, so that a
  network that reads on has a text's last word last. 24 when not given.
- `min_count`: how often a word must occur in the train split to be known; 2 when not given.

A single file has no split: one is drawn, and the vocabulary knows all of its rows.

Texts are made lower-case; web addresses go; a token is a run of letters, with apostrophes within, or of digits. Id 0 is
padding, 1 is an unknown word, then come the words of the train split by falling frequency. The vocabulary, like a
scaling, therefore knows of rows that are forgotten later, but only that their words exist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unlearning.data.card import Scaling
from unlearning.data.sources.contents import (
    Address,
    Array,
    Contents,
    numbered,
    numbers_of,
    read_file,
    row_loader,
    row_numbers,
    sha256_of,
    shown,
)
from unlearning.errors import DataError

if TYPE_CHECKING:
    from unlearning.data.samples import Samples

OPTIONS = ("score", "first", "second", "length", "min_count")
PADDING, UNKNOWN = 0, 1
_PARTS = {"train": "train", "dev": "validation", "val": "validation", "test": "test"}
_ADDRESS = re.compile(r"https?://\S+|www\.\S+")
_TOKEN = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*|\d+")


def tokens(text: str) -> list[str]:
    """The words and numbers of a text, lower-case.

    Example:
        >>> tokens("It's 20 o'clock, see https://example.org!")
        ["it's", '20', "o'clock", 'see']
    """
    return [token.replace("\u2019", "'") for token in _TOKEN.findall(_ADDRESS.sub(" ", text.lower()))]


def vocabulary_of(texts: Iterable[Sequence[str]], min_count: int) -> dict[str, int]:
    """Word to its id, from 2 on: the most frequent first, equals in the order of the alphabet.

    Args:
        texts: Tokens of each text.
        min_count: Rarer words are left out.
    """
    counts = Counter(token for text in texts for token in text)
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    return {word: number for number, word in enumerate(kept, start=UNKNOWN + 1)}


def token_ids(texts: Sequence[Sequence[str]], vocabulary: dict[str, int], length: int) -> Array:
    """Rows of ids, padded with 0 at the left or cut at the right: shape (len(texts), length), int32."""
    ids = np.zeros((len(texts), length), dtype=np.int32)
    for row, text in enumerate(texts):
        known = [vocabulary.get(token, UNKNOWN) for token in text[:length]]
        if known:
            ids[row, -len(known) :] = known
    return ids


def read_vectors(path: Path, vocabulary: dict[str, int], *, generator: np.random.Generator) -> Array:
    """Given word vectors for an embedding, shape (2 + words, D), float32.

    Words that the file lacks get normal numbers with the deviation of those that it has; padding is 0.

    Args:
        path: Text, a word and its D numbers between spaces on each line, as GloVe comes.
        vocabulary: As `vocabulary_of` gave it.
        generator: Of the vectors that are not given.

    Raises:
        DataError: When the file has none of the words, or lines of different lengths.
    """
    found: dict[str, Array] = {}
    for line in read_file(path).decode(errors="replace").splitlines():
        word, _, numbers = line.partition(" ")
        if word in vocabulary:
            try:
                found[word] = np.array(numbers.split(), dtype=np.float32)
            except ValueError as error:
                raise DataError(f"{shown(str(path))} has a line that is no word and its numbers") from error
    sizes = {len(vector) for vector in found.values()}
    if len(sizes) != 1 or 0 in sizes:
        wanted = f"vectors of one length for words of the data set, it has {len(sizes)} lengths"
        raise DataError(f"{shown(str(path))} needs {wanted}")
    spread = float(np.std(np.stack(list(found.values())))) or 1.0
    vectors = generator.normal(0, spread, (len(vocabulary) + 2, sizes.pop())).astype(np.float32)
    vectors[PADDING] = 0
    for word, vector in found.items():
        vectors[vocabulary[word]] = vector
    return vectors


def pairs(address: Address) -> Contents:
    """Two texts for each row, and their score."""
    length = address.count("length", 24, most=4096)
    parts, rows = _rows(address)
    try:
        targets = numbers_of(np.array([row.score for row in rows], dtype=np.float64), "the score")
    except ValueError as error:
        raise DataError(f'the scores of {shown(address.place)} are no numbers: name their field, "score=4"') from error
    known = _vocabulary(address, rows)
    inputs = np.stack([token_ids([row.texts[side] for row in rows], known, length) for side in (0, 1)], axis=1)
    values = np.array(targets, dtype=np.float32)

    def opened(locations: Sequence[str], scaling: Scaling) -> Samples:
        import torch

        from unlearning.data.samples import TokenSamples

        wanted = row_numbers(locations, len(inputs))
        return TokenSamples(torch.from_numpy(inputs[wanted]), torch.from_numpy(values[wanted]))

    return Contents(
        sha256=sha256_of(*parts),
        classes=[],
        targets=targets,
        ids=[row.id for row in rows],
        locations=numbered(len(rows)),
        load=row_loader(inputs),
        splits=[row.split for row in rows] if rows[0].split else None,
        card={"target_name": "score", "vocabulary": len(known) + 2},
        shape=(2, length),
        fit=lambda locations: Scaling(),
        open=opened,
    )


def pair_vocabulary(address: Address) -> dict[str, int]:
    """Word to id of a source of pairs, as its samples use them."""
    return _vocabulary(address, _rows(address)[1])


@dataclass(frozen=True)
class _Row:
    id: str
    split: str
    score: str
    texts: tuple[list[str], list[str]]


def _rows(address: Address) -> tuple[list[Array], list[_Row]]:
    """The bytes of each file, and the rows of all; a split is "" where there is one file only."""
    fields = [address.count(name, 4 + n, least=0, most=999) for n, name in enumerate(("score", "first", "second"))]
    parts, rows = [], []
    for split, path in _files(Path(address.place)).items():
        content = read_file(path)
        parts.append(np.frombuffer(content, dtype=np.uint8))
        for number, line in enumerate(content.decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\n")):
            columns = line.split("\t")
            if len(columns) <= max(fields):
                wanted = f"wanted {max(fields) + 1} or more"
                raise DataError(f"line {number + 1} of {shown(path.name)} has {len(columns)} fields, {wanted}")
            score, first, second = (columns[field] for field in fields)
            rows.append(_Row(f"{split or 'row'}-{number:05d}", split, score, (tokens(first), tokens(second))))
    return parts, rows


def _vocabulary(address: Address, rows: Sequence[_Row]) -> dict[str, int]:
    read = (text for row in rows if row.split in ("", "train") for text in row.texts)
    return vocabulary_of(read, address.count("min_count", 2))


def _files(place: Path) -> dict[str, Path]:
    """Split to its file, the train split first; the file itself under "" where there is one only."""
    if not place.is_dir():
        return {"": place}
    found: dict[str, Path] = {}
    for path in sorted(entry for entry in place.iterdir() if entry.suffix.lower() in (".csv", ".tsv", ".txt")):
        names = [split for word, split in _PARTS.items() if word in path.stem.lower()]
        if len(names) == 1:
            if names[0] in found:
                raise DataError(f"{shown(str(place))} holds two files for the {names[0]} split: keep one")
            found[names[0]] = path
    if not {"train", "test"} <= found.keys():
        raise DataError(f"{shown(str(place))} needs a file with train and one with test in its name, or give one file")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}
