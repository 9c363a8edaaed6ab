"""Contact sheets and the grouping of pictures into calls."""

import pytest
from PIL import Image

from sdtune.data.sheets import columns_of, contact_sheet
from sdtune.inference.generation import Request, calls
from sdtune.inference.openvino import StaticShape


def test_a_sheet_shows_every_picture():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sheet = contact_sheet([Image.new("RGB", (16, 16), c) for c in colours], ["a", "b", "c"], columns=2, cell=64)
    seen = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert set(colours) <= seen


@pytest.mark.parametrize(("count", "captions"), [(0, []), (2, ["a"])])
def test_a_sheet_needs_pictures_and_a_caption_for_each(count, captions):
    with pytest.raises(ValueError, match="do not make a sheet"):
        contact_sheet([Image.new("RGB", (8, 8))] * count, captions, columns=2)


@pytest.mark.parametrize(("batch", "per_prompt"), [(1, 1), (2, 1), (1, 2), (3, 2), (5, 4)])
def test_calls_hold_every_request_in_whole_groups(batch, per_prompt):
    requests = [Request(prompt, seed) for prompt in "ab" for seed in (1, 2, 3)]
    made = calls(requests, StaticShape(batch_size=batch, num_images_per_prompt=per_prompt, height=64, width=64))
    assert all(len(call) == batch * per_prompt for call in made)
    assert {r for call in made for r in call} == set(requests)
    for call in made:
        for i in range(0, len(call), per_prompt):
            assert len({r.prompt for r in call[i : i + per_prompt]}) == 1


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (8, 8), (9, 5), (12, 6), (16, 8), (64, 8)])
def test_columns(count, columns):
    """Few pictures make one row, many make rows of about the same length."""
    assert columns_of(count) == columns
