"""How much faster an epoch of RECE is by d × d matrices than by the published arithmetic.

    python -m lab.bench_rece [--model sd15|sdxl] [--tokens 77] [--epochs 3]

Both start from the same edit of one concept, on the cross-attention key and value weights of
Stable Diffusion 1.5's or SDXL's UNet, random, in one process. The published arithmetic is written
out plainly from its description, in float32: for all layers Σ WᵀW and Σ WᵀW₀ of the weights as
edited so far, one inverse for the concept's tokens c′; then, for each layer, the sums of outer
products over the tokens of what goes and of what stays, and a d × d inverse. Ours is the loop of
``RECE.matrices``, in float64. Encoding the prompts is the same work for both and is left out.

Prints the seconds of one epoch of each and their ratio; the seconds that ours takes once for
Q = Σ W₀ᵀW₀; the ratio over all epochs with Q in it; and how far an epoch's change of the first
layers is, relative in Frobenius' norm, from that by the published arithmetic in float64: of ours,
and of float32, in which the two inverses lose much of it.
"""

import argparse
import json

import torch
from torch import Tensor

from lab.bench_uce import shapes, timed
from unsee.erasers.rece import adversary
from unsee.erasers.uce import Rows

RIDGE = CLOSENESS = KEEP = 0.1
COMPARED = 2
"""Layers in which the two are compared: float64 takes the published loop twice as long."""


def published(
    old: list[Tensor],
    new: list[Tensor],
    goes: Tensor,
    becomes: Tensor,
    kept: Tensor,
    *,
    layers: int | None = None,
) -> list[Tensor]:
    """The weights after one more epoch, layer by layer; of the first so many, or of all."""
    eye = torch.eye(goes.shape[1], dtype=goes.dtype)
    left, right = CLOSENESS * eye, torch.zeros_like(eye)
    for w, w0 in zip(new, old, strict=True):
        left = left + w.T @ w
        right = right + w.T @ w0
    found = goes @ (torch.inverse(left) @ right).T
    result = []
    for w in new[:layers]:
        above, below = RIDGE * w, RIDGE * eye
        for scale, sources, targets in ((1.0, found, becomes), (KEEP, kept, kept)):
            values = targets @ w.T
            above = above + scale * (values[:, :, None] @ sources[:, None, :]).sum(0)
            below = below + scale * (sources[:, :, None] @ sources[:, None, :]).sum(0)
        result.append(above @ torch.inverse(below))
    return result


def second_moment(weights: list[Tensor]) -> Tensor:
    """Q, as ``RECE.matrices`` sums it up."""
    q = torch.zeros(weights[0].shape[1], weights[0].shape[1], dtype=torch.float64)
    for weight in weights:
        double = weight.double()
        q += double.T @ double
    return q


def epoch(m: Tensor, q: Tensor, goes: Tensor, becomes: Tensor, kept: Tensor) -> Tensor:
    """M after one more epoch, as ``RECE.matrices`` finds it."""
    found = Rows(adversary(goes, m, q, CLOSENESS), becomes, kept, 1.0)
    left, right = found.solve(1.0, KEEP, RIDGE)
    return m + (m @ left) @ right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--tokens", type=int, default=77)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    sizes = shapes(arguments.model)
    old = [torch.randn(size, generator=draw) / size[1] ** 0.5 for size in sizes.values()]
    dim = old[0].shape[1]
    print(f"{arguments.model}: {len(old)} layers, d = {dim}, {torch.get_num_threads()} threads")
    rows = [torch.randn(arguments.tokens, dim, generator=draw) for _ in range(3)]
    doubles = [one.double() for one in rows]
    left, right = Rows(doubles[0], doubles[1], doubles[2], 1.0).solve(1.0, KEEP, RIDGE)
    m = torch.eye(dim, dtype=torch.float64) + left @ right
    new = [(weight.double() @ m).float() for weight in old]
    once, q = timed(lambda: second_moment(old))
    fast, found = min((timed(lambda: epoch(m, q, *doubles)) for _ in range(3)), key=lambda t: t[0])
    slow, rounded = timed(lambda: published(old, new, *rows))

    old, new = [one.double() for one in old], [one.double() @ m for one in old]
    goes, becomes, kept = doubles
    want = published(old, new, goes, becomes, kept, layers=COMPARED)

    def off(weights: list[Tensor]) -> float:
        """Of the change of the layers that are compared, the largest that is off."""
        three = zip(weights, want, new, strict=False)
        apart = max(float((w.double() - x).norm() / (x - start).norm()) for w, x, start in three)
        return float(f"{apart:.1e}")

    n = arguments.epochs
    row = {
        "published_s": round(slow, 3),
        "ours_s": round(fast, 4),
        "ratio": round(slow / fast, 1),
        "once_s": round(once, 3),
        f"ratio_of_{n}_epochs": round(n * slow / (n * fast + once), 1),
        "ours_off": off([weight @ found for weight in old[:COMPARED]]),
        "float32_off": off(rounded),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
