"""Secrets are told nowhere: by their form, and by the names of the variables that hold them."""

from __future__ import annotations

import base64
import json
import logging
import sys
from pathlib import Path

import pytest

from kdhub.cli import _output, app
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


def test_nothing_that_is_shown_drives_a_terminal(capsys):
    name = "a\x1b]0;owned\x07\x1b[2Jb\rc\x9bd\u202etxt.exe\u2066\ud800"
    with _output.redacted():
        print(f"{name}\tü 🙂\nnext")
        _output.emit({"name": name})
        _output.error(KdhubError(name), as_json=False)
    out, err = capsys.readouterr()
    table, _, document = out.partition("\nnext\n")
    assert table == "a\\u001b]0;owned\\u0007\\u001b[2Jb\\u000dc\\u009bd\\u202etxt.exe\\u2066\\ud800\tü 🙂"
    assert json.loads(document)["name"] == name and not set("\x1b\x9b\u202e\r\x07") & set(out + err)


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


# -- a session with forty kinds -------------------------------------------------------------------------------

HEX, MIX, UP = "0a1b2c3d4e5f6789" * 2, "aB3dE5gH7jK9mN1p" * 4, "A1B2C3D4E5F6G7H8"
FORTY = {
    "hugging face": "hf_" + MIX[:34], "of an organisation": "api_org_" + MIX[:34], "openai": "sk-" + MIX[:48],
    "openai, project": "sk-proj-" + MIX[:48], "anthropic": "sk-ant-api03-" + MIX, "github": "ghp_" + MIX[:36],
    "github, oauth": "gho_" + MIX[:36], "github, user": "ghu_" + MIX[:36], "github, server": "ghs_" + MIX[:36],
    "github, refresh": "ghr_" + MIX[:36], "github, fine": "github_pat_" + MIX, "gitlab": "glpat-" + MIX[:20],
    "slack, bot": "xoxb-12345678901-" + MIX[:24], "slack, user": "xoxp-12345678901-" + MIX[:24],
    "slack, app": "xapp-1-" + UP + "-" + MIX[:30],
    "slack, hook": "https://hooks.slack.com/services/T0A1/B0A1/" + MIX[:24],
    "discord": "https://discord.com/api/webhooks/123456789/" + MIX, "aws": "AKIA" + UP, "aws, for a while": "ASIA" + UP,
    "aws, secret": "aws_secret_access_key = " + "aB3/" * 10, "google": "AIza" + MIX[:35],
    "google, oauth": "ya29." + MIX,
    "pypi": "pypi-AgE" + MIX, "npm": "npm_" + MIX[:36], "digitalocean": "dop_v1_" + HEX * 2,
    "sendgrid": "SG." + MIX[:22] + "." + MIX[:43], "shopify": "shpat_" + HEX, "replicate": "r8_" + MIX[:37],
    "json web token": "eyJ" + MIX[:20] + ".eyJ" + MIX[:20] + "." + MIX[:30], "rsa": "-----BEGIN RSA PRIVATE KEY-----",
    "openssh": "-----BEGIN OPENSSH PRIVATE KEY-----", "pgp": "-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "in an address": "https://me:" + MIX[:12] + "@host.example/x",
    "of a database": "postgres://app:" + MIX[:12] + "@db/x",
    "in a header": "Authorization: Bearer " + MIX[:20], "basic": "Authorization: Basic " + MIX[:20],
    "in a query": "https://host.example/x?access_token=" + MIX[:20], "azure": "AccountKey=" + MIX + MIX[:22] + "==",
    "stripe": "sk_live_" + MIX[:24], "twilio": "SK" + HEX, "mailgun": "key-" + HEX,
    "telegram": "123456789:AA" + MIX[:33],
    "databricks": "dapi" + HEX, "vault": "hvs." + MIX[:24], "age": "AGE-SECRET-KEY-1" + UP * 4,
    "groq": "gsk_" + MIX[:52],
    "nvidia": "nvapi-" + MIX, "docker": "dckr_pat_" + MIX[:27], "grafana": "glsa_" + MIX[:32] + "_0a1b2c3d",
    "in a file of settings": "api_key: '" + MIX[:24] + "'",
}  # fmt: skip


def core(secret: str) -> str:
    """The part that must not be seen."""
    return secret.rpartition(" ")[2].strip("'").partition("://")[2].partition("@")[0].rpartition(":")[2] or (
        secret.rpartition(" ")[2].strip("'") if "-----" not in secret else secret
    )


@pytest.mark.parametrize("kind", FORTY)
def test_each_kind_is_stopped_and_shown_nowhere(tmp_path, kind):
    assert len(FORTY) >= 40
    (tmp_path / "notes.md").write_text(f"a line\n{FORTY[kind]}\n")
    (problem,) = _secrets(tmp_path, ())
    assert problem.startswith("notes.md, line 2: this looks like a secret")
    shown = redact(f"x {FORTY[kind]} y")
    assert core(FORTY[kind]) not in shown + problem and shown.startswith("x ") and shown.endswith(" y")


COMMANDS = [
    ["show", "{}"], ["search", "--local", "{}"], ["pull", "{}"], ["pull", "me/{}"], ["verify", "{}"], ["evaluate",
    "{}"],
    ["distill", "--recipe", "{}"], ["distill", "--method", "toy-hint", "--set", "{}=1"], ["publish", "{}", "me/{}"],
    ["distill", "--recipe", "toy-hint", "--set", "summary={}", "--dry-run"], ["pull", "me/x", "--endpoint", "{}"],
    ["distill", "--recipe", "toy-hint", "--teacher", "{}", "--dry-run"], ["list", "{}"], ["plugins", "show", "{}"],
]  # fmt: skip


def test_a_session_tells_none(toys, isolated, tmp_path, monkeypatch, capfd):
    """Each kind is typed in the wrong places, with all that tells more, and stands in the environment too."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    told = ""
    for number, (kind, secret) in enumerate(FORTY.items()):
        monkeypatch.setenv("SOME_SERVICE_TOKEN", secret)
        for place, more in ((number, []), (number + 5, ["--json"])):
            words = [word.replace("{}", secret) for word in COMMANDS[place % len(COMMANDS)]]
            monkeypatch.setattr(sys, "argv", ["kdhub", "--verbose", "--traceback", *words, *more])
            with pytest.raises(SystemExit) as ended:
                app.run()
            assert ended.value.code in (0, 1, 2, 4), (kind, words)
        out, err = capfd.readouterr()
        found = core(secret) in out + err
        assert not found, f"{kind}: {out[-500:]} {err[-2000:]}"
        told += out + err
    assert "Traceback" in told, "traces are among what was looked at"
    for path in [path for folder in (tmp_path, isolated) for path in Path(folder).rglob("*") if path.is_file()]:
        content = path.read_bytes().decode("utf-8", "replace")
        assert not [kind for kind, secret in FORTY.items() if core(secret) in content], path
