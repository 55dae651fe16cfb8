"""Answers of the reference: diffusers' own networks in fp32 on the CPU, computed once for every comparison."""

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
from d4m_fast.export.probe import Probe, record_probe
from d4m_fast.export.workload import GUIDANCE
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
        prefix = f"answers/{self._component}/{_digest(inputs)}/"
        if not any(name.startswith(prefix) for name in self._answers):
            for name, output in self._open()(inputs).items():
                self._answers[prefix + name] = output
        outputs: Tensors = {}
        for name, output in self._answers.items():
            if name.startswith(prefix):
                outputs[name.removeprefix(prefix)] = output
        return outputs


def _digest(inputs: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(inputs.items()):
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}\n".encode())
        digest.update(x.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Reference:
    """Calls that the CPU computed, networks that know the answers, and the images it made."""

    probe: Probe
    networks: Networks


def batches(images: int) -> tuple[int, ...]:
    """Return the batch sizes at which the first and the last call of each network are repeated."""
    # Sizes that the trace of an export did not have show a batch that was frozen, or rows that are mixed up.
    return (1, 2, 7, 2 * images)


def make_reference(request: Request) -> Reference:
    """Ask everything that `agreement` will ask, and write the answers.

    Raises:
        DataError: the source has too few images.
    """
    answers: dict[str, torch.Tensor] = {}
    networks = _memorised(request, answers)
    try_networks(request.model, networks, trial_resolution(request.model))
    probe = record_probe(request.workload, networks, request.images)
    for component in COMPONENTS:
        runtime = networks.runtime(component)
        # Compared with itself, the reference computes the calls at all batch sizes, and remembers them.
        parity.compare(component, runtime, runtime, probe.calls[component], batches(request.images), GUIDANCE)
    _write(request.folder, probe, answers)
    return Reference(probe, networks)


def read_reference(request: Request) -> Reference:
    """Read the answers that `make_reference` wrote.

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
    tensors, classes = load(data), [ClassInfo(**fields) for fields in sealed["classes"]]
    answers = {name: x for name, x in tensors.items() if name.startswith("answers/")}
    return Reference(_read_probe(tensors, classes), _memorised(request, answers))


def _memorised(request: Request, answers: dict[str, torch.Tensor]) -> Networks:
    eager = open_networks(request.model.path, CPU, torch.float32, reference=True)
    return eager.with_runtimes(lambda component: Memo(component, answers, lambda: eager.runtime(component)))


def _write(folder: Path, probe: Probe, answers: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    tensors = {}
    for component in COMPONENTS:
        for i, call in enumerate(probe.calls[component]):
            for name, x in call.items():
                tensors[f"calls/{component}/{i}/{name}"] = x
    classes = []
    for i, prototype in enumerate(probe.prototypes):
        tensors[f"centroids/{i}"] = torch.from_numpy(prototype.centroids)
        class_info = prototype.info
        classes.append({"id": class_info.id, "folder": class_info.folder, "prompt": class_info.prompt})
    tensors |= {**answers, "images": torch.from_numpy(probe.images)}
    # safetensors refuses tensors that share memory.
    separate = {name: x.contiguous().clone() for name, x in tensors.items()}
    # The seal comes last: without it there is no reference.
    sha256 = files.write_bytes(folder / FILE, save(separate))
    write_state(folder / SEAL, REFERENCE, {"classes": classes, "sha256_of": {FILE: sha256}})


def _read_probe(tensors: Mapping[str, torch.Tensor], classes: Sequence[ClassInfo]) -> Probe:
    prototypes = []
    for i, class_info in enumerate(classes):
        centroids = tensors[f"centroids/{i}"].numpy()
        k = len(centroids)
        prototypes.append(Prototypes(class_info, centroids, np.ones(k), np.zeros(k), ("",) * k))
    calls: dict[Component, list[Tensors]] = {}
    for component in COMPONENTS:
        prefix, call_of_number = f"calls/{component}/", dict[int, Tensors]()
        for path, x in tensors.items():
            if path.startswith(prefix):
                number, name = path.removeprefix(prefix).split("/")
                call_of_number.setdefault(int(number), {})[name] = x
        calls[component] = [call for _, call in sorted(call_of_number.items())]
    return Probe(prototypes, calls, tensors["images"].numpy())
