"""What provisioning recorded, and what teardown leaves."""

from plugins.filter import manifest

TEXT = """tree /srv/x/env/native
holder /srv/x/env
holder /srv/x
user sdtune
tree /srv/x/runs

holder /srv/x/env/native.d
"""


def test_entries():
    found = manifest.manifest_read(TEXT)
    assert found["trees"] == ["/srv/x/env/native", "/srv/x/runs"]
    assert found["holders"] == ["/srv/x/env/native.d", "/srv/x/env", "/srv/x"], "what is inside goes first"
    assert found["users"] == ["sdtune"]
    assert manifest.manifest_read("") == {"trees": [], "holders": [], "users": []}


def test_what_the_manifest_keeps():
    kept = manifest.manifest_kept(TEXT, "/srv/x/runs").splitlines()
    assert kept == [
        "user sdtune",
        "holder /srv/x/env",
        "holder /srv/x",
        "holder /srv/x/env/native.d",
        "tree /srv/x/runs",
    ]
    assert "tree" not in manifest.manifest_kept("tree /srv/x/env\nuser a\n", "/srv/x/runs")


def test_arguments_of_the_script():
    assert manifest.manifest_lines(["/a b"], ["/c"], ["user x"]) == ["tree /a b", "holder /c", "made user x"]


def test_what_stays_is_told_with_the_reason():
    assert manifest.teardown_summary([], "/srv/x", "/srv/x/runs") == "nothing of it is left"
    words = manifest.teardown_summary(
        ["/srv/x/models", "/srv/x/models/mine", "/srv/x/runs"], "/srv/x", "/srv/x/runs", user="sdtune"
    )
    assert words == (
        "/srv/x stays, with models, models/mine, runs; runs are kept unless teardown_runs=true; "
        "the user sdtune stays, whose home holds it"
    )
    words = manifest.teardown_summary([], "/srv/x", "/srv/x/runs", "/srv/x/.provisioned", "sdtune", ["thesis"])
    assert words == (
        "/srv/x/.provisioned does not exist, so nothing but the key was ours to remove; "
        "the user sdtune stays, whose home holds thesis"
    )
