"""Pictures and samples."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from sdtune.data.picture_warnings import picture_warnings
from sdtune.data.pictures import bytes_of_pixel, list_pictures, load_picture, open_file, picture_problems
from sdtune.data.samples import Sampler, sample_numbers
from sdtune.data.thumbnails import save_thumbnails
from sdtune.errors import BadInput
from sdtune.settings import DataArgs


def test_pictures_are_sorted_and_hidden_files_left_out(tmp_path):
    for name in ("b.png", "a.jpg", ".DS_Store"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
    assert [p.name for p in list_pictures(tmp_path)] == ["a.jpg", "b.png"]


def test_folders_that_are_no_pictures(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        list_pictures(tmp_path / "none")
    with pytest.raises(BadInput, match="is empty"):
        list_pictures(tmp_path)
    (tmp_path / "notes.md").write_text("x", encoding="utf-8")
    (tmp_path / "broken.jpg").write_text("x", encoding="utf-8")
    halves(64, 64).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])
    halves(64, 64).save(tmp_path / "good.jpg")
    broken, cut, notes = picture_problems(list_pictures(tmp_path))
    assert "broken.jpg is no picture by its content" in broken
    assert "cut.jpg cannot be read as a picture" in cut
    assert "notes.md is no picture" in notes


def halves(width, height):
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def test_range_and_shape(tmp_path):
    halves(40, 20).save(tmp_path / "x.png")
    pixels = load_picture(tmp_path / "x.png", (16, 16), center_crop=False)
    assert pixels.shape == (3, 16, 16)
    assert pixels.min() == -1
    assert pixels.max() == 1


def test_exif_orientation_is_respected(tmp_path):
    image = halves(32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is stored as left is shown on top
    image.save(tmp_path / "x.jpg", quality=95, exif=exif)
    pixels = load_picture(tmp_path / "x.jpg", (32, 32), center_crop=False)
    assert pixels[0, 4].mean() > 0.8
    assert pixels[0, -4].mean() < -0.8


def test_center_crop_cuts_and_no_crop_squeezes(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255  # white exactly in the centred square
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert load_picture(tmp_path / "x.png", (20, 20), center_crop=True).min() == 1
    assert load_picture(tmp_path / "x.png", (60, 60), center_crop=False).min() == -1


def shade(path, **options):
    """Level of the middle of a picture, of 255."""
    return float((load_picture(path, (8, 8), False, **options)[:, 4, 4].mean() + 1) * 127.5)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("color_type", "bits", "hidden", "row"),
    [
        (0, 16, struct.pack(">H", 40000), struct.pack(">H", 40000) * 8),
        (2, 16, struct.pack(">HHH", 40000, 999, 6), struct.pack(">HHH", 40000, 999, 6) * 8),
        (0, 8, struct.pack(">H", 200), b"\xc8" * 8),
        (0, 4, struct.pack(">H", 7), b"\x77" * 4),
        (0, 1, struct.pack(">H", 1), b"\xff"),
    ],
)
def test_a_color_of_a_png_that_stands_for_nothing_shows_the_background(tmp_path, color_type, bits, hidden, row):
    """Whatever number of bits it is written with."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, color_type, 0, 0, 0))
    data = header + chunk(b"tRNS", hidden) + chunk(b"IDAT", zlib.compress((b"\0" + row) * 8)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert picture_problems([tmp_path / "x.png"]) == []
    assert shade(tmp_path / "x.png", background="black") == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_the_background(tmp_path, mode):
    """And not the colors that are hidden there."""
    image = Image.new("RGBA", (16, 16), (200, 30, 30, 0))
    if mode == "P":
        image = Image.new("P", (16, 16), 0)
        image.putpalette([200, 30, 30] * 2)
        image.info["transparency"] = 0
    image.convert(mode).save(tmp_path / "x.png")
    assert shade(tmp_path / "x.png") == 255
    assert shade(tmp_path / "x.png", background="black") == 0
    assert shade(tmp_path / "x.png", background="#808080") == pytest.approx(128, abs=1)


def test_16_bits_are_scaled(tmp_path):
    """Half of 65,535 is half of 255."""
    Image.fromarray(np.full((16, 16), 32768, np.uint16)).save(tmp_path / "x.png")
    assert shade(tmp_path / "x.png") == pytest.approx(128, abs=1)


def args(folder, **values):
    return DataArgs(path=str(folder), **{"resolution": 64, **values})


def test_what_is_warned_of(tmp_path):
    """Each by the name of its file; a picture that fits by nothing."""
    for name, image in {"fits.png": halves(64, 64), "same.png": halves(64, 64), "small.png": halves(40, 30)}.items():
        image.save(tmp_path / name)
    halves(300, 100).save(tmp_path / "wide.png")
    halves(65, 65).save(tmp_path / "moves.webp", save_all=True, append_images=[halves(65, 65).rotate(90)])
    found = picture_warnings(list_pictures(tmp_path), args(tmp_path))
    assert [line.split(",")[0].split(" ")[0] for line in found] == ["moves.webp", "same.png", "small.png", "wide.png"]
    assert "shows the same as fits.png" in found[1]
    assert "is enlarged to 64 x 64" in found[2]
    assert "distorts it 3.0 times" in found[3]
    assert "center_crop cuts 67 % off" in picture_warnings([tmp_path / "wide.png"], args(tmp_path, center_crop=True))[0]


def test_pictures_in_buckets_are_warned_of_as_well(tmp_path):
    halves(20, 15).save(tmp_path / "0.png")
    halves(400, 10).save(tmp_path / "1.png")
    found = picture_warnings(list_pictures(tmp_path), args(tmp_path, aspect_ratio_buckets=True, resolution=128))
    assert "0.png, 20 x 15 pixels, is enlarged to 128 x 128" in found[0]
    assert "of 1.png, 400 x 10 pixels, aspect_ratio_buckets cuts 90 % off" in found[1]


def test_a_logo_of_the_color_of_its_background_is_empty(tmp_path):
    logo = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    logo.paste((0, 0, 0, 255), (20, 20, 40, 40))
    logo.save(tmp_path / "0.png")
    assert picture_warnings(list_pictures(tmp_path), args(tmp_path)) == []
    [warning] = picture_warnings(list_pictures(tmp_path), args(tmp_path, background="black"))
    assert "is of one color, #000000" in warning


def test_a_telephones_picture_with_two_views_is_no_animation(tmp_path):
    halves(64, 64).save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=[halves(64, 64)])
    assert picture_warnings(list_pictures(tmp_path), args(tmp_path)) == []


@pytest.mark.parametrize(("kind", "name"), [("TIFF", "0.png"), ("GIF", "0.png"), ("EPS", "0.jpg")])
def test_a_picture_of_another_format_is_refused_by_its_content(tmp_path, kind, name):
    """And no decoder sees it, such as Ghostscript."""
    halves(8, 8).save(tmp_path / name, format=kind)
    [problem] = picture_problems([tmp_path / name])
    assert problem.startswith(f"{tmp_path / name} is ")
    with pytest.raises(UnidentifiedImageError):
        load_picture(tmp_path / name, (8, 8), False)


@pytest.mark.parametrize(
    ("mode", "side", "right"),
    [
        ("P", 9000, False),
        ("P", 7500, True),
        ("RGB", 11_000, True),
        ("L", 12_000, False),
        ("RGBA", 9000, False),
        ("I;16", 8000, False),
        ("I;16", 7800, True),
    ],
)
def test_a_picture_that_takes_too_much_memory_is_refused_by_its_header(tmp_path, monkeypatch, mode, side, right):
    """In the form in which it is put on a background; a small file can hold a huge picture of one color."""
    Image.new(mode, (1, 1)).save(tmp_path / "0.png", **({"transparency": 0} if mode == "P" else {}))
    data = (tmp_path / "0.png").read_bytes()
    chunk = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    (tmp_path / "0.png").write_bytes(data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: loaded.append(image.size))
    found = picture_problems([tmp_path / "0.png"])
    assert (found == []) == right
    assert loaded == [(side, side)] * right
    if not right:
        assert f"has {side} x {side} pixels" in found[0]
        assert "GB of memory; scale it to" in found[0]


@pytest.mark.parametrize(
    ("mode", "kind", "takes"), [("RGB", "JPEG", 8), ("CMYK", "JPEG", 12), ("RGB", "WEBP", 16), ("LA", "PNG", 16)]
)
def test_the_memory_of_a_decoder_counts(tmp_path, mode, kind, takes):
    """Measured with pictures of a gigabyte: three copies of four bytes for CMYK, four for WebP."""
    Image.new(mode, (8, 8)).save(tmp_path / "0", format=kind)
    with open_file(tmp_path / "0") as image:
        assert bytes_of_pixel(image) == takes


def test_an_empty_picture_is_warned_of(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "0.png")
    hidden = halves(64, 64).convert("RGBA")
    hidden.putalpha(0)
    hidden.save(tmp_path / "1.png")
    halves(64, 64).save(tmp_path / "2.png")
    found = [line for line in picture_warnings(list_pictures(tmp_path), args(tmp_path)) if "one color" in line]
    assert [line.split(",")[0] for line in found] == ["0.png is of one color", "1.png is of one color"]


@pytest.mark.parametrize("name", [b"a\nb.png", b"\xff.png"])
def test_a_name_that_cannot_be_printed_is_named_on_one_line(tmp_path, name):
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:  # noqa: PTH123 - bytes
        halves(8, 8).save(file, format="PNG")
    [problem] = picture_problems(list_pictures(tmp_path))
    assert problem.isprintable()
    assert "rename it" in problem


def test_the_report_shows_what_the_model_sees(tmp_path):
    """The square, on the background."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGBA", (40, 20), (200, 30, 30, 0)).save(folder / "0.png")
    data = DataArgs(path=str(folder), resolution=16, background="black")
    save_thumbnails(list_pictures(folder), tmp_path / "concept", data)
    with Image.open(tmp_path / "concept/000.png") as copy:
        assert copy.size == (16, 16)
        assert copy.getpixel((8, 8)) == (0, 0, 0)


SAMPLER = Sampler(seed=3, pictures=5, captions=7, timesteps=1000, shape_of=lambda _: (4, 8, 8))


def test_a_sample_depends_on_its_number_only():
    first = SAMPLER(12)
    SAMPLER(99)
    again = Sampler(3, 5, 7, 1000, lambda _: (4, 8, 8))(12)
    assert first.timestep == again.timestep
    assert torch.equal(first.noise, again.noise)


def test_no_two_samples_have_the_same_noise():
    noises = torch.stack([SAMPLER(n).noise.flatten() for n in range(64)])
    correlation = torch.corrcoef(noises) - torch.eye(64)
    assert correlation.abs().max() < 0.4  # 256 numbers each: 1/16 is one standard deviation
    assert not torch.equal(SAMPLER(0).noise, Sampler(4, 5, 7, 1000, lambda _: (4, 8, 8))(0).noise)
    assert not torch.equal(SAMPLER(0).noise, SAMPLER(0).latent_noise)


def test_samples_cover_their_ranges_evenly():
    samples = [SAMPLER(n) for n in range(2000)]
    timesteps = np.array([s.timestep for s in samples])
    assert timesteps.min() < 10
    assert timesteps.max() > 990
    assert abs(timesteps.mean() - 499.5) < 25
    assert abs(np.mean([s.mirrored for s in samples]) - 0.5) < 0.05
    assert {s.caption for s in samples} == set(range(7))
    assert abs(torch.stack([s.noise for s in samples]).std() - 1) < 0.01


def test_every_epoch_shows_every_picture_once():
    epochs = [[SAMPLER(e * 5 + i).picture for i in range(5)] for e in range(20)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


@pytest.mark.parametrize(("world_size", "batch", "accumulation"), [(1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 2, 4)])
def test_ranks_and_micro_steps_divide_the_same_samples(world_size, batch, accumulation):
    numbers = [
        n
        for micro in range(accumulation)
        for rank in range(world_size)
        for n in sample_numbers(24, micro, rank, batch=batch, world_size=world_size)
    ]
    assert numbers == list(range(24, 32))
