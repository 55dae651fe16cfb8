"""`d4m-fast distill`: options, the run, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from d4m_fast.config.distill import DistillConfig
from d4m_fast.config.fields import Group
from d4m_fast.config.launch import LaunchConfig
from d4m_fast.console import Progress, distilled_lines, say_result
from d4m_fast.errors import EXIT_QUARANTINED
from d4m_fast.options import PATH, command, config_of, option, options_of


@command
@options_of(DistillConfig)
@options_of(LaunchConfig)
@option("--out", group=Group.EVERYDAY, type=PATH, help="Run directory.  [default: runs/<config hash>]")
@option("--artifacts", group=Group.OUTPUT, type=PATH, help="Where latents are kept.  [default: user cache]")
def distill(out: Path | None, artifacts: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Distill a dataset: encode, cluster, generate, write. A re-run goes on where the last one stopped.

    \b
    Examples:
      d4m-fast distill
      d4m-fast distill --classes 1,8 --ipc 1 --steps 5 --out runs/two-images
      d4m-fast distill --data imagenet/train --model stable-diffusion-v1-5 --ipc 50 --image-size 224 --out in1k-50
    """
    from d4m_fast.api.distilling import finish_run

    # Checked before the imports, which take seconds: a wrong option is answered at once.
    config, launch = config_of(DistillConfig, options), config_of(LaunchConfig, options)
    summary = finish_run(config, launch, out, artifacts, Progress(quiet))
    say_result(summary, as_json, lambda: distilled_lines(summary))
    if summary["quarantined"]:
        sys.exit(EXIT_QUARANTINED)
