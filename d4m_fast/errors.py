"""What can go wrong, and the exit code that says so.

D4MError                1  the run failed
├── DataError           1  the images cannot be used
├── ModelError          1  the model directory cannot be used
├── NonFiniteError      1  a network returned NaN, infinity, or what cannot be kept
├── OutOfMemoryError    1  a batch does not fit the device, or not even one image does
├── UsageError          2  an option or a combination of options makes no sense
├── RunDirectoryError   4  the run directory belongs to another config, or is in use
├── DamageError         5  an artifact does not match its checksum
└── PreflightError      6  no disk, no permission, no such device, a missing extra

Exit code 0 is success, 3 a finished run with quarantined images, 130 and 143 an interrupted one.
"""

from __future__ import annotations

TRIAL = "a trial on random numbers, before anything is encoded"
"""What a NonFiniteError says of networks that were only tried."""

EXIT_QUARANTINED = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class D4MError(Exception):
    """One line for the user: what is wrong, where, and what to do."""

    exit_code = 1


class DataError(D4MError):
    """The images cannot be used."""


class ModelError(D4MError):
    """The model directory cannot be used."""


class NonFiniteError(D4MError):
    """A network returned NaN or infinity, or numbers that cannot be kept.

    Args:
        network: its name.
        images: what it was computing, in words.
        timestep: of the noise schedule, where one is known.
    """

    def __init__(self, network: str, images: str, timestep: float | None = None) -> None:
        when = "" if timestep is None else f", at timestep {timestep:g}"
        super().__init__(
            f"{network}: no finite number (NaN or infinity) in {images}{when}; nothing of this batch is kept: try"
            " --precision fp32, another --engine or other weights, and the same command goes on"
        )


class OutOfMemoryError(D4MError):
    """A batch does not fit the device's memory; a smaller one may.

    Attributes:
        stage: "encode", "denoise" or "decode".
        reason: the library's own words, one line.
    """

    def __init__(self, stage: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{stage}: out of memory ({reason}){advice}")
        self.stage = stage
        self.reason = reason

    def for_one_image(self) -> OutOfMemoryError:
        """The same, when there is nothing smaller to try."""
        advice = "; not even one image fits: take a smaller --resolution or a device with more memory"
        return OutOfMemoryError(self.stage, self.reason, advice)


class UsageError(D4MError):
    """An option or a combination of options makes no sense."""

    exit_code = 2


class RunDirectoryError(D4MError):
    """The run directory belongs to another config, or is in use."""

    exit_code = 4


class DamageError(D4MError):
    """An artifact does not match its checksum.

    Attributes:
        reason: what is wrong, without path and advice.
    """

    exit_code = 5

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class PreflightError(D4MError):
    """No disk, no permission, no such device, a missing extra."""

    exit_code = 6
