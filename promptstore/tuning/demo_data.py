"""The demo's two tasks, made from the four human-rated sets of Hutto and Gilbert (2014), as ordinary task files.

`sentiment` asks for the sign of the mean human rating, `source` for which of the four sets a sentence is from.
"""

import hashlib
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptstore.errors import CorruptError, InvalidInputError
from promptstore.lm.assets import HUTTO, asset_file

SOURCES: Mapping[str, str] = {
    "tweets_GroundTruth.txt": "tweet",
    "amazonReviewSnippets_GroundTruth.txt": "product",
    "movieReviewSnippets_GroundTruth.txt": "film",
    "nytEditorialSnippets_GroundTruth.txt": "editorial",
}
# Ratings go from -4 to 4. Between these two, raters disagree or see neither, so the sign means little.
CLEAR_RATING = 1.0
VALIDATION_SHARE = 5
TRAIN_ROWS, VALIDATION_ROWS = 2000, 300
QUICK_TRAIN_ROWS, QUICK_VALIDATION_ROWS = 640, 96

SENTIMENT_TASK = '''\
name = "sentiment"
kind = "classification"
template = """
Text: {text}
Sentiment:"""
metric = "accuracy"
max_input_tokens = 128

[labels]
positive = "positive"
negative = "negative"

[data]
train = "sentiment.train.jsonl"
validation = "sentiment.validation.jsonl"
'''

SOURCE_TASK = '''\
name = "source"
kind = "classification"
template = """
Text: {text}
Kind of text:"""
metric = "accuracy"
max_input_tokens = 128

[labels]
tweet = "tweet"
product = "product review"
film = "film review"
editorial = "editorial"

[data]
train = "source.train.jsonl"
validation = "source.validation.jsonl"
'''

TASK_TEXTS: Mapping[str, str] = {"sentiment": SENTIMENT_TASK, "source": SOURCE_TASK}


@dataclass(frozen=True, slots=True)
class RatedText:
    """A sentence, its mean rating by twenty people, and its origin. document: the review or article it is part of."""

    text: str
    rating: float
    source: str
    document: str


def write_demo_data(cache_dir: Path, folder: Path, *, quick: bool = False) -> list[Path]:
    """Writes the two tasks' files and rows to `folder`, replacing what is there; returns the paths of the task files.

    The same rows in the same order every time. Labels are equally frequent, and no document has sentences in both
    training and validation rows, of either task. quick: fewer rows.

    Raises:
        NotFoundError: the assets were not fetched yet; says how.
        CorruptError: an asset's file is not what it should be.
        InvalidInputError: `folder` cannot be written.
    """
    texts = list(_rated_texts(cache_dir))
    limits = (QUICK_TRAIN_ROWS, QUICK_VALIDATION_ROWS) if quick else (TRAIN_ROWS, VALIDATION_ROWS)
    labels: Mapping[str, Callable[[RatedText], str | None]] = {"sentiment": _sentiment, "source": _source}
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task, label_of in labels.items():
            labelled = [(text, label) for text in texts if (label := label_of(text)) is not None]
            for split, is_validation, limit in (("train", False, limits[0]), ("validation", True, limits[1])):
                part = [pair for pair in labelled if _is_validation(pair[0]) == is_validation]
                _write_rows(folder / f"{task}.{split}.jsonl", _balanced(part, limit))
            path = folder / f"{task}.toml"
            path.write_text(TASK_TEXTS[task], encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise InvalidInputError(f"demo data cannot be written to {folder}: {error.strerror}") from error
    return paths


def _sentiment(text: RatedText) -> str | None:
    if abs(text.rating) < CLEAR_RATING:
        return None
    return "positive" if text.rating > 0 else "negative"


def _source(text: RatedText) -> str:
    return text.source


def _rated_texts(cache_dir: Path) -> Iterator[RatedText]:
    """Every sentence once; of repeated ones (`LOL`, common phrases) none, since two sets may hold the same."""
    seen: dict[str, RatedText | None] = {}
    for file_name, source in SOURCES.items():
        path = asset_file(cache_dir, HUTTO, file_name)
        for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), start=1):
            text = _rated_text(line, source, f"{path}, line {number}")
            key = text.text.casefold()
            seen[key] = None if key in seen else text
    yield from (text for text in seen.values() if text is not None)


def _rated_text(line: str, source: str, where: str) -> RatedText:
    parts = line.split("\t")
    try:
        number, rating, text = parts
        return RatedText(
            text=" ".join(html.unescape(text).split()),
            rating=float(rating),
            source=source,
            document=f"{source}/{number.partition('_')[0]}",
        )
    except ValueError as error:
        raise CorruptError(
            f"{where}: expected id, mean rating and text; `promptstore assets fetch` mends it"
        ) from error


def _is_validation(text: RatedText) -> bool:
    return _shuffled(f"split {text.document}") % VALIDATION_SHARE == 0


def _balanced(pairs: Sequence[tuple[RatedText, str]], limit: int) -> list[tuple[RatedText, str]]:
    """At most `limit` rows with equally many of each label, in an order that depends on the texts alone."""
    labels = sorted({label for _, label in pairs})
    by_label = {
        label: sorted((pair for pair in pairs if pair[1] == label), key=lambda pair: _shuffled(pair[0].text))
        for label in labels
    }
    share = min(limit // len(labels), *(len(found) for found in by_label.values()))
    return [by_label[label][index] for index in range(share) for label in labels]


def _shuffled(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _write_rows(path: Path, pairs: Sequence[tuple[RatedText, str]]) -> None:
    lines = [json.dumps({"text": text.text, "label": label}, ensure_ascii=False) + "\n" for text, label in pairs]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
