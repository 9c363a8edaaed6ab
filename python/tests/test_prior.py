"""Prior preservation: class pictures are drawn once, by the worker pool or by the ranks, and count in the loss."""

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import generate_images
from sdtune.data.samples import CLASS_NUMBERS, Sampler
from sdtune.errors import BadInput
from sdtune.inference.class_pictures import class_files
from sdtune.models.latent_diffusion import LatentDiffusionNetworks
from sdtune.training import class_pictures
from sdtune.training.checks import check_job
from sdtune.training.class_pictures import class_picture_warnings
from sdtune.training.trainer import train
from tests.conftest import CLASS_PROMPT, learned_adapters, run_ranks, write_job


def test_class_samples_are_drawn_apart_from_the_others():
    with_classes = Sampler(3, 5, 7, 1000, lambda _: (4, 8, 8), class_pictures=4, class_weight=0.5)
    assert torch.equal(with_classes(9).noise, Sampler(3, 5, 7, 1000, lambda _: (4, 8, 8))(9).noise)
    epoch = [with_classes.class_sample(n) for n in range(4)]
    assert sorted(sample.picture for sample in epoch) == [5, 6, 7, 8]
    assert [sample.number for sample in epoch] == [CLASS_NUMBERS + n for n in range(4)]
    assert not torch.equal(epoch[0].noise, with_classes(0).noise)
    assert with_classes.pictures_of(2)[1] == (epoch[2].picture, False)


def test_class_pictures_are_drawn_once_and_preserve_what_was_there(lora_job, tmp_path):
    """Two ranks share out the drawing; a second run draws nothing; the loss on class pictures counts."""
    prior = {"preservation": True, "class_prompt": CLASS_PROMPT, "num_class_images": 3}
    two = lora_job("two", prior=prior, training={"world_size": 2, "train_batch_size": 1, "adam_epsilon": 1e-3})
    run_ranks(write_job(tmp_path / "job.yaml", two), 2)
    times = [path.stat().st_mtime_ns for path in class_files(two)]
    one = lora_job("one", prior=prior, training={"adam_epsilon": 1e-3})
    train(one)
    assert [path.stat().st_mtime_ns for path in class_files(one)] == times
    torch.testing.assert_close(learned_adapters(two), learned_adapters(one), rtol=1e-3, atol=1e-5)
    without = lora_job("without", training={"adam_epsilon": 1e-3})
    train(without)
    assert not torch.allclose(learned_adapters(without), learned_adapters(one), rtol=1e-2, atol=1e-4)


def test_the_worker_pool_draws_those_that_are_missing(lora_job, tmp_path, monkeypatch, capsys):
    """Two that an earlier call has drawn stay; training then uses all, and draws none itself."""
    prior = {"preservation": True, "class_prompt": "a toy in the snow", "num_class_images": 3}
    job = lora_job(prior=prior)
    file, files = write_job(tmp_path / "job.yaml", job), class_files(job)
    files[0].parent.mkdir(parents=True)
    for kept in files[:2]:
        Image.effect_noise((32, 32), 90).convert("RGB").save(kept)
    before = [kept.read_bytes() for kept in files[:2]]

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["generate_images.py", "--class-pictures", str(file), *flags])
        generate_images.main()
        return capsys.readouterr().out

    found = json.loads(call("--check"))
    assert (found["pictures"], found["missing"], found["folder"]) == (3, 1, str(files[0].parents[1]))
    call()
    assert json.loads(call("--check"))["missing"] == 0
    assert [kept.read_bytes() for kept in files[:2]] == before
    monkeypatch.delattr(LatentDiffusionNetworks, "draw")
    train(job)


def test_every_host_gets_the_pictures_of_the_first_that_has_them(tmp_path, monkeypatch):
    hosts = [[tmp_path / host / f"{number}.png" for number in range(3)] for host in "ab"]
    for files, contents in zip(hosts, [("0", "1", ""), ("", "other", "2")], strict=True):
        files[0].parent.mkdir()
        for path, content in zip(files, contents, strict=True):
            if content:
                path.write_text(content, encoding="utf-8")
    barrier, parts, local = threading.Barrier(2), {}, threading.local()

    def gather(mine):
        parts[local.rank] = mine
        barrier.wait(60)
        everything = parts[0] + parts[1]
        barrier.wait(60)
        return everything

    def on_rank(rank):
        local.rank = rank
        class_pictures._share(hosts[rank], rank)

    monkeypatch.setattr(class_pictures, "gather_object", gather)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(on_rank, range(2)))
    assert [[path.read_text(encoding="utf-8") for path in files] for files in hosts] == [["0", "1", "2"]] * 2


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"preservation": True}, "prior.class_prompt: prior preservation needs the caption of the class pictures"),
        ({"class_prompt": "a toy"}, "prior.class_prompt: it is of no use without prior preservation; switch prior"),
        ({"num_class_images": 3}, "prior.num_class_images: it is of no use without prior preservation"),
        ({"loss_weight": 0.5}, "prior.loss_weight: it is of no use without prior preservation"),
        (
            {"preservation": True, "class_prompt": "toy " * 40},
            "prior.class_prompt: the caption has 42 tokens, and the text encoder takes 32: .*; shorten it",
        ),
        (
            {"preservation": True, "class_prompt": "a toy", "class_path": "pictures"},
            r"prior.class_path: .* holds 3 pictures, and 100 are asked for .*; add pictures, or ask for at most 3",
        ),
        (
            {"preservation": True, "class_prompt": "a toy", "class_path": "data/../data"},
            r"prior.class_path: .* is the folder of the training pictures too \(data.path\)",
        ),
    ],
)
def test_what_is_wrong_with_prior_preservation_is_named(lora_job, pictures, tmp_path, prior, message):
    places = {"pictures": str(shutil.copytree(pictures, tmp_path / "pictures")), "data/../data": f"{pictures}/."}
    prior = {key: places.get(value, value) for key, value in prior.items()}
    with pytest.raises(BadInput, match=message):
        check_job(lora_job(prior=prior))


def test_class_pictures_are_warned_of_like_the_others(lora_job, tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "0.png")
    prior = {"preservation": True, "class_prompt": "a toy", "class_path": str(tmp_path), "num_class_images": 1}
    found = class_picture_warnings(lora_job(prior=prior))
    assert found[0].startswith("prior.class_path: 0.png, 5 x 5 pixels, is enlarged")
    assert "is of one color" in found[1]
