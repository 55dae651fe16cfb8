"""Calculated, not measured: the least time that k-means of many classes can take on one GPU.

    python bench/kmeans_roofline.py

Bytes over the memory's bandwidth, operations over the tensor cores' float16 peak, whichever takes longer; the defaults
are an H100 SXM's data sheet and ImageNet-1K in the latents of 512 pixel images. One line of JSON per k.
"""

from __future__ import annotations

import json

import click

from d4m_fast.kernels.roofline import H100, Machine


def rows(classes: int, n: int, d: int, k: int, machine: Machine) -> dict[str, float]:
    """Milliseconds for all classes. X is float16; scores, Gram matrix and means float32."""
    x, scores, means, gram = 2.0 * n * d, 4.0 * n * k, 4.0 * k * d, 4.0 * n * n
    per_class = {
        "seeding, one seed at a time": machine.seconds(k * x, 2.0 * n * d * k),
        "Lloyd pass on the points": machine.seconds(2 * x + 2 * scores + means, 2.0 * n * d * k),
        "Gram product": machine.seconds(x + gram, 2.0 * n * n * d),  # cuBLAS computes both halves of it
        "Lloyd pass in Gram space": machine.seconds(gram + 2 * scores),
        "means and check at the end": machine.seconds(2 * x + means, 2.0 * n * d * k),
    }
    return {name: round(1e3 * classes * seconds, 1) for name, seconds in per_class.items()}


@click.command(help=__doc__)
@click.option("--classes", default=1000, show_default=True)
@click.option("--n", default=1300, show_default=True, help="Images per class.")
@click.option("--d", default=16_384, show_default=True, help="Values per latent.")
@click.option("--k", "ks", default="10,50,100,200", show_default=True)
@click.option("--bandwidth", default=H100.bandwidth, show_default=True, help="Bytes per second.")
@click.option("--flops", default=H100.products[2], show_default=True, help="Float16 operations per second.")
def main(classes: int, n: int, d: int, ks: str, bandwidth: float, flops: float) -> None:
    for k in map(int, ks.split(",")):
        click.echo(json.dumps({"k": k, "calculated_ms": rows(classes, n, d, k, Machine(bandwidth, {2: flops}))}))


if __name__ == "__main__":
    main()
