"""Publishing: what is checked before, one commit or none, and what the hub holds whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from fake_hub import TOKEN, Answer, Hub

import kdhub
from kdhub.catalogue.catalog import Catalog
from kdhub.errors import HubError, PublishError, UsageError
from kdhub.evaluation.card_check import check_card
from kdhub.evaluation.report import Report
from kdhub.hub import client
from kdhub.hub.client import Hub as Client
from kdhub.hub.files import MEDIA
from kdhub.hub.publish import upload
from kdhub.hub.trust import split_card
from kdhub.verbs import publish as verb
from kdhub.verbs.publish import publish

ROOT = Path(__file__).parents[1]
STUDENT = {"config.json", "model.safetensors"}
WHOLE = STUDENT | {"README.md", "kdhub.json", "recipe.yaml", "report.json", "plots/loss.png", ".gitattributes"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting between tries, and the usage lines are not run: one test does."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(verb, "_usage_problems", lambda *a: [])


@pytest.fixture
def run(toys, toy_run, tmp_path):
    """A finished run that may be changed."""
    return Path(shutil.copytree(toy_run, tmp_path / "run"))


@pytest.fixture
def folder(tmp_path):
    """A student of no task: `folder("a")` differs from `folder("b")` in each of its files."""

    def make(name: str, *more: str) -> Path:
        path = tmp_path / f"student-{name}"
        for file in ("kdhub.json", "model.safetensors", "parts/one.json", *more):
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(f"{file} of {name}" * 200)
        return path

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def on_hub(hub: Hub, repo: str = "me/toy") -> dict[str, bytes]:
    return {name: content for name, content in hub.files(repo).items() if name != ".gitattributes"}


def put(hub: Hub, folder: Path, repo: str = "me/toy", **options):
    return upload(Client(hub.endpoint), repo, "model", folder, message="test", **options)


# -- what is published ----------------------------------------------------------------------------------------


def test_a_run_is_published_as_one_commit(hub, run):
    done = publish(run, "me/toy", licence="mit", tags=["v1"])
    files, repo = hub.files("me/toy"), hub.repos["model", "me/toy"]
    assert set(files) == WHOLE and repo.head == done.commit == repo.refs["v1"] and done.changed
    assert len(repo.order) == 2, "the hub's first one and ours"
    assert all(files[n] == (run / "student" / n).read_bytes() for n in STUDENT)
    card = files["README.md"].decode()
    assert check_card(card, Report.from_dict(json.loads(files["report.json"]))) == []
    assert 'kdhub.load("me/toy")' in card and split_card(card)[0]["license"] == "mit"
    facts = json.loads(files["kdhub.json"])
    assert facts["task"] == "toy-vectors" and facts["method"]["name"] == "toy-hint" and facts["kind"] == "model"
    assert set(facts["files"]) == WHOLE - {"README.md", "kdhub.json", ".gitattributes"}
    assert not list(run.parent.glob(".kdhub-publish-*")), "nothing is left behind"


def test_the_same_content_again_makes_no_commit_whatever_the_hub_answers(hub, run):
    first = publish(run, "me/toy", licence="mit")

    def forgets(request):  # such a hub makes a client repeat every file
        if "preupload" in request.path:
            files = json.loads(request.body)["files"]
            raise Answer(
                body={"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )

    hub.tamper = forgets
    again = publish(run, "me/toy", licence="mit")
    assert (again.commit, again.changed) == (first.commit, False)
    assert len(hub.repos["model", "me/toy"].order) == 2


def test_a_dry_run_shows_everything_and_asks_nobody(hub, run):
    found = publish(run, "me/toy", licence="mit", dry_run=True)
    assert set(found.files) == WHOLE - {".gitattributes"} and found.card.startswith("---\n") and found.commit is None
    assert found.files["model.safetensors"] == (run / "student" / "model.safetensors").stat().st_size
    assert hub.requests == []


def test_results_on_data_of_the_hub_go_into_eval_results(hub, run):
    facts = json.loads((run / "provenance.json").read_text())
    for use in facts["data"]["use"]:
        use["from"] = {"kind": "hub", "repo": "org/points", "revision": "a" * 40, "split": "test"}
    (run / "provenance.json").write_text(json.dumps(facts))
    kdhub.Run.open(run).seal()
    publish(run, "me/toy", licence="mit")
    (entry,) = yaml.safe_load(hub.files("me/toy")[".eval_results/kdhub.yaml"])
    value = next(m["value"] for m in kdhub.Run.open(run).report["measures"]
                 if (m["metric"], m["subject"]) == ("toy-error", "student"))  # fmt: skip
    assert entry["dataset"] == {"id": "org/points", "task_id": "default", "revision": "a" * 40}
    assert entry["value"] == round(value, 6)


def test_usage_lines_are_run_on_what_is_published(toys, toy_run, tmp_path, make_distribution, monkeypatch):
    monkeypatch.undo()
    import toy

    site = tmp_path / "site"
    make_distribution(site, "kdhub-toy", plugins={"toy": "toy"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (site, ROOT / "tests", ROOT))))
    monkeypatch.setenv("KDHUB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOME_API_KEY", "a-secret-of-the-user")
    kdhub.plugins.discovery.set_plugins(toys)
    resolver = verb.Resolver()
    run = kdhub.Run.open(toy_run)
    assert verb._usage_problems(run, run.student_folder, resolver) == []
    hidden = (
        'import os\nassert "SOME_API_KEY" not in os.environ, "seen"\nraise SystemExit("{path}"[-7:] + " is broken")'
    )
    facts = {**run.provenance, "student": {**run.provenance["student"], "usage": hidden}}
    monkeypatch.setattr(kdhub.Run, "provenance", facts)
    (problem,) = verb._usage_problems(run, run.student_folder, resolver)
    assert "not those of this version" in problem, "lines from a run folder are never run"
    monkeypatch.setattr(toy.NetStudent, "usage", lambda self: hidden)
    (problem,) = verb._usage_problems(run, run.student_folder, resolver)
    assert problem.endswith("the usage lines do not work: student is broken")


# -- what stands against it -----------------------------------------------------------------------------------


def test_everything_that_stands_against_it_is_told_at_once(hub, run, monkeypatch):
    monkeypatch.setenv("MY_OTHER_TOKEN", "words-that-look-like-nothing")
    student = run / "student"
    (student / "notes.txt").write_text("first line\nkey: hf_" + "A1b2" * 8 + "\n")
    (student / "mine.txt").write_text("words-that-look-like-nothing\n")
    (student / "weights.bin").write_bytes(b"\x80\x04.")
    (student / "model.py").write_text("print('hello')")
    (student / ".env").write_text("A=b")
    (student / "recipe.yaml").write_text("{}")
    with pytest.raises(PublishError) as error:
        publish(run, "me/toy")
    told = "\n".join(error.value.problems)
    for part in (
        "notes.txt, line 2: this looks like a secret (hf_A...)",
        "mine.txt, line 1: this looks like a secret",
        "'weights.bin' is a pickle",
        "'model.py' is code",
        "'.env' is hidden",
        "recipe.yaml: the student has a file of that name",
        "no licence can be stated for the student: say which with --license",
    ):
        assert part in told
    assert "words-that" not in told and "A1b2" * 8 not in told and error.value.exit_code == 1
    assert hub.requests == []


def test_media_go_along_up_to_a_size(hub, run, monkeypatch):
    student = run / "student"
    media = {"turn.gif": b"GIF89a", "mesh.glb": b"glTF", "scene.ply": b"ply\ncomment made by hand\n"}
    for name, content in media.items():
        (student / name).write_bytes(content)
    publish(run, "me/toy", licence="mit")
    assert {name: hub.files("me/toy")[name] for name in media} == media
    (student / "scene.ply").write_bytes(b"ply\ncomment hf_" + b"A1b2" * 8 + b"\n")
    for suffix in (".gif", ".glb"):
        monkeypatch.setitem(MEDIA, suffix, 5)
    with pytest.raises(PublishError) as error:
        publish(run, "me/toy", licence="mit")
    assert error.value.problems == [
        "'turn.gif' has 6 bytes, and a .gif file may have 5",
        "scene.ply, line 2: this looks like a secret (hf_A...); if it is none, --allow-secret scene.ply:2",
    ]


def test_links_are_refused(hub, run, tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    (run / "student" / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(PublishError, match="'vocab.txt' is a link"):
        publish(run, "me/toy", licence="mit")


def test_a_licence_that_forbids_derivatives_is_a_warning(hub, run):
    facts = json.loads((run / "provenance.json").read_text())
    facts["teacher"]["licence"] = "cc-by-nc-nd-4.0"
    (run / "provenance.json").write_text(json.dumps(facts))
    kdhub.Run.open(run).seal()
    found = publish(run, "me/toy", dry_run=True)
    assert ["forbids derivatives" in w for w in found.warnings] == [True]
    assert "forbids derivatives" in found.card and split_card(found.card)[0]["license"] == "cc-by-nc-nd-4.0"


def test_only_a_finished_run(hub, run, tmp_path):
    shutil.rmtree(run / "student")
    with pytest.raises(kdhub.KdhubError, match="is not finished"):
        publish(run, "me/toy")
    with pytest.raises(kdhub.KdhubError, match="no recipe.yaml"):
        publish(tmp_path, "me/toy")
    for name in ("toy", "me/toy@v1", "../toy", "me/to y"):
        with pytest.raises(UsageError):
            publish(run, name)
    for address in ("ftp://host", "https://user:password@host", "host"):
        with pytest.raises(UsageError) as error:
            publish(run, "me/toy", endpoint=address)
        assert "password" not in error.value.message


# -- one commit or none ---------------------------------------------------------------------------------------


def test_a_student_replaces_the_older_one_as_a_whole(hub, folder):
    put(hub, folder("old", "more.json"))
    done = put(hub, folder("new"))
    assert on_hub(hub) == contents(folder("new")) and ".gitattributes" in hub.files("me/toy")
    assert len(hub.repos["model", "me/toy"].order) == 3 and done.changed


def test_files_of_somebody_else_are_not_deleted_unasked(hub, folder):
    before = hub.put("me/toy", {"README.md": b"mine", "thesis.pdf": b"years of work"})
    with pytest.raises(UsageError, match=r"holds files that kdhub did not put there \(thesis.pdf\)"):
        put(hub, folder("a"))
    assert hub.repos["model", "me/toy"].head == before
    put(hub, folder("a"), replace=True)
    assert on_hub(hub) == contents(folder("a"))


def rival(hub: Hub, times: int, files: dict[str, bytes]):
    """Somebody commits just before us, so many times."""
    left = [times]

    def tamper(request):
        if "/commit/main" in request.path and left[0]:
            left[0] -= 1
            hub.put("me/toy", {**files, "round.json": b"%d" % left[0], "kdhub.json": b"theirs"})

    return tamper


def test_when_the_head_moves_it_starts_again_and_mixes_nothing(hub, folder):
    # The rival's tree holds one of our files: a client that remembers what it saw would leave it out.
    ours = contents(folder("a"))
    hub.tamper = rival(hub, 3, {"parts/one.json": ours["parts/one.json"], "theirs.json": b"{}"})
    put(hub, folder("a"))
    assert on_hub(hub) == ours
    trees = hub.repos["model", "me/toy"].commits.values()
    assert all(("round.json" in tree) != ("model.safetensors" in tree) for tree in trees if "kdhub.json" in tree)


def test_a_head_that_moves_again_and_again_is_given_up(hub, folder):
    hub.tamper = rival(hub, 99, {})
    with pytest.raises(HubError, match="gave up after 5 tries. .*the head moved") as error:
        put(hub, folder("a"))
    assert error.value.exit_code == 4 and "try again later" in error.value.hint
    assert set(on_hub(hub)) == {"round.json", "kdhub.json"}, "theirs, whole"


@pytest.mark.parametrize("checks_parent", [True, False])
def test_an_answer_lost_on_the_way_is_found_at_the_head(hub, folder, checks_parent):
    hub.checks_parent = checks_parent
    lost = [1]

    def tamper(request):
        if "/commit/main" in request.path and lost.pop() if lost else False:
            try:
                request._route()
            except Answer:
                request.cut()

    hub.tamper = tamper
    done = put(hub, folder("a"))
    assert on_hub(hub) == contents(folder("a")) and done.changed
    assert len(hub.repos["model", "me/toy"].order) == 2, "no second commit"


def test_a_hub_that_answers_well_and_stores_something_else_is_noticed(hub, folder):
    def tamper(request):
        if "/commit/main" in request.path:
            request.body = b"\n".join(line for line in request.body.splitlines() if b"parts/one" not in line)

    hub.tamper = tamper
    with pytest.raises(HubError, match="put other files into commit"):
        put(hub, folder("a"))


def test_a_public_repository_stays_so_and_is_not_taken_for_private(hub, folder):
    put(hub, folder("a"), "me/mine", private=True)
    assert hub.repos["model", "me/mine"].private
    hub.put("me/toy", {"README.md": b""})
    with pytest.raises(UsageError, match="there already and is public"):
        put(hub, folder("a"), private=True)


def test_a_proposal_leaves_the_head(hub, folder):
    before = put(hub, folder("a"))
    done = put(hub, folder("b"), create_pr=True)
    repo = hub.repos["model", "me/toy"]
    assert repo.head == before.commit and repo.refs["refs/pr/1"] == done.commit
    assert done.pull_request.endswith("discussions/1")


def test_a_tag_of_another_commit_is_not_moved(hub, folder):
    first = put(hub, folder("a"), tags=["v1"])
    with pytest.raises(HubError, match="has a tag v1 already"):
        put(hub, folder("b"), tags=["v1"])
    assert hub.repos["model", "me/toy"].refs["v1"] == first.commit


def test_a_hub_without_xet_gets_lfs(hub, folder):
    pytest.importorskip("hf_xet")
    put(hub, folder("a"))
    assert hub.objects, "large files went as LFS"

    # A hub that does not let on before the upload starts.
    asked = []

    def tamper(request):
        if "xet-write-token" in request.path:
            asked.append(request.path)
            raise Answer(503 if len(asked) <= client.TRIES else 404)

    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = False
    hub.tamper = tamper
    with pytest.raises(HubError) as error:
        put(hub, folder("b"), "me/other")
    assert "HF_HUB_DISABLE_XET=1" in error.value.hint


@pytest.mark.parametrize(
    "status, said", [(401, "refused the token"), (403, "refused the token"), (503, "answered 503")]
)
def test_refusals_of_the_hub_are_sentences(hub, folder, status, said):
    def tamper(request):
        if "/commit/" in request.path:
            raise Answer(status, X_Error_Message="Invalid credentials in Authorization header")

    hub.tamper = tamper
    with pytest.raises(HubError, match=said) as error:
        put(hub, folder("a"))
    assert TOKEN not in str(error.value) + str(error.value.hint)


def test_a_pulled_student_is_published_again_as_it_is(hub, run, tmp_path):
    publish(run, "me/toy", licence="mit")
    there = kdhub.pull("me/toy", to=tmp_path / "there").folder
    other = Hub()
    publish(there, "us/toy", endpoint=other.endpoint)
    assert other.files("us/toy") == hub.files("me/toy")
    (there / "config.json").write_text('{"hidden": 5}')
    with pytest.raises(PublishError, match="config.json is not the file that was published"):
        publish(there, "us/toy", endpoint=other.endpoint)
    other.close()


def test_an_entry_in_the_catalogue_on_request(hub, run):
    done = publish(run, "me/toy", licence="mit", register=True)
    catalog = Catalog([done.registered.parents[1]])
    entry = catalog.check("published", "toy")
    assert (entry.repo, entry.commit, entry.method) == ("me/toy", done.commit, "toy-hint")
    assert list(entry.results) == ["toy-error on toy-points test"]
    assert kdhub.load("toy").task == "toy-vectors", "a name of the catalogue is as good as the repository's"


def test_signatures(hub, run, tmp_path):
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = {}
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        keys[name] = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        keys[name][0].write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
        pem = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        keys[name][1].write_bytes(pem)
    first = publish(run, "me/toy", licence="mit", sign=keys["mine"][0])
    again = publish(run, "me/toy", licence="mit", sign=keys["mine"][0])
    assert (again.commit, again.changed) == (first.commit, False), "though signing gives other bytes each time"
    assert kdhub.verify("me/toy", key=keys["mine"][1]).status == "verified"
    found = kdhub.verify("me/toy", key=keys["other"][1])
    assert found.status == "differs" and "does not carry the signature of other.pub" in found.problems[0]
    there = kdhub.pull("me/toy", to=tmp_path / "there").folder
    (there / "README.md").write_text((there / "README.md").read_text() + "\nMore words.\n")
    assert kdhub.verify(there).status == "verified"
    assert kdhub.verify(there, key=keys["mine"][1]).status == "differs", "the signature is over the card as well"
    assert publish(run, "me/toy", licence="mit", sign=keys["other"][0]).changed, "another key"
    with pytest.raises(UsageError, match="is not a private key"):
        publish(run, "me/toy", licence="mit", sign=keys["mine"][1])


# -- killed, and all at once ----------------------------------------------------------------------------------

PUBLISHER = """
import json, os, sys
import huggingface_hub, huggingface_hub.hf_api, huggingface_hub._commit_api, huggingface_hub.lfs
from pathlib import Path
from kdhub.hub.client import Hub
from kdhub.hub.publish import upload

print("ready", flush=True)
for line in sys.stdin:
    repo, folder = json.loads(line)
    pid = os.fork()
    if pid == 0:
        try:
            upload(Hub(), repo, "model", Path(folder), message="test")
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(4)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Publisher:
    """A process that forks one publisher after another, so that the client is imported once."""

    def __init__(self, hub: Hub):
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, bufsize=1, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        return self.process.stdout.readline().strip()

    def start(self, repo: str, folder: Path) -> int:
        self.process.stdin.write(json.dumps([repo, str(folder)]) + "\n")
        return int(self._line())

    def end(self) -> int:
        return int(self._line())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture
def publisher(hub):
    made = []

    def make() -> Publisher:
        made.append(Publisher(hub))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_publish_leaves_the_old_head_or_the_new_one(hub, folder, publisher, kills):
    """Killed at a request of its own, drawn at random: each moment that the hub can see."""
    one, random_ = publisher(), random.Random(kills)
    known = [contents(folder("a")), contents(folder("b"))]
    put(hub, folder("a"))
    seen = set()
    for turn in range(kills):
        wanted, started, count = known[(turn + 1) % 2], threading.Event(), [random_.randrange(12)]
        pid = []

        def kill_at(request, started=started, count=count, pid=pid):
            started.wait(10)
            count[0] -= 1
            if count[0] == -1:
                os.kill(pid[0], signal.SIGKILL)

        hub.tamper = kill_at
        pid.append(one.start("me/toy", folder("b" if turn % 2 == 0 else "a")))
        started.set()
        code = one.end()
        hub.tamper = lambda request: None
        with hub.lock:
            head = on_hub(hub)
        assert head in known, "one of the two, whole"
        seen.add((code, head == wanted))
        put(hub, folder("b" if turn % 2 == 0 else "a"))
        assert on_hub(hub) == wanted, "a run afterwards completes it"
    assert any(code == -signal.SIGKILL for code, _ in seen)


def test_six_publishers_of_one_name_and_of_six(hub, folder, publisher):
    """Every head the hub ever had is exactly one of the six."""
    letters = "abcdef"
    known = {name: contents(folder(name, f"only-{name}.json")) for name in letters}
    jobs = {name: publisher() for name in letters}
    for repo in (lambda name: "me/toy", lambda name: f"me/toy-{name}"):
        for name, job in jobs.items():
            job.start(repo(name), folder(name, f"only-{name}.json"))
        codes = [job.end() for job in jobs.values()]
        assert 0 in codes and set(codes) <= {0, 4}
    assert codes == [0] * 6, "six names: all land"
    trees = list(hub.repos["model", "me/toy"].commits.values())
    heads = [{p: c for p, (c, _) in tree.items() if p != ".gitattributes"} for tree in trees]
    assert all(head in known.values() for head in heads if head) and len(heads) >= 2
    for name in letters:
        assert on_hub(hub, f"me/toy-{name}") == known[name]
