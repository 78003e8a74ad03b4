"""Clients that others wrote, against the embedded hub; skipped where they are not installed (`make hub-clients`)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub import online, serve, served  # noqa: F401
from huggingface_hub import HfApi

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "build/hub-clients"
OLAH = CLIENTS / "olah/bin/olah-cli"
NPM_CLIENT = CLIENTS / "node_modules/@huggingface/hub"
MISSING = "not installed: make hub-clients"

SCENARIO = """
import * as hub from "@huggingface/hub";
const [endpoint, token] = process.argv.slice(2);
const repo = "js/x", at = {hubUrl: endpoint, accessToken: token, repo};
const say = {};
say.user = (await hub.whoAmI({hubUrl: endpoint, accessToken: token})).name;
await hub.createRepo(at);
const big = new Uint8Array(11 * 2**20).fill(7);
const first = await hub.uploadFiles({...at, useXet: false, files: [
    {path: "a/b.txt", content: new Blob(["hello"])},
    {path: "model.safetensors", content: new Blob([big])},
    {path: "big", content: new Blob([big.slice(1)])},
]});
say.commit = first.commit.oid;
say.files = [];
for await (const f of hub.listFiles({...at, recursive: true})) if (f.type == "file") say.files.push([f.path, f.size]);
say.text = await (await hub.downloadFile({...at, path: "a/b.txt"})).text();
say.range = await (await hub.downloadFile({...at, path: "big"})).slice(5, 9).text();
say.models = [];
const ours = {hubUrl: endpoint, accessToken: token, search: {owner: "js"}};
for await (const m of hub.listModels(ours)) say.models.push(m.name);
await hub.deleteFile({...at, path: "big"});
await hub.createBranch({...at, branch: "feature/y"});
say.commits = [];
for await (const c of hub.listCommits(at)) say.commits.push(c.title);
const proposed = await hub.uploadFile({...at, file: {path: "c", content: new Blob(["c"])}, isPullRequest: true});
say.proposed = proposed.pullRequestUrl;
await hub.deleteRepo({...at, repo: "js/gone"}).catch(error => say.absent = error.statusCode);
console.log(JSON.stringify(say));
"""


FETCH = "import sys; from huggingface_hub import snapshot_download as get; print(get(*sys.argv[1:]))"


@pytest.mark.skipif(
    not (CLIENTS / "node_modules/@huggingface/hub").exists() or not shutil.which("node"), reason=MISSING
)
def test_the_npm_client(hub, tmp_path):
    script = CLIENTS / "scenario.mjs"  # beside its packages: there node looks for them
    script.write_text(SCENARIO)
    done = subprocess.run(["node", script, hub.endpoint, hub.token], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + hub.log.read_text()
    said = json.loads(done.stdout)
    assert said["user"] == "owner" and said["text"] == "hello" and said["range"] == "\x07" * 4
    sizes = {"a/b.txt": 5, "model.safetensors": 11 * 2**20, "big": 11 * 2**20 - 1}
    assert {path: size for path, size in said["files"] if path != ".gitattributes"} == sizes
    assert said["models"] == ["js/x"] and len(said["commits"]) == 3 and said["absent"] == 404
    assert said["proposed"] == f"{hub.endpoint}/js/x/discussions/1"
    # What it wrote, the Python client reads, and the other way round.
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    assert Path(api.hf_hub_download("js/x", "model.safetensors", cache_dir=tmp_path)).read_bytes() == b"\7" * 11 * 2**20
    assert api.model_info("js/x", revision=said["commit"]).sha == said["commit"]


@pytest.mark.skipif(not OLAH.exists(), reason=MISSING)
def test_a_mirror_in_front(hub, tmp_path):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("mirror/x")
    content = {"model.safetensors": bytes(range(256)) * 50_000, "config.json": b"{}", "parts/one.txt": b"one"}
    for name, data in content.items():
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="mirror/x")
    there, here = urlsplit(hub.endpoint).netloc, f"127.0.0.1:{free_port()}"
    options = {
        "host": "127.0.0.1", "port": here.split(":")[1], "repos-path": tmp_path / "kept", "log-path": tmp_path / "logs",
        "hf-scheme": "http", "hf-netloc": there, "hf-lfs-netloc": there,
        "mirror-scheme": "http", "mirror-netloc": here, "mirror-lfs-netloc": here,
    }  # fmt: skip
    args = [OLAH, *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
    with subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mirror:
        try:
            assert answers(f"http://{here}/api/models/mirror/x")
            for turn in ("from the hub", "from what it kept"):
                home = {"HF_ENDPOINT": f"http://{here}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / turn)}
                args = [sys.executable, "-c", FETCH, "mirror/x"]
                got = subprocess.run(args, env=hub.environment(**home), capture_output=True, text=True, timeout=60)
                assert got.returncode == 0, got.stderr
                folder = Path(got.stdout.strip())
                assert {name: (folder / name).read_bytes() for name in content} == content
        finally:
            mirror.terminate()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(address: str, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.1)
    return False
