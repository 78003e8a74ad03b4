"""Secrets are told nowhere: by their form, and by the names of the variables that hold them."""

from __future__ import annotations

import base64
import json
import logging

import pytest

from kdhub.cli import _output
from kdhub.errors import KdhubError, PublishError
from kdhub.secrets import Formatter, find, redact
from kdhub.verbs.publish import _secrets

TOKEN = "hf_" + "a1B2" * 8
SECRETS = {
    "a token": TOKEN,
    "a key": "sk-" + "proj4" * 6,
    "of GitHub": "ghp_" + "aB3d" * 9,
    "of AWS": "AKIA" + "ABCD" * 4,
    "a secret key of AWS": "aws_secret_access_key = " + "aB3/" * 10,
    "a web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4",
    "a password": "https://me:hunter2@host/x",
    "in a query": "https://host/x?a=1&token=abcdefgh1",
    "in a header": "Authorization: Bearer abcdefghijk",
    "of this user": "abcd1234efgh",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
}


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_API_KEY", SECRETS["of this user"])
    monkeypatch.setenv("APP_KEY", "development")
    monkeypatch.setenv("SSH_KEY", "/a/folder/with/keys1")


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_found_and_cut(secret, capsys):
    value = secret.rpartition(" ")[2] if "KEY---" not in secret else secret
    assert find(f"before {secret} after") is not None
    shown = redact(f"before {secret} after")
    assert value not in shown and "hunter2" not in shown and shown.startswith("before ") and shown.endswith(" after")
    error = KdhubError(f"it failed: {secret}", hint=f"see {secret}")
    record = logging.LogRecord("kdhub", logging.INFO, "x", 1, "asked %s", (secret,), None)
    with _output.redacted():
        print(secret)
        _output.emit({"value": secret})
        _output.error(error, as_json=True)
        out, err = capsys.readouterr()
        _output.tell_once(secret)
    assert value not in out + err + str(error) + json.dumps(error.to_dict()) + Formatter("%(message)s").format(record)
    assert secret in capsys.readouterr().out, "a new token is told once"


@pytest.mark.parametrize(
    "text", ["pad_token: <pad>", "sk-learn is fine", "text-classification", "development", "/a/folder/with/keys1",
             "commit 0123456789abcdef0123456789abcdef01234567", "key=value&more=1", "a" * 300, "https://host/a:b@c"]
)  # fmt: skip
def test_what_is_none_is_left_alone(text):
    assert find(text) is None and redact(text) == text


@pytest.mark.parametrize(
    "content, told",
    [
        (f"one\nkey {TOKEN}\n".encode(), "a.txt, line 2: this looks like a secret (hf_a...)"),
        (f"key {TOKEN}\n".encode("utf-16"), "a.txt, line 1: this looks like a secret"),
        (b"key " + base64.b64encode(TOKEN.encode()) + b"\n", "a.txt, line 1: this looks like a secret"),
        (b'{"path": "/home/somebody/data"}\n', "a.txt, line 1: this tells a home folder (/home/somebody)"),
        (rb'{"path": "C:\\Users\\somebody\\x"}', "a.txt, line 1: this tells a home folder"),
    ],
)
def test_where_publishing_would_tell_one(tmp_path, content, told):
    (tmp_path / "a.txt").write_bytes(content)
    (problem,) = _secrets(tmp_path, ())
    assert problem.startswith(told) and TOKEN not in problem
    allowed = problem.rpartition("--allow-secret ")[2]
    assert _secrets(tmp_path, [allowed]) == [] and str(PublishError("x", [problem]))
