"""What the rules about folders say, from what hosts answered."""

import pytest

from plugins.filter import storage

FOLDERS = {
    "/srv/x": {"at": "/srv/x", "noexec": False, "read_only": False},
    "/srv/x/env": {"at": "/srv/x", "noexec": False, "read_only": False},
    "/srv/x/runs": {"at": "/srv/x/runs", "noexec": True, "read_only": False},
    "/home/u": {"at": "/home/u", "noexec": True, "read_only": True},
}


def test_folders_with_a_fault_are_named_once():
    assert storage.storage_folders(FOLDERS, "noexec", ["/srv/x", "/srv/x/runs"]) == "/srv/x/runs"
    assert storage.storage_folders(FOLDERS, "noexec") == "/srv/x/runs, /home/u"
    assert storage.storage_folders(dict.fromkeys("ab", FOLDERS["/home/u"]), "read_only") == "a"
    assert storage.storage_folders({}, "read_only") == ""


def test_marks_of_the_other_hosts():
    """A host that could not leave one, or does not answer, has none."""
    answers = {"a": {"mark": "/m/1"}, "b": {"mark": "/m/2"}, "c": {"mark": "", "error": "x"}, "d": {}}
    assert storage.storage_marks(answers, "a") == ["b=/m/2"]
    assert storage.storage_marks(answers, "c") == ["a=/m/1", "b=/m/2"]


@pytest.mark.parametrize(
    ("mode", "text", "file", "umask"),
    [
        ("0700", "0700", "0600", "0077"),
        ("750", "0750", "0640", "0027"),
        (0o755, "0755", "0644", "0022"),  # as YAML reads it without quotes
    ],
)
def test_modes(mode, text, file, umask):
    assert (storage.mode_text(mode), storage.file_mode(mode), storage.umask_of(mode)) == (text, file, umask)
