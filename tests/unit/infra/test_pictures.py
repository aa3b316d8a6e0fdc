"""The pictures of infra/docs, and what keeps them small."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.screenshots.browser import MOST_BYTES, small_png
from promptstore.errors import PromptStoreError

DOCS = Path(__file__).parents[3] / "infra" / "docs"
PICTURES = sorted((DOCS / "pictures").glob("*.png"))
PAGES = sorted(DOCS.glob("*.md"))


def png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def test_a_picture_keeps_its_size_in_pixels_and_what_it_shows() -> None:
    pixels = np.zeros((300, 400, 3), dtype=np.uint8)
    pixels[:, 200:] = (250, 120, 10)
    image = Image.open(io.BytesIO(small_png(png(pixels))))
    assert (image.size, image.mode) == ((400, 300), "P")
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_a_picture_that_stays_too_large_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    with pytest.raises(PromptStoreError, match=f"at most {MOST_BYTES} are wanted"):
        small_png(png(noise))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_kept_picture_is_small_and_shown_somewhere(picture: Path) -> None:
    assert picture.stat().st_size < MOST_BYTES
    assert any(f"(pictures/{picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_into_the_tree_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (DOCS / link).exists()] == []
