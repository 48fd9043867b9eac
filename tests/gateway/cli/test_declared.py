"""Files of tenants: what they say, and the line of what they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from serving.errors import Refusal
from serving.gateway.cli import declared
from serving.gateway.identity.keys import mint
from serving.gateway.ledger.prices import Price
from serving.gateway.nouns import Right, Role
from serving.gateway.policies import Policy
from tests.gateway.whole import WHOLE


def read(tmp_path: Path, text: str) -> declared.Declared:
    path = tmp_path / "tenants.yaml"
    path.write_text(text)
    return declared.read(path)


def test_a_file_says_tenants_keys_policies_and_prices(tmp_path: Path) -> None:
    """Policies by name or in place, keys by the file beside it, prices in the currency."""
    secret = mint()
    (tmp_path / "ci.key").write_text(f"{secret}\n")
    said = read(
        tmp_path,
        """
        prices: {m: {prompt: 0.15, completion: "0.6"}}
        policies: {small: {tokens_per_day: 5}}
        tenants:
          acme:
            policy: small
            disabled: true
            keys:
              ci: {key_file: ci.key, role: tenant_admin, rights: [ignore_eos], policy: {models: [m]}}
              old: {}
          other:
        """,
    )
    assert said.prices == {"m": Price(150_000, 150_000, 600_000)}
    assert said.tenants is not None
    acme, other = said.tenants
    assert (acme.policy, acme.is_disabled) == (Policy(tokens_per_day=5), True)
    assert acme.keys is not None
    assert acme.keys[0] == declared.WantedKey(
        "ci", secret, Role.TENANT_ADMIN, (Right.IGNORE_EOS,), Policy(models=("m",))
    )
    assert acme.keys[1] == declared.WantedKey("old", None, None, None, None)
    assert other == declared.WantedTenant("other", None, None, None)


def test_every_field_of_a_policy_can_be_said(tmp_path: Path) -> None:
    """One in which every field of the struct says something is read whole."""
    text = yaml.safe_dump({"tenants": {"acme": {"policy": json.loads(msgspec.json.encode(WHOLE))}}})
    said = read(tmp_path, text).tenants
    assert said is not None and said[0].policy == WHOLE


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    """And a section that is not there is none of its business."""
    assert read(tmp_path, "") == declared.Declared(None, None)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("tenant: {}", 1, "there is no section 'tenant'"),
        ("tenants:\n  acme:\n    polcy: x", 3, "tenants.acme.polcy: Object contains unknown field `polcy`"),
        ("tenants:\n  acme:\n    policy:\n      tokens_a_day: 5", 4, "Object contains unknown field `tokens_a_day`"),
        ("tenants:\n  acme:\n    policy:\n      weight: 0", 4, "tenants.acme.policy.weight: Expected `float` >= 0.001"),
        ("tenants:\n  acme:\n    policy: small", 3, "there is no policy 'small' in `policies`"),
        ("policies:\n\n  small: {weight: -1}", 3, "policies.small.weight: Expected `float` >= 0.001"),
        ("tenants:\n  a b: {}", 2, "'a b' is no name here"),
        ("tenants:\n  acme:\n    keys:\n      ci: {rights: [all]}", 4, "Invalid enum value 'all'"),
        ("tenants:\n  acme:\n    keys:\n      ci: {key_file: none.key}", 4, "no such file or directory"),
        ("tenants:\n  acme:\n    keys:\n      ci: {key_file: /dev/zero}", 4, "does not hold a key"),
        ("tenants:\n  acme:\n    keys: [ci]", 3, "names and what they stand for are wanted here"),
        ("tenants:\n  acme: {}\n  acme: {}", 3, "'acme' is there twice"),
        ("prices:\n  m: {prompt: -1, completion: 1}", 2, "a price is from 0 to 10,000"),
        ("tenants:\n  acme: {", 2, "this is no YAML"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, line: int, sentence: str) -> None:
    """So that it is found in a file of a thousand lines."""
    with pytest.raises(Refusal) as refused:
        read(tmp_path, text)
    assert f"tenants.yaml, line {line}: " in str(refused.value) and sentence in str(refused.value)


def test_two_keys_are_not_one(tmp_path: Path) -> None:
    """A file named twice is a mistake: each name would take the key from the other, again and again."""
    (tmp_path / "ci.key").write_text(mint())
    with pytest.raises(Refusal, match=r"line 4: .*another key has the same file"):
        read(tmp_path, "tenants:\n acme:\n  keys:\n   {a: {key_file: ci.key}, b: {key_file: ci.key}}")


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """In a sentence, as what is too large or no text."""
    with pytest.raises(Refusal, match="cannot be read: no such file"):
        declared.read(tmp_path / "none")
    (tmp_path / "large").write_bytes(b" " * (declared.FILE_BYTES_MAX + 1))
    with pytest.raises(Refusal, match="is larger than"):
        declared.read(tmp_path / "large")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x00\x01")
    with pytest.raises(Refusal, match="this is no YAML"):
        declared.read(tmp_path / "binary")
    (tmp_path / "deep").write_text("tenants: " + "[" * 3000 + "]" * 3000)
    with pytest.raises(Refusal, match="this is nested too deep"):
        declared.read(tmp_path / "deep")


def test_the_schema_takes_what_is_read(tmp_path: Path) -> None:
    """Editors and the reader agree on fields, and on which there are not."""
    schema = json.loads(declared.schema())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    policy = json.loads(msgspec.json.encode(WHOLE))
    assert validator.is_valid({"tenants": {"acme": {"policy": policy, "keys": {"ci": {"policy": "small"}}}}})
    assert not validator.is_valid({"tenants": {"acme": {"polcy": {}}}})
