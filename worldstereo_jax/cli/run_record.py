"""What the record of an earlier run, `run.json` beside its memory, says of how it was made."""

import json
from pathlib import Path
from typing import Any

from worldstereo_jax.cli.outputs import RUN_FILE
from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.world import RolloutConfig


def read_record(memory: Path) -> dict[str, Any]:
    """The record of the run that wrote a memory folder; empty where none lies beside it.

    Raises:
        InputError: when what lies there is no record.
    """
    file = memory.resolve().parent / RUN_FILE
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is no record of a run: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{file} is no record of a run: it holds no named fields")
    return record


def rollout_of_run(memory: Path) -> RolloutConfig:
    """Frames of a clip, and how points are made and drawn, in the run that wrote a memory folder.

    The defaults where no record lies beside it, or it does not say.

    Raises:
        InputError: when what lies there is no record.
    """
    said, plain = read_record(memory).get("rollout", {}), RolloutConfig()
    try:
        return RolloutConfig(
            frames=int(said.get("frames", plain.frames)),
            point_radius=float(said.get("point_radius", plain.point_radius)),
            point_edges=str(said.get("point_edges", plain.point_edges)),
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"the {RUN_FILE} beside {memory} is no record of a run: {error}"
        ) from error
