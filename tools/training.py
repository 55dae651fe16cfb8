"""A resumable training loop whose every step depends only on (seed, stage, step), not on where it was interrupted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d4m_fast.fingerprints import derive_seed

M = TypeVar("M", bound=nn.Module)
SAVE_SECONDS = 60
LOG_STEPS = 100


def batch_indices(n: int, batch: int, step: int, *key: object) -> torch.Tensor:
    """The images of one step: consecutive pieces of one permutation per epoch."""
    per_epoch = n // batch
    generator = torch.Generator().manual_seed(derive_seed(*key, "epoch", step // per_epoch))
    start = step % per_epoch * batch
    return torch.randperm(n, generator=generator)[start : start + batch]


def train(
    name: str,
    model: M,
    loss: Callable[[int], torch.Tensor],
    *,
    steps: int,
    lr: float,
    work: Path,
    seed: int,
    ema_decay: float,
    weight_decay: float = 0.01,
    say: Callable[[str], None],
) -> M:
    """Minimise `loss(step)` with AdamW, a short warm-up and a cosine to zero; return the averaged model.

    The state is saved every minute to `work/name-seed.pt`; a re-run goes on from it. Losses go to a `.jsonl` beside it.
    """
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.05)
    parts = {"model": model, "ema": ema, "optimiser": optimiser, "schedule": schedule}
    state_file = work / f"{name}-{seed}.pt"
    first = _restore(state_file, parts)
    model.train()
    saved = since = time.monotonic()
    losses: list[float] = []
    for step in range(first, steps):
        torch.manual_seed(derive_seed(seed, name, step))
        optimiser.zero_grad(set_to_none=True)
        value = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        ema.update_parameters(model)
        losses.append(value.item())
        if (step + 1) % LOG_STEPS == 0:
            mean_loss = sum(losses) / len(losses)
            _log(state_file.with_suffix(".jsonl"), step + 1, mean_loss, time.monotonic() - since)
            say(f"{name} step {step + 1}/{steps} loss {mean_loss:.5f}")
            losses, since = [], time.monotonic()
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == steps:
            _save(state_file, parts, step + 1)
            saved = time.monotonic()
    return cast(M, ema.module.eval())


def _restore(state_file: Path, parts: dict[str, object]) -> int:
    if not state_file.exists():
        return 0
    state = torch.load(state_file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])  # type: ignore[attr-defined]
    return int(state["step"])


def _save(state_file: Path, parts: dict[str, object], step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
    temporary = state_file.with_suffix(".tmp")
    torch.save({**state, "step": step}, temporary)
    os.replace(temporary, state_file)


def _log(path: Path, step: int, loss: float, seconds: float) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "loss": round(loss, 6), "seconds": round(seconds, 2)}) + "\n")
