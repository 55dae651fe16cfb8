"""What is imported before the first image: all of it is booked as such, and none of it by the stages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from driving import Finished, environment

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from d4m_fast.engine.modules import import_libraries
from d4m_fast.engine.networks import open_networks
from d4m_fast.engine.signature import COMPONENTS

libraries = ("diffusers.models", "diffusers.utils", "transformers", "scipy", "sympy")
def loaded(): return {name for name in sys.modules if name.startswith(libraries)}

before = loaded()
import_libraries(networks=True)
known = loaded()
networks = open_networks(Path(sys.argv[1]), torch.device("cpu"), torch.float32)
for component in COMPONENTS:
    networks.runtime(component)
networks.text_encoder
print(json.dumps([sorted(before), len(known), sorted(loaded() - known)]))
"""


def test_opening_networks_imports_nothing_that_was_not_booked(tiny_model: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tiny_model)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    before, known, later = json.loads(ran.stdout)
    assert [name for name in before if name.startswith(("diffusers", "transformers"))] == []
    assert known > 100
    assert later == []


def test_imports_stand_beside_the_stages(finished: Finished) -> None:
    seconds = finished.ran.json["seconds"]
    assert next(iter(seconds)) == "import"
    assert "open" in seconds
