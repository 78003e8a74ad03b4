"""The rasteriser of Gaussians beside dense compositing, forward and backward on one thread.

    python benchmarks/bench_scenes.py

A shell of Gaussians seen whole. Targets: 30 times dense at 64 x 64 with 10,000, 10 times at 128 x 128 with 2,000, and
128 channels without a gradient to geometry at most 1.8 times none. The least of several rounds, in turns, counts.
"""

import time

import torch
from kdhub_generative.scenes.splats import LAST, LEAST, MOST, project, rasterize

VIEWS = ((64, 10_000, 0.027, 30), (128, 2_000, 0.06, 10))
CHANNELS, ROUNDS = 20, 5
AT_ONCE = 4_000_000


def shell(n, scale, size):
    draw = torch.Generator().manual_seed(0)
    new = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    means = torch.nn.functional.normalize(new(n, 3), dim=1) * 1.2
    made = [means, new(n, 4), scale * torch.exp(0.3 * new(n, 3)), torch.sigmoid(new(n)), new(n, CHANNELS)]
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4
    K = torch.tensor([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1]])
    return [value.requires_grad_() for value in made], viewmat, K


def dense(means, quats, scales, opacities, channels, viewmat, K, size):
    """All pixels x all Gaussians, some pixels at a time."""
    where, conics, depths = project(means, quats, scales, viewmat, K, size, size)
    order = torch.argsort(depths)
    where, conics, opacities, channels = where[order], conics[order], opacities[order], channels[order]
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    parts = []
    for pixels in (torch.stack([columns, rows], -1).reshape(-1, 1, 2) + 0.5).split(max(1, AT_ONCE // len(order))):
        dx, dy = (pixels - where).unbind(-1)
        a, b, c = conics.unbind(-1)
        alpha = (opacities * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=MOST)
        alpha = torch.where(alpha >= LEAST, alpha, 0.0)
        left = torch.cumprod(1 - alpha, 1)
        before = torch.cat([torch.ones_like(left[:, :1]), left[:, :-1]], 1)
        parts.append(torch.where(left >= LAST, alpha * before, 0.0) @ channels)
    return torch.cat(parts)


def seconds(work):
    begin = time.perf_counter()
    work().square().sum().backward()
    return time.perf_counter() - begin


def measured(size, n, scale):
    """Seconds of both, and those of 128 further channels beside colours."""
    given, viewmat, K = shell(n, scale, size)
    few, beside = [*given[:4], given[4].detach()[:, :3].requires_grad_()], torch.randn(n, 128, requires_grad=True)

    def with_features():
        seen = rasterize(*few, viewmat, K, size, size, detached=beside)
        return torch.cat([seen.image, seen.features], -1)

    works = (
        lambda: rasterize(*given, viewmat, K, size, size).image,
        lambda: rasterize(*few, viewmat, K, size, size).image,
        with_features,
    )
    least = [min(times) for times in zip(*([seconds(work) for work in works] for _ in range(ROUNDS)))]
    return min(seconds(lambda: dense(*given, viewmat, K, size)) for _ in range(2)), *least


def main():
    torch.set_num_threads(1)
    for size, n, scale, target in VIEWS:
        slow, pairs, colours, more = measured(size, n, scale)
        print(
            f"{size} x {size}, {n:,} Gaussians, {CHANNELS} channels: {pairs:.3f} s, dense {slow:.2f} s, "
            f"{slow / pairs:.0f} times (target {target}); 128 further channels {more / colours:.2f} times colours "
            "alone (target 1.8)"
        )


if __name__ == "__main__":
    main()
