"""The embedded hub under load: memory during many downloads, small requests a second, and the cost of a long history.

`python benchmarks/bench_hub.py [--downloads 200] [--mb 100] [--commits 10000]`

The hub runs as a user starts it, in a process of its own; clients share the two cores with it. Each download is
compared by sha256. Memory is the process's peak, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from _common import record

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from hub import Hub, serve  # noqa: E402

from kdhub.hub.server.store import Change, Store, lfs_file  # noqa: E402

REPO = "bench/x"


def fill(folder: Path, megabytes: int) -> str:
    """A repository with one large file. Returns the file's sha256."""
    store = Store(folder)
    repo = store.create("model", REPO, private=False, author="bench")
    with store.receive() as incoming:
        for _ in range(megabytes):
            incoming.write(os.urandom(10**6))
        incoming.keep()
    sha256 = incoming.sha256.hexdigest()
    store.take(repo, "main", Change("add", put={"big.safetensors": lfs_file(sha256, megabytes * 10**6)}), "bench")
    return sha256


def peak(process: int) -> float:
    """The most memory a process ever held, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def downloads(endpoint: str, count: int, sha256: str) -> dict:
    """So many at once; how many were whole."""
    address, whole, lock = urlsplit(endpoint), [], threading.Lock()

    def one() -> None:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
        connection.request("GET", f"/{REPO}/resolve/main/big.safetensors")
        answer, digest = connection.getresponse(), hashlib.sha256()
        while block := answer.read(2**18):
            digest.update(block)
        with lock:
            whole.append(digest.hexdigest() == sha256)

    began = time.perf_counter()
    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"whole": sum(whole), "seconds": time.perf_counter() - began}


def requests(endpoint: str, token: str, method: str, path: str, body: bytes | None, seconds: float, found) -> None:
    address, done = urlsplit(endpoint), 0
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        done += 1
    found.put(done)


def rate(hub: Hub, method: str, path: str, body: bytes | None = None, clients: int = 4, seconds: float = 5.0) -> float:
    """Requests a second of so many clients at once, each on one connection."""
    found = multiprocessing.Queue()
    args = (hub.endpoint, hub.token, method, path, body, seconds, found)
    workers = [multiprocessing.Process(target=requests, args=args) for _ in range(clients)]
    for worker in workers:
        worker.start()
    total = sum(found.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total / seconds


def history(folder: Path, commits: int) -> tuple[float, float]:
    """Seconds of a commit at the beginning of a history and at its end."""
    store = Store(folder)
    repo = store.create("model", REPO, private=False, author="bench")
    took = []
    for n in range(commits):
        file = store.put(b"%d" % n)
        began = time.perf_counter()
        store.take(repo, "main", Change("one more", put={"README.md": file}), "bench")
        took.append(time.perf_counter() - began)
    return statistics.median(took[:500]), statistics.median(took[-500:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--downloads", type=int, default=200)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--commits", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "hub"
        sha256 = fill(folder, args.mb)
        with serve(folder) as hub:
            idle = peak(hub.process.pid)
            info = f"/api/models/{REPO}"
            line = json.dumps({"key": "header", "value": {"summary": "nothing", "description": ""}}).encode() + b"\n"
            rates = {
                "model info": rate(hub, "GET", info),
                "list": rate(hub, "GET", "/api/models?filter=kdhub"),
                "head of a file": rate(hub, "HEAD", f"/{REPO}/resolve/main/.gitattributes"),
                "commit that changes nothing": rate(hub, "POST", f"{info}/commit/main", line),
            }
            found = downloads(hub.endpoint, args.downloads, sha256)
            used = peak(hub.process.pid)
        first, last = history(Path(temporary) / "long", args.commits)
    print(f"{found['whole']} of {args.downloads} downloads of {args.mb} MB whole, in {found['seconds']:.1f} s")
    print(f"memory of the server {used:.0f} MB at most, {idle:.0f} MB when it began")
    for name, value in rates.items():
        print(f"{name:28} {value:7.0f} requests/s, 4 clients")
    print(f"commit: {first * 1e3:.2f} ms at first, {last * 1e3:.2f} ms after {args.commits}, ratio {last / first:.2f}")
    record(
        "hub", downloads=args.downloads, megabytes=args.mb, whole=found["whole"], seconds=found["seconds"],
        peak_mb=used, idle_mb=idle, rates=rates, commits=args.commits, commit_seconds=[first, last],
    )  # fmt: skip


if __name__ == "__main__":
    main()
