"""roles/ssh_mesh/files/keypair.sh: the cluster key is made once, and again only where it has to be."""

import subprocess

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "roles/ssh_mesh/files/keypair.sh"


@pytest.fixture
def keypair(tmp_path):
    """Run the script; the lines that it prints."""

    def run(what: str) -> list[str]:
        command = ["sh", "-s", str(tmp_path / "key"), "a comment", what]
        return subprocess.run(
            command, input=SCRIPT.read_text(), capture_output=True, text=True, check=True
        ).stdout.splitlines()

    return run


def test_the_key_is_made_once(keypair, tmp_path):
    assert keypair("show") == []
    assert not list(tmp_path.iterdir())
    created, public = keypair("keep")
    assert created == "created"
    assert keypair("keep") == keypair("show") == [public]
    assert (tmp_path / "key.pub").read_text() == f"{public} a comment\n"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_new_key_is_made_on_demand(keypair):
    before = keypair("keep")[-1]
    assert keypair("rotate")[0] == "created"
    assert keypair("keep") != [before]


@pytest.mark.parametrize("kind", [None, ["-t", "rsa", "-N", ""], ["-t", "ed25519", "-N", "secret"]])
def test_a_key_that_ranks_cannot_use_is_replaced(keypair, tmp_path, kind):
    """Damaged, of another type, with a passphrase."""
    key = tmp_path / "key"
    if kind is None:
        key.write_text("damaged\n")
    else:
        subprocess.run(["ssh-keygen", "-q", "-f", str(key), *kind], check=True)
    assert keypair("show") == []
    assert keypair("keep")[0] == "created"


def test_a_key_that_others_may_read_is_kept(keypair, tmp_path):
    """As an interrupted copy or a restored backup leaves it."""
    public = keypair("keep")[-1]
    (tmp_path / "key").chmod(0o644)
    assert keypair("keep") == [public]
