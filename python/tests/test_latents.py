"""The latent cache, and the geometry that its shapes come from."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw

from sdtune.data.buckets import bucket_of
from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures, load_picture
from sdtune.data.posterior_files import PosteriorFiles
from sdtune.models.geometry import read_geometry
from sdtune.models.latent_diffusion import load_vae_encoder


@pytest.fixture
def make_cache(untrained_model, pictures, tmp_path):
    """Make a cache of three pictures at 32 pixels, with the files of a host of this name.

    All caches share one encoder: ranks are threads here, and diffusers cannot load networks in two threads at once.
    """
    vae = load_vae_encoder(untrained_model)

    def make(host="host", folder=pictures, resolution=32, **options):
        geometry, files = read_geometry(untrained_model), PosteriorFiles(tmp_path / host, "vae")
        return LatentCache(geometry, lambda: vae, files, list_pictures(folder), resolution, False, **options)

    return make


def test_geometry_is_that_of_the_vae(untrained_model):
    geometry = read_geometry(untrained_model)
    vae = AutoencoderKL.from_pretrained(untrained_model, subfolder="vae").eval()
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 48, 48)).latent_dist.mean[0]
    assert geometry.latent_shape(48) == tuple(latents.shape)
    assert geometry.scaling_factor == vae.config.scaling_factor


def test_the_cache_holds_the_posterior_of_the_vae(make_cache, untrained_model, pictures):
    cache = make_cache()
    assert cache.encode([(1, True)]) == 1
    vae = AutoencoderKL.from_pretrained(untrained_model, subfolder="vae").eval()
    pixels = load_picture(list_pictures(pictures)[1], (32, 32), center_crop=False)
    with torch.no_grad():
        posterior = vae.encode(pixels.flip(-1)[None]).latent_dist
    assert torch.equal(cache.mean(1, True), posterior.mean[0] * vae.config.scaling_factor)
    noise = torch.randn(cache.shape_of(1))
    expected = (posterior.mean[0] + posterior.std[0] * noise) * vae.config.scaling_factor
    torch.testing.assert_close(cache.sample(1, True, noise), expected)


ENTRIES = [(k, mirrored) for k in range(3) for mirrored in (False, True)]


def test_a_damaged_file_is_encoded_again(make_cache, tmp_path):
    make_cache().encode([(0, False)])
    [file] = (tmp_path / "host").iterdir()
    whole = file.read_bytes()
    for broken in (whole[:-40] + bytes(8) + whole[-32:], whole[:100], b"", whole[:-32]):
        file.write_bytes(broken)
        assert make_cache().encode([(0, False)]) == 1
        assert file.read_bytes() == whole
    assert make_cache().encode([(0, False)]) == 0


def test_the_vae_is_freed_when_all_is_encoded_and_files_stay_for_the_next_run(make_cache):
    cache = make_cache()
    assert [cache.encode(ENTRIES[:2]), cache.encode(ENTRIES), cache.encode(ENTRIES)] == [2, 4, 0]
    assert cache.complete
    assert cache._encode is None
    again = make_cache()
    assert again.encode(ENTRIES) == 0
    assert torch.equal(again.mean(2, True), cache.mean(2, True))


def test_a_picture_is_encoded_once_in_the_cluster(make_cache, tmp_path):
    """Two hosts: one has encoded a picture in an earlier, killed run; the others are shared out; both end the same."""
    make_cache("a").encode([(0, False)])
    barrier, parts = threading.Barrier(2), {}

    def on_rank(rank):
        def all_reduce(tensor):
            parts[rank] = tensor
            barrier.wait(60)
            summed = parts[0] + parts[1]
            barrier.wait(60)
            return summed

        cache = make_cache("ab"[rank], rank=rank, world_size=2, sum_over_ranks=all_reduce)
        encode, work = cache._posterior, []
        cache._posterior = lambda *entry: work.append(entry) or encode(*entry)
        return cache.encode(ENTRIES), work

    with ThreadPoolExecutor(2) as pool:
        (encoded, first), (same, second) = pool.map(on_rank, range(2))
    assert encoded == same == 5
    assert sorted(first + second) == ENTRIES[1:]
    assert abs(len(first) - len(second)) == 1
    alone = make_cache("c")
    alone.encode(ENTRIES)
    assert [{p.name: p.read_bytes() for p in (tmp_path / host).iterdir()} for host in "ab"] == [
        {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    ] * 2


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (512, 512, (512, 512)),
        (100, 100, (512, 512)),
        (1600, 900, (640, 384)),
        (900, 1600, (384, 640)),
        (4000, 1, (4096, 64)),
    ],
)
def test_buckets_keep_proportions_and_fit_the_pixels(width, height, size):
    assert bucket_of(width, height, 512 * 512) == size


def test_a_picture_in_a_bucket_is_cut_and_not_squeezed(make_cache, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    disc = Image.new("RGB", (300, 100))
    ImageDraw.Draw(disc).ellipse((110, 10, 190, 90), fill="white")
    disc.save(folder / "wide.png")
    disc.rotate(90, expand=True).save(folder / "tall.png")
    cache = make_cache(folder=folder, resolution=128, buckets=True)
    assert [cache.shape_of(k)[1:] for k in range(2)] == [(24, 8), (8, 24)]
    white = load_picture(folder / "wide.png", (192, 64), True).mean(0) > 0
    rows, columns = white.any(1).sum().item(), white.any(0).sum().item()
    assert abs(rows - columns) <= 1
    assert cache.encode([(0, False), (1, True)]) == 2
