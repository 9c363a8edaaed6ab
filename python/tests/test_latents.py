"""The latent cache, and the geometry that its shapes come from."""

import pytest
import torch
from diffusers import AutoencoderKL

from sdtune.data.latents import LatentCache
from sdtune.data.pictures import list_pictures, load_picture
from sdtune.models.geometry import read_geometry
from sdtune.models.sd import load_vae_encoder


@pytest.fixture
def make_cache(untrained_model, pictures):
    """Make a cache of three pictures at 32 pixels."""

    def make(**options):
        geometry = read_geometry(untrained_model)
        return LatentCache(
            geometry, lambda: load_vae_encoder(untrained_model), list_pictures(pictures), 32, False, **options
        )

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
    pixels = load_picture(list_pictures(pictures)[1], 32, center_crop=False)
    with torch.no_grad():
        posterior = vae.encode(pixels.flip(-1)[None]).latent_dist
    assert torch.equal(cache.mean(1, True), posterior.mean[0] * vae.config.scaling_factor)
    noise = torch.randn(cache.shape)
    expected = (posterior.mean[0] + posterior.std[0] * noise) * vae.config.scaling_factor
    torch.testing.assert_close(cache.sample(1, True, noise), expected)


def test_a_picture_is_encoded_once_in_the_cluster_and_the_vae_is_freed(make_cache, untrained_model):
    entries = [(k, mirrored) for k in range(3) for mirrored in (False, True)]
    one_rank = make_cache()
    assert [one_rank.encode(entries[:2]), one_rank.encode(entries), one_rank.encode(entries)] == [2, 4, 0]
    assert one_rank.complete
    assert one_rank._encode is None

    shares: list[torch.Tensor] = []
    for rank in range(2):
        cache = make_cache(rank=rank, world_size=2, sum_over_ranks=lambda x: shares.append(x) or x)
        cache.encode(entries)
    worked = torch.stack([share.flatten(1).abs().sum(1) > 0 for share in shares])
    assert worked.sum(0).tolist() == [1] * 6  # each picture by exactly one rank
    scaling_factor = read_geometry(untrained_model).scaling_factor
    for i, entry in enumerate(entries):
        assert torch.equal((shares[0] + shares[1])[i, 0] * scaling_factor, one_rank.mean(*entry))
