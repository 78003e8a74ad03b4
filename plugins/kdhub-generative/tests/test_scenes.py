"""Cameras, the rasteriser, fields, readers and files of scenes."""

import json
import struct

import numpy as np
import pytest
import torch
from kdhub_generative.scenes.cameras import Camera, distorted, looking_at, undistorted
from kdhub_generative.scenes.drawing import sheet, turntable
from kdhub_generative.scenes.fields import HashGrid, Voxels, composited
from kdhub_generative.scenes.gaussians import C0, Gaussians, harmonics
from kdhub_generative.scenes.scene import Scene
from kdhub_generative.scenes.splats import project, rasterize, rotations
from kdhub_generative.scenes.task import example_of, facts_of
from PIL import Image
from plyfile import PlyData
from safetensors.torch import load_file

import kdhub
from kdhub.data.shared import shared
from kdhub.errors import DataError, ShapeError, UsageError
from kdhub.pictures import problems
from kdhub.rows import plain_rows

K36 = np.array([[36.0, 0, 16], [0, 36, 16], [0, 0, 1]])


def dense(means, quats, scales, opacities, channels, viewmat, K, width, height, background=None, orthographic=False):
    """Gaussians composited over all pixels at once, slow and plain: (height, width, channels) and alpha."""
    where, conics, depths = project(means, quats, scales, viewmat, K, width, height, orthographic)
    order = torch.argsort(depths, stable=True)
    order = order[depths[order] > 0.2]
    where, conics, opacities, channels = where[order], conics[order], opacities[order], channels[order]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    d = torch.stack([columns, rows], -1).reshape(-1, 1, 2) + 0.5 - where
    a, b, c = conics.unbind(-1)
    power = a * d[..., 0] ** 2 + 2 * b * d[..., 0] * d[..., 1] + c * d[..., 1] ** 2
    alpha = (opacities * torch.exp(-0.5 * power)).clamp(max=0.99)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    alpha = torch.where(torch.cumprod(1 - alpha, 1) >= 1e-4, alpha, 0.0)
    left = torch.cumprod(1 - alpha, 1)
    image = (alpha * torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1)) @ channels
    image = image if background is None else image + left[:, -1:] * background
    return image.reshape(height, width, -1), 1 - left[:, -1].reshape(height, width)


def cloud(n=200, channels=3, seed=0):
    """Gaussians around the origin, some opaque, some behind the camera, and the camera; float64."""
    draw = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    means = torch.nn.functional.normalize(new(n, 3), dim=1) * 1.2
    means[:5, 2] = -9
    made = [means, new(n, 4), 0.12 * torch.exp(0.3 * new(n, 3)), torch.sigmoid(3 * new(n)), new(n, channels)]
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[2, 3] = 4
    K = torch.tensor([[24.0, 0, 12], [0, 26, 10], [0, 0, 1]], dtype=torch.float64)
    return [value.requires_grad_() for value in made], viewmat, K


# -- rasteriser -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthographic", [False, True])
def test_values_and_all_gradients_equal_dense_compositing(orthographic):
    given, viewmat, K = cloud()
    if orthographic:
        K = K * torch.tensor([[0.3, 1, 1], [1, 0.3, 1], [1, 1, 1.0]])
    background = torch.rand(3, dtype=torch.float64, requires_grad=True)
    up, aside = torch.randn(20, 24, 3, dtype=torch.float64), torch.randn(20, 24, dtype=torch.float64)

    def gradients(image, alpha):
        return torch.autograd.grad((image * up).sum() + (alpha * aside).sum(), [*given, background])

    ours = rasterize(*given, viewmat, K, 24, 20, background=background, orthographic=orthographic)
    image, alpha = dense(*given, viewmat, K, 24, 20, background, orthographic)
    torch.testing.assert_close(ours.image, image, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.alpha, alpha, rtol=0, atol=1e-9)
    for mine, true in zip(gradients(ours.image, ours.alpha), gradients(image, alpha)):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-9 * float(true.abs().max()))


def test_gradients_of_detached_channels_reach_them_alone():
    given, viewmat, K = cloud()
    features = torch.randn(200, 40, dtype=torch.float64, requires_grad=True)
    seen = rasterize(*given, viewmat, K, 24, 20, detached=features)
    found = torch.autograd.grad(seen.features.square().sum(), [*given, features], allow_unused=True)
    assert all(one is None for one in found[:-1]) and found[-1].abs().sum() > 0
    both, _ = dense(*given[:4], features, viewmat, K, 24, 20)
    torch.testing.assert_close(seen.features, both, rtol=0, atol=1e-9)
    (true,) = torch.autograd.grad(both.square().sum(), features)
    torch.testing.assert_close(found[-1], true, rtol=1e-9, atol=1e-9)


def test_projection_by_hand():
    one = torch.tensor([[1.0, 0, 0, 0]] * 2, dtype=torch.float64)
    means = torch.tensor([[0.0, 0, 2], [0.1, 0, 3]], dtype=torch.float64)
    scales = torch.full((2, 3), 0.1, dtype=torch.float64)
    K = torch.tensor([[32.0, 0, 16], [0, 32, 16], [0, 0, 1]], dtype=torch.float64)
    where, conics, depths = project(means, one, scales, torch.eye(4, dtype=torch.float64), K, 32, 32)
    assert where[1, 0].item() == pytest.approx(17.066667, abs=1e-6)
    assert conics[0].tolist() == pytest.approx([0.349650, 0, 0.349650], abs=1e-6)
    assert conics[1].tolist() == pytest.approx([0.694907, 0, 0.695518], abs=1e-6)
    assert depths.tolist() == [2, 3]


def flat(alphas, channels, depths=(1.0, 2.0)):
    """The middle pixel of Gaussians as wide as the picture."""
    n = len(alphas)
    means = torch.tensor([[0, 0, z] for z in depths], dtype=torch.float64)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).expand(n, 4)
    K = torch.tensor([[8.0, 0, 1.5], [0, 8, 1.5], [0, 0, 1]], dtype=torch.float64)
    values = torch.tensor(channels, dtype=torch.float64)
    opacities = torch.tensor(alphas, dtype=torch.float64)
    args = means, quats, torch.full((n, 3), 1.0, dtype=torch.float64), opacities, values
    return rasterize(*args, torch.eye(4, dtype=torch.float64), K, 3, 3)


def test_compositing_by_hand():
    given = flat((0.6, 0.5), [[1.0, 0, 1], [0, 1, 1]])
    assert given.image[1, 1].tolist() == pytest.approx([0.6, 0.2, 0.8])
    assert given.alpha[1, 1].item() == pytest.approx(0.8)
    swapped = flat((0.6, 0.5), [[1.0, 0, 1], [0, 1, 1]], depths=(2.0, 1.0))
    assert swapped.image[1, 1].tolist() == pytest.approx([0.3, 0.5, 0.8])


def test_more_channels_and_another_order_change_nothing():
    given, viewmat, K = cloud(channels=20)
    whole = rasterize(*given, viewmat, K, 24, 20).image
    parts = [rasterize(*given[:4], part, viewmat, K, 24, 20).image for part in given[4].split(7, 1)]
    torch.testing.assert_close(whole, torch.cat(parts, -1), rtol=1e-5, atol=1e-9)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        rasterize(*(v[order] for v in given), viewmat, K, 24, 20).image, whole, rtol=0, atol=1e-9
    )


def test_nothing_in_view_is_the_background():
    given, viewmat, K = cloud()
    viewmat[2, 3] = -40
    background = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    seen = rasterize(*given, viewmat, K, 24, 20, background=background)
    assert torch.equal(seen.image, background.expand(20, 24, 3)) and not seen.visible.any()
    (seen.image.sum() + seen.alpha.sum()).backward()
    assert given[0].grad.abs().sum() == 0
    with pytest.raises(ShapeError, match=r"channels has the shape \(7, 3\), and \(200, channels\)"):
        rasterize(*given[:4], torch.zeros(7, 3), viewmat, K, 24, 20)


def test_gsplat_is_called_as_its_own(monkeypatch):
    """Not its kernels, which need CUDA: that its call gets what it takes."""
    import sys
    import types

    from kdhub_generative.scenes.splats import rasterize_gsplat

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **more):
        assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3) and more["near_plane"] == 0.2
        behind = more["backgrounds"]
        given = rasterize(means, quats, scales, opacities, colors, viewmats[0], Ks[0], width, height,
                          background=None if behind is None else behind[0])  # fmt: skip
        info = {"means2d": given.means2d[None], "radii": given.visible[None, :, None].expand(-1, -1, 2).int()}
        return given.image[None], given.alpha[None, ..., None], info

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=rasterization))
    given, viewmat, K = cloud()
    features = torch.randn(200, 6, dtype=torch.float64, requires_grad=True)
    mine, theirs = (draw(*given, viewmat, K, 24, 20, detached=features) for draw in (rasterize, rasterize_gsplat))
    assert torch.equal(mine.image, theirs.image) and torch.equal(mine.features, theirs.features)
    assert torch.equal(mine.visible, theirs.visible)
    assert torch.autograd.grad(theirs.features.sum(), given[0], allow_unused=True)[0] is None


# -- Gaussians ------------------------------------------------------------------------------------------------


def test_harmonics_are_orthonormal():
    draw = torch.nn.functional.normalize(
        torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
    )
    basis = torch.cat([torch.full((len(draw), 1), C0, dtype=torch.float64), harmonics(draw, 3)], 1)
    gram = 4 * torch.pi * basis.T @ basis / len(draw)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=0.03)


def some_gaussians(n=12, **settings):
    torch.manual_seed(0)
    module = Gaussians(n, **settings)
    module.take_points(
        np.random.default_rng(0).uniform(-0.6, 0.6, (n, 3)), np.random.default_rng(1).uniform(size=(n, 3))
    )
    with torch.no_grad():
        for p in (module.quats, module.opacities, module.shN, module.features):
            p += torch.randn_like(p)
    return module


def a_scene(module=None, network="gaussians"):
    module = module or some_gaussians()
    facts = facts_of([looking_at(360 * n / 5, 15, 4, 32, 24, 30) for n in range(5)])
    settings = module.settings() if network == "gaussians" else {"resolution": 8, "samples": 12}
    scene = Scene({"task": "radiance-field", "network": network, "settings": settings, **facts})
    scene.module.load_state_dict(module.state_dict())
    return scene


def test_a_ply_has_the_fields_of_the_original_and_no_more(tmp_path):
    module = some_gaussians(sh_degree=2, features=5)
    module.write_ply(tmp_path / "a.ply")
    rows = PlyData.read(tmp_path / "a.ply")["vertex"]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{n}" for n in range(24))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [p.name for p in rows.properties] == names
    read = lambda *wanted: torch.tensor(np.stack([rows[n] for n in wanted], -1))  # noqa: E731
    assert torch.equal(read("x", "y", "z"), module.means) and torch.equal(read("opacity")[:, 0], module.opacities)
    assert torch.equal(read("f_dc_0", "f_dc_1", "f_dc_2"), module.sh0)
    assert torch.equal(read("scale_0", "scale_1", "scale_2"), module.scales)
    assert torch.equal(read(*(f"f_rest_{n}" for n in range(8, 16))), module.shN[:, :, 1])  # all of green
    turned = rotations(read("rot_0", "rot_1", "rot_2", "rot_3"))
    torch.testing.assert_close(turned, rotations(module.quats), rtol=0, atol=1e-6)


def test_a_scene_is_safetensors_and_opens_as_it_was(tmp_path):
    scene = a_scene(some_gaussians(sh_degree=1, features=4, feature_background=True))
    (tmp_path / "s").mkdir()
    scene.save(tmp_path / "s")
    assert load_file(tmp_path / "s" / "model.safetensors")["features"].shape == (12, 4)
    again = kdhub.load(tmp_path / "s")
    for name in ("image", "opacity", "depth", "features"):
        assert torch.equal(getattr(again.render(scene.camera), name), getattr(scene.render(scene.camera), name))


def test_pictures_of_a_scene_are_pictures(tmp_path):
    for scene in (a_scene(), a_scene(Voxels(resolution=8, samples=12), "voxels")):
        made = [sheet(scene, side=24, n=2), turntable(scene, side=24, frames=3)]
        assert not problems(made)
        scene.export(tmp_path / "out.ply")
        assert len(PlyData.read(tmp_path / "out.ply")["vertex"].data)
    assert len(PlyData.read(tmp_path / "out.ply")["face"].data)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("extract", "nothing to extract: no Gaussian"),
        ("delete", "delete leaves nothing: all 12"),
        ("paint", "an edit is"),
    ],
)
def test_a_query_that_leaves_nothing_is_refused(how, said):
    chosen = torch.full((12,), how == "delete")
    with pytest.raises(UsageError, match=said):
        some_gaussians(features=3).edited(how, chosen)


def test_edits_are_copies():
    module = some_gaussians(sh_degree=1, features=3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    chosen = torch.arange(12) < 5
    gone, only = module.edited("delete", chosen), module.edited("extract", chosen)
    red = module.edited("recolour", chosen, (1.0, 0, 0))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(only.opacities < -10, ~chosen) and torch.equal(gone.opacities < -10, chosen)
    assert red.sh0[0].tolist() == pytest.approx([0.5 / C0, -0.5 / C0, -0.5 / C0]) and not red.shN[0].any()
    camera = looking_at(0, 15, 4, 32, 24, 30)
    keep = Gaussians(7, 1, 3)
    keep.load_state_dict({n: v[~chosen] if n in module.PER else v for n, v in module.state_dict().items()})
    torch.testing.assert_close(gone.render(camera).image, keep.render(camera).image)


# -- fields ---------------------------------------------------------------------------------------------------


def test_compositing_along_a_ray_by_hand():
    weights = composited(torch.tensor([[0.0, 2, 5, 5]], dtype=torch.float64), 0.25)
    assert weights[0].tolist() == pytest.approx([0, 0.393469, 0.432757, 0.123987], abs=1e-6)
    assert weights.sum().item() == pytest.approx(0.950213, abs=1e-6)
    z = torch.tensor([1, 1.25, 1.5, 1.75], dtype=torch.float64)
    assert (weights * z).sum().item() == pytest.approx(1.357949, abs=1e-6)


@pytest.mark.parametrize("field", [Voxels(resolution=8, samples=16), HashGrid(levels=3, table=256, samples=16)])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_a_field_is_a_blob_at_first_and_has_gradients(field, scale):
    camera = looking_at(30, 20, 4, 16, 16, 18, scale=scale)
    view = field.render(camera)
    assert view.opacity[8, 8] > 0.8 > 0.2 > view.opacity[0, 0]
    assert 2.5 < (view.depth / view.opacity)[8, 8] < 4
    assert view.weights.shape == (16, 16, 16)
    (view.image.sum() + view.opacity.sum()).backward()
    assert all(p.grad is not None for p in field.parameters())


# -- cameras and readers --------------------------------------------------------------------------------------


def test_cameras_look_at_their_target_and_rays_meet_their_pixels():
    camera = looking_at(70, 20, 3, 32, 24, 36, target=(0.1, 0.2, 0.3))
    where = camera.K @ (camera.viewmat[:3, :3] @ [0.1, 0.2, 0.3] + camera.viewmat[:3, 3])
    assert (where[:2] / where[2]).tolist() == pytest.approx([16, 12]) and where[2] == pytest.approx(3)
    up = camera.viewmat[:3, :3] @ [0, 0, 1]
    assert up[1] < 0  # down is y
    starts, toward = camera.rays()
    point = camera.viewmat[:3, :3] @ (starts[33] + 2.5 * toward[33]) + camera.viewmat[:3, 3]
    seen = camera.K @ point
    assert (seen[:2] / seen[2]).tolist() == pytest.approx([1.5, 1.5]) and point[2] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("viewmat", "K", "said"),
    [
        (np.diag([-1.0, 1, 1, 1]), K36, "with a reflection"),
        (np.diag([2.0, 2, 2, 1]), K36, "not a rotation"),
        (np.eye(4), np.diag([0.0, 0, 1]), "without a focal length"),
        (np.eye(3), K36, "viewmat is 4 x 4"),
    ],
)
def test_cameras_that_are_none(viewmat, K, said):
    with pytest.raises(DataError, match=said):
        Camera(viewmat, K, 32, 32)
    row = {"image": np.zeros((32, 32, 3), np.uint8), "viewmat": viewmat, "K": K}
    assert said in str(example_of(row)["fault"])


def test_distortion_is_undone():
    camera = Camera(np.eye(4), np.array([[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]), 40, 40)
    lens = {"k1": 0.2, "k2": -0.05, "p1": 0.01, "p2": -0.02}
    image = np.zeros((40, 40, 3), np.uint8)
    x, y = (30.5 - 20) / 40, (25.5 - 20) / 40
    for fisheye in (False, True):
        u, v = distorted(np.array(x), np.array(y), lens, fisheye)
        image[:] = 0
        image[int(v * 40 + 20), int(u * 40 + 20)] = 255
        assert np.unravel_index(undistorted(image, camera, lens, fisheye)[..., 0].argmax(), (40, 40)) == (25, 30)
    by = 1 + 0.2 * 0.5 + -0.05 * 0.25  # r^2 = 0.5
    assert float(distorted(np.array(0.5), np.array(0.5), {"k1": 0.2, "k2": -0.05}, False)[0]) == pytest.approx(0.5 * by)


def photographs(folder, n=3):
    (folder / "images").mkdir()
    for k in range(n):
        Image.fromarray(np.full((24, 32, 3), 40 * k, np.uint8)).save(folder / "images" / f"{k}.png")


def nerf(folder, n=3, **more):
    photographs(folder)
    poses = [np.linalg.inv(looking_at(50 * k, 10, 3, 32, 24, 30).viewmat) @ np.diag([1.0, -1, -1, 1]) for k in range(n)]
    frames = [{"file_path": f"images/{k}.png", "transform_matrix": p.tolist()} for k, p in enumerate(poses)]
    given = {"fl_x": 30, "w": 32, "h": 24, "k1": 0.05, "frames": frames, **more}
    (folder / "transforms.json").write_text(json.dumps(given))
    return given


def rows_of(source, split="train"):
    table = kdhub.open_data(source).split(split)
    return plain_rows(table, range(len(table)))


def test_transforms_are_read_into_opencv_axes(tmp_path, home):
    nerf(tmp_path)
    rows = rows_of({"source": f"posed:{tmp_path}"})
    assert len(rows) == 3
    for k, row in enumerate(rows):
        true = looking_at(50 * k, 10, 3, 32, 24, 30)
        np.testing.assert_allclose(row["viewmat"], true.viewmat, atol=1e-9)
        np.testing.assert_allclose(row["K"], true.K, atol=1e-9)


def colmap(folder, binary):
    photographs(folder)
    (model := folder / "sparse" / "0").mkdir(parents=True)
    values, quat, shift = (30.0, 31.0, 16.0, 12.0, 0.1, 0.0, 0.0, 0.0), (0.5, 0.5, 0.5, 0.5), (0.1, 0.2, 3.0)
    if not binary:
        (model / "cameras.txt").write_text(f"# comment\n1 OPENCV 32 24 {' '.join(map(str, values))}\n")
        pose = " ".join(map(str, (*quat, *shift)))
        (model / "images.txt").write_text("".join(f"{k} {pose} 1 {k}.png\n\n" for k in range(3)))
        (model / "points3D.txt").write_text("1 0.5 0.25 2 255 0 0 0.1 1 2 3 4\n")
        return
    (model / "cameras.bin").write_bytes(struct.pack("<QiiQQ8d", 1, 1, 4, 32, 24, *values))
    images = b"".join(
        struct.pack("<i7di", k, *quat, *shift, 1) + f"{k}.png\0".encode() + struct.pack("<Q", 0) for k in range(3)
    )
    (model / "images.bin").write_bytes(struct.pack("<Q", 3) + images)
    point = struct.pack("<Q3d3Bd", 1, 0.5, 0.25, 2, 255, 0, 0, 0.1) + struct.pack("<Q4i", 2, 1, 2, 3, 4)
    (model / "points3D.bin").write_bytes(struct.pack("<Q", 1) + point)


@pytest.mark.parametrize("binary", [False, True])
def test_colmap_models_are_read(tmp_path, home, binary):
    colmap(tmp_path, binary)
    row = rows_of({"source": f"posed:{tmp_path}"})[1]
    turn = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(np.array(row["viewmat"])[:3], np.c_[turn, [0.1, 0.2, 3]], atol=1e-12)
    assert np.array(row["K"])[[0, 1, 0, 1], [0, 1, 2, 2]].tolist() == [30, 31, 16, 12]
    assert shared(row["points"])["points"].tolist() == [[0.5, 0.25, 2]]
    assert shared(row["points"])["colours"].tolist() == [[1, 0, 0]]


def test_as_many_images_as_cameras(tmp_path, home):
    given = nerf(tmp_path)
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(DataError, match="frame 3: there is a camera and no image images/2.png"):
        rows_of({"source": f"posed:{tmp_path}"})
    given["frames"].pop()
    (tmp_path / "transforms.json").write_text(json.dumps(given))
    photo = Image.fromarray(np.zeros((24, 32, 3), np.uint8))
    photo.save(tmp_path / "images" / "2.png")
    with pytest.raises(DataError, match="2 cameras for 3 images: none for 2.png"):
        rows_of({"source": f"posed:{tmp_path}"})


def test_frames_that_are_no_cameras_are_named(tmp_path, home):
    given = nerf(tmp_path)
    given["frames"][1]["transform_matrix"][0] = [-v for v in given["frames"][1]["transform_matrix"][0]]
    (tmp_path / "transforms.json").write_text(json.dumps(given))
    with pytest.raises(DataError, match="transforms.json, frame 2: a camera with a reflection"):
        rows_of({"source": f"posed:{tmp_path}"})
    (tmp_path / "transforms.json").write_text(json.dumps({**given, "fl_x": 0}))
    with pytest.raises(DataError, match="frame 1: a camera without a focal length"):
        rows_of({"source": f"posed:{tmp_path}"})


def test_no_point_at_all(home):
    task = kdhub.open_task("radiance-field")
    data = kdhub.open_data({"source": "shells", "options": {"points": False, "views": 3, "held_out": 1}})
    facts = task.survey([(data, "train")])
    with pytest.raises(DataError, match="no point at all"):
        kdhub.open_student("gaussians:", "radiance-field", facts=facts)
    random = kdhub.open_student("gaussians:40", "radiance-field", facts=facts)
    assert random.module.means.shape == (40, 3) and random.module.means.abs().max() <= 2.01
    with pytest.raises(UsageError, match="gaussians:x takes how many"):
        kdhub.open_student("gaussians:x", "radiance-field", facts=facts)
