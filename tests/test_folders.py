"""Model and pictures: what was recorded is demanded, what differs is repaired and named. The web is a fake."""

import hashlib
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hub_fake import HubFake

PNG = b"\x89PNG\r\n\x1a\n"  # nothing more is looked at
HF = REPOSITORY / ".cache/test/env/native/bin/hf"


def said(done) -> str:
    """What a playbook printed, on one line."""
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def web(tmp_path):
    """A folder that is a web server's and a hub's."""
    folder = Path(shutil.copytree(REPOSITORY / "toyworld/model", tmp_path / "web"))
    (folder / "README.md").touch()
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes(PNG + name.encode())
    (folder / "page.png").write_text("<!doctype html>")
    return folder


def test_pictures_from_the_web(playbook, tmp_path, web):
    """Fetched once, recorded on the control node, repaired from then on, and refused when the web has others."""
    record = tmp_path / "toy.pictures.sha256"
    pictures = tmp_path / "work/data/concept"
    with HubFake(web) as hub:
        settings = {
            "training_data_source": "", "training_data_record": str(record),
            "training_data_urls": [f"{hub.url}/files/0.png?download=true", f"{hub.url}/files/1.png"],
        }  # fmt: skip

        def provision(*args, **more):
            return playbook("provision.yml", "--tags", "training_data", *args, **(settings | more))

        assert provision().returncode == 0
        assert sorted(p.name for p in pictures.iterdir()) == ["00-0.png", "01-1.png"]
        assert len(record.read_text().splitlines()) == 3
        asked = len(hub.seen)
        assert "changed=0" in provision().stdout
        assert len(hub.seen) == asked

        (pictures / "01-1.png").write_text("damaged")
        (pictures / "02-2.png").write_text("foreign")
        done = provision()
        assert "missing, different or foreign: 01-1.png, 02-2.png" in said(done)
        assert sorted(p.read_bytes() for p in pictures.iterdir()) == [PNG + b"0.png", PNG + b"1.png"]

        (web / "1.png").write_bytes(PNG + b"another picture")
        (pictures / "01-1.png").unlink()
        done = provision()
        assert done.returncode == 2
        assert f"is not the one that {record} records (01-1.png)" in said(done)
        # without the record the new one is taken; by a proxy; a picture that is not asked for any more leaves
        record.unlink()
        far = "http://pictures.invalid/files/1.png"
        assert provision(training_data_urls=[far], cluster_proxy=hub.url).returncode == 0
        assert f"GET {far}" in hub.seen
        assert [p.name for p in pictures.iterdir()] == ["00-1.png"]
        assert (pictures / "00-1.png").read_bytes() == PNG + b"another picture"

        record.unlink()
        done = provision(training_data_urls=[f"{hub.url}/files/page.png"])
        assert "00-page.png is a page (HTML or XML) in place of the picture" in said(done)
        assert not record.exists()
        assert not list(pictures.iterdir())


def test_a_copy_that_was_cut_off_is_finished(playbook, tmp_path, pictures):
    """The list of checksums never outlives what it was made from."""
    provision = ("provision.yml", "--tags", "training_data")
    assert playbook(*provision, training_data_source=str(pictures)).returncode == 0
    installed = tmp_path / "work/data/concept"
    (pictures / "0.jpg").write_bytes(b"\xff\xd8\xff another picture")
    shutil.copy(pictures / "0.jpg", installed / "0.jpg")  # as after a kill between copying and recording
    assert playbook(*provision, training_data_source=str(pictures)).returncode == 0
    manifest = Path(f"{installed}.sha256").read_text()
    assert playbook(*provision, training_data_source=str(pictures)).stdout.count("changed=0") == 1
    assert manifest == Path(f"{installed}.sha256").read_text()
    assert hashlib.sha256(b"\xff\xd8\xff another picture").hexdigest() in manifest


@pytest.mark.skipif(not HF.exists(), reason="make pytest provisions the hub's client")
def test_a_model_from_a_hub(playbook, tmp_path, web, monkeypatch):
    """The real client against a fake of a hub that asks for a token, which is told to nobody."""
    model = tmp_path / "work/models/toyworld"
    with HubFake(web, token="open-sesame") as hub:
        settings = {
            "base_model_source": "", "base_model_hub_id": "someone/model", "base_model_revision": "v1",
            "base_model_hub_endpoint": hub.url, "cluster_env_prefix": str(HF.parents[1]),
            "base_model_record": str(tmp_path / "model.sha256"),
        }  # fmt: skip
        provision = ("provision.yml", "--tags", "base_model")
        monkeypatch.setenv("HF_TOKEN", "wrong-sesame")
        done = playbook(*provision, **settings)
        assert done.returncode == 2
        assert "someone/model at v1 cannot be fetched" in said(done)
        assert "HF_TOKEN" in said(done)
        monkeypatch.setenv("HF_TOKEN", "open-sesame")
        done = playbook(*provision, "-vvv", **settings)
        assert done.returncode == 0, said(done)
        assert "open-sesame" not in done.stdout + done.stderr
        assert not [p for p in (tmp_path / "work").rglob("*") if p.is_file() and b"open-sesame" in p.read_bytes()]
        assert (model / "unet/diffusion_pytorch_model.safetensors").exists()
        assert not (model / "README.md").exists()
        assert not (model / ".cache").exists()
        assert "changed=0" in playbook(*provision, **settings).stdout
        (model / "vae/config.json").write_text("damaged")
        assert "missing, different or foreign: vae/config.json" in said(playbook(*provision, **settings))
        assert (model / "vae/config.json").read_bytes() == (web / "vae/config.json").read_bytes()
