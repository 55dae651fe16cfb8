"""The reference: diffusers' own networks, fp32, on the CPU, asked once, their answers kept for every comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d4m_fast.certification.request import Request
from d4m_fast.engine.networks import Networks, open_networks
from d4m_fast.engine.runtime import Runtime, Tensors
from d4m_fast.engine.signature import COMPONENTS, Component
from d4m_fast.engine.trial import trial_resolution, try_networks
from d4m_fast.errors import ModelError
from d4m_fast.export.judge import GUIDANCE
from d4m_fast.export.probe import Probe, probe
from d4m_fast.measure import parity
from d4m_fast.runs.records import Prototypes
from d4m_fast.sources.records import ClassInfo
from d4m_fast.storage import files
from d4m_fast.storage.state import REFERENCE, read_state, write_state

FILE, SEAL = "reference.safetensors", "reference.json"
CPU = torch.device("cpu")


class Memo:
    """A runtime on the CPU that computes each answer once; `answers` are found by the bytes of their question."""

    device, dtype = CPU, torch.float32

    def __init__(self, component: Component, answers: dict[str, torch.Tensor], open_runtime: Callable[[], Runtime]):
        self._component, self._answers, self._open = component, answers, open_runtime

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        start = f"answers/{self._component}/{_digest(inputs)}/"
        if not any(name.startswith(start) for name in self._answers):
            outputs = self._open()(inputs)
            self._answers |= {start + name: x for name, x in outputs.items()}
        return {name.removeprefix(start): x for name, x in self._answers.items() if name.startswith(start)}


def _digest(inputs: Mapping[str, torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for name, x in sorted(inputs.items()):
        whole.update(f"{name} {tuple(x.shape)} {x.dtype}\n".encode())
        whole.update(x.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True)
class Reference:
    """What the CPU was asked, what it answered, and the images it made."""

    probe: Probe
    networks: Networks


def batches(images: int) -> tuple[int, ...]:
    """Sizes at which the first and the last call of each network are repeated."""
    return (1, 2, 7, 2 * images)


def make_reference(request: Request) -> Reference:
    """Ask everything that `agreement` will ask, and write the answers.

    Raises:
        DataError: the source has too few images.
    """
    answers: dict[str, torch.Tensor] = {}
    networks = _memorised(request, answers)
    try_networks(request.model, networks, trial_resolution(request.model))
    sizes = {"resolution": request.resolution, "count": request.images, "batch": request.images}
    found = probe(request.source, networks, request.schedule, guidance=GUIDANCE, **sizes)
    for component in COMPONENTS:
        runtime = networks.runtime(component)
        parity.compare(component, runtime, runtime, found.calls[component], batches(request.images), GUIDANCE)
    _write(request.folder, found, answers)
    return Reference(found, networks)


def read_reference(request: Request) -> Reference:
    """What `make_reference` wrote.

    Raises:
        ModelError: nothing there.
        DamageError: it is not what was written.
    """
    from safetensors.torch import load

    sealed = read_state(request.folder / SEAL, REFERENCE)
    if sealed is None:
        raise ModelError(f"{request.folder / FILE}: not there; the step 'reference' makes it")
    with REFERENCE.reading(request.folder / FILE):
        data = files.read_regular(request.folder / FILE)
    if hashlib.sha256(data).hexdigest() != sealed["sha256_of"][FILE]:
        raise REFERENCE.damage(request.folder / FILE, "its SHA-256 is another than recorded")
    tensors, infos = load(data), [ClassInfo(**info) for info in sealed["classes"]]
    answers = {name: x for name, x in tensors.items() if name.startswith("answers/")}
    return Reference(_probe(tensors, infos), _memorised(request, answers))


def _memorised(request: Request, answers: dict[str, torch.Tensor]) -> Networks:
    eager = open_networks(request.model.path, CPU, torch.float32, reference=True)
    return eager.with_runtimes(lambda c: Memo(c, answers, lambda: eager.runtime(c)))


def _write(folder: Path, found: Probe, answers: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    calls = {
        f"calls/{component}/{i}/{name}": x
        for component in COMPONENTS
        for i, call in enumerate(found.calls[component])
        for name, x in call.items()
    }
    centroids = {f"centroids/{i}": torch.from_numpy(p.centroids) for i, p in enumerate(found.prototypes)}
    classes = [{"id": p.info.id, "folder": p.info.folder, "prompt": p.info.prompt} for p in found.prototypes]
    tensors = {**calls, **centroids, **answers, "images": torch.from_numpy(found.images)}
    apart = {name: x.contiguous().clone() for name, x in tensors.items()}  # shared memory is refused
    sha256 = files.write_bytes(folder / FILE, save(apart))
    write_state(folder / SEAL, REFERENCE, {"classes": classes, "sha256_of": {FILE: sha256}})


def _probe(tensors: Mapping[str, torch.Tensor], infos: Sequence[ClassInfo]) -> Probe:
    prototypes = [_prototypes(info, tensors[f"centroids/{i}"].numpy()) for i, info in enumerate(infos)]
    calls = {component: _calls(tensors, component) for component in COMPONENTS}
    return Probe(prototypes, calls, tensors["images"].numpy())


def _prototypes(info: ClassInfo, centroids: np.ndarray) -> Prototypes:
    k = len(centroids)
    return Prototypes(info, centroids, np.ones(k), np.zeros(k), ("",) * k)


def _calls(tensors: Mapping[str, torch.Tensor], component: Component) -> list[Tensors]:
    found: dict[int, Tensors] = {}
    for path, x in tensors.items():
        kind, *rest = path.split("/")
        if kind == "calls" and rest[0] == component:
            found.setdefault(int(rest[1]), {})[rest[2]] = x
    return [found[i] for i in sorted(found)]
