"""`pip install kdhub kdhub-tasks` alone, from wheels: what others published is pulled, used and verified."""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
from pathlib import Path

import pytest
from hub import online, serve  # noqa: F401
from test_fixtures import unpacked  # noqa: F401
from test_thirdparty import Site

ROOT = Path(__file__).parents[1]
PUBLISHED = {"text-kd": "text-classification", "fill-kd": "fill-mask", "lm-kd": "causal-lm"}


def elsewhere(folder: str, names: list[str]) -> set[str]:
    """What a wheel is not built of."""
    outside = {"build", "plugins", "tests", "docs", "benchmarks", "runs"} if Path(folder) == ROOT else set()
    return {name for name in names if name in outside or name.startswith(".") or name.endswith(".egg-info")}


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Site:
    """An environment with the libraries that ours has, but kdhub and kdhub-tasks from wheels, and no family."""
    site = Site(tmp_path_factory.mktemp("bare"))
    lib, others = next(site.folder.glob("env/lib/*/site-packages")), site.folder / "others"
    others.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "kdhub" not in path.name and path.suffix != ".pth":
            (others / path.name).symlink_to(path)
    (lib / "ours.pth").write_text(f"{others}\n")
    for source in (ROOT, ROOT / "plugins/kdhub-tasks"):
        source = shutil.copytree(source, site.folder / source.name, ignore=elsewhere)  # a build leaves files behind
        done = site.run("-m", "pip", "install", "--quiet", "--no-deps", source)
        assert done.returncode == 0, done.stderr
    return site


@pytest.mark.slow
def test_the_wheels_have_no_family_in_them(bare):
    installed = json.loads(bare.kdhub("plugins", "--json").stdout)
    assert {one["distribution"] for one in installed} == {"kdhub", "kdhub-tasks"}
    lib = next(bare.folder.glob("env/lib/*/site-packages"))
    assert not [p for p in (lib / "kdhub").rglob("*") if p.parent.name in ("recipes", "evidence") and p.suffix != ".py"
                and p.is_file() and "__pycache__" not in p.parts]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_student_is_pulled_used_and_verified(bare, unpacked, name, tmp_path):  # noqa: F811
    from huggingface_hub import HfApi

    with serve(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(f"owner/{name}")
        api.upload_folder(repo_id=f"owner/{name}", folder_path=unpacked / "published" / name)
        there = {k: v for k, v in hub.environment(HF_HUB_OFFLINE="0").items() if k.startswith("HF_")}
        there |= {f"KDHUB_{key}": str(unpacked / value) for key, value in (("CATALOG", "catalogue"), ("DATA", "data"))}
        bare.kdhub("pull", f"owner/{name}", "--to", tmp_path / "pulled", **there)
        code = f"import kdhub; print(kdhub.load({str(tmp_path / 'pulled')!r}).task)"
        assert bare.run("-c", code).stdout.split()[-1] == PUBLISHED[name]
        verified = bare.kdhub("verify", f"owner/{name}", **there)
        assert re.search(rf"^verified +owner/{name} at", verified.stdout, re.MULTILINE)
