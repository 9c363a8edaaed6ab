"""Contact sheets, the similarity of images, and the grouping of requests into batches."""

import pytest
from PIL import Image

from sdtune.inference.exported import StaticShape
from sdtune.inference.images import columns_of, contact_sheet, similarity
from sdtune.inference.plan import Request, make_batches


def test_a_sheet_shows_every_image():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sheet = contact_sheet([Image.new("RGB", (16, 16), c) for c in colours], ["a", "b", "c"], columns=2, cell=64)
    seen = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert set(colours) <= seen


@pytest.mark.parametrize(("count", "captions"), [(0, []), (2, ["a"])])
def test_a_sheet_needs_images_and_a_caption_for_each(count, captions):
    with pytest.raises(ValueError, match="do not make a sheet"):
        contact_sheet([Image.new("RGB", (8, 8))] * count, captions, columns=2)


@pytest.mark.parametrize(("batch", "per_prompt"), [(1, 1), (2, 1), (1, 2), (3, 2), (5, 4)])
def test_batches_hold_every_request_in_full_groups(batch, per_prompt):
    requests = [Request(prompt, seed) for prompt in "ab" for seed in (1, 2, 3)]
    made = make_batches(requests, StaticShape(batch_size=batch, num_images_per_prompt=per_prompt, height=64, width=64))
    assert all(len(requested) == batch * per_prompt for requested in made)
    assert {r for requested in made for r in requested} == set(requests)
    for requested in made:
        for i in range(0, batch * per_prompt, per_prompt):
            assert len({r.prompt for r in requested[i : i + per_prompt]}) == 1


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (8, 8), (9, 5), (12, 6), (16, 8), (64, 8)])
def test_columns(count, columns):
    """Few images make one row, many make rows of about equal length."""
    assert columns_of(count) == columns


def test_similarity_of_images():
    """Levels that are all off by 10: the PSNR is 20 log10(255 / 10) dB."""
    images = [Image.new("RGB", (8, 8), (100, 100, 100))] * 2
    psnr, difference = similarity(images, [Image.new("RGB", (8, 8), (110, 90, 110))] * 2)
    assert psnr == pytest.approx(28.13, abs=0.01)
    assert difference == 10
    assert similarity(images, images) == (float("inf"), 0)
