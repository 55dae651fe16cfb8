#!/bin/sh
# CIFAR-10 as a second set: a teacher, a distilled set, and all arms in three regimes; rows go to bench/cifar.jsonl.
#
#     sh bench/cifar.sh cifar10-imagefolder.tar
#
# The archive has train/CLASS/*.jpg and test/CLASS/*.jpg. Everything is kept below runs/cifar, and what is there is not
# made again: stop it when you like, and run it again. From an environment where `python -m d4m_fast` works.
#
# There is no small model of CIFAR-10 that could be bundled. The one that is bundled has seen clothes only: its latents
# serve the clustering (medoid), while whatever goes through its decoder (decoded, distilled, *-vae) shows what happens
# with a model that does not know the images.
set -eu
archive=$1
out=runs/cifar
mkdir -p "$out/data"
[ -d "$out/data/test" ] || tar -xf "$archive" -C "$out/data"
python -m d4m_fast teach "$out/data" --arch convnet-3-32-bn --epochs 6 --out "$out/teacher"
python bench/accuracy.py --data "$out/data" --out "$out" --allow-unknown-prompts --ipc 10 --generations 1 --seeds 1 \
    --width 16 --teacher "$out/teacher" >"$out/rows.jsonl"
mv "$out/rows.jsonl" bench/cifar.jsonl
