"""scripts/outdated.py: what holds a package back, of the metadata of the others and of our notes."""

from outdated import holders, needs, read_notes, table

REQUIRED = {
    "optimum-intel 2.1.0": [
        "transformers<5.6,>=4.45",
        'openvino>=2026; extra == "openvino"',
        'torch<2; extra == "tests"',
    ],
    "peft 0.19": ["Transformers", "torch>=1.13"],
    "old 1.0": ['transformers<5; python_version < "3"'],
}


def test_the_packages_that_forbid_the_newest():
    """Not those of another Python, and not those of extras that nobody has."""
    assert holders("transformers", "5.23.0", REQUIRED) == ["optimum-intel 2.1.0: <5.6,>=4.45"]
    assert holders("torch", "2.15.0", REQUIRED) == []
    assert holders("openvino", "2025.1", REQUIRED) == ["optimum-intel 2.1.0: >=2026"]


def test_what_the_newest_version_needs():
    """A newer version of another package, or one that is not there; not for an extra that nobody has."""
    wants = [
        "hub<3,>=1.32",
        "safe-tensors>=0.8",
        "vision",
        'tests; extra == "dev"',
        'old; python_version < "3"',
        "regex",
    ]
    assert needs(wants, {"hub": "1.21", "Safe_Tensors": "0.8.1", "regex": "1"}) == [
        "needs hub <3,>=1.32, ours is 1.21",
        "needs vision, which is missing",
    ]


def test_the_table():
    """By name, with our own reasons, and what can be raised."""
    outdated = [
        {"name": "torch", "version": "2.13.0", "latest_version": "2.15.0"},
        {"name": "peft", "version": "0.19", "latest_version": "0.21"},
        {"name": "diffusers", "version": "0.37", "latest_version": "0.42"},
        {"name": "Transformers", "version": "5.5.4", "latest_version": "5.23.0"},
    ]
    notes = read_notes("# a comment\ntorch: has no CPU build\n")
    newest = {"diffusers 0.42": ["needs hub >=1.32, ours is 1.21"], "peft 0.21": []}  # the others are held back already
    lines = table(outdated, REQUIRED, notes, lambda name, version: newest[f"{name} {version}"]).splitlines()
    assert lines == [
        "package       ours    newest  held back by",
        "diffusers     0.37    0.42    needs hub >=1.32, ours is 1.21",
        "peft          0.19    0.21    nothing: raise it",
        "torch         2.13.0  2.15.0  has no CPU build",
        "Transformers  5.5.4   5.23.0  optimum-intel 2.1.0: <5.6,>=4.45",
    ]
