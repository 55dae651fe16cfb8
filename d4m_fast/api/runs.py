"""A run on the disk, as Python sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from d4m_fast.api.surroundings import foreseen
from d4m_fast.errors import PreflightError
from d4m_fast.runs.reading import class_ids, read_manifest, read_summary, require_run

if TYPE_CHECKING:
    import pandas
    from PIL import Image

    from d4m_fast.runs.verify import Verdict


class Images(Sequence["Image.Image"]):
    """Images of files, each read when it is asked for, as RGB.

    Attributes:
        paths: of the files, in the same order.

    Raises:
        DataError: a file that is asked for is no image, or damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> Images: ...

    def __getitem__(self, index: int | slice) -> Image.Image | Images:
        from d4m_fast.sources.decode import decode

        if isinstance(index, slice):
            return Images(self.paths[index])
        with foreseen():
            return decode(self.paths[index])

    def __repr__(self) -> str:
        return f"<{len(self):,} images>"


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory of `distill`. It is read anew at every access.

    Attributes:
        path: of the directory.

    Raises:
        RunDirectoryError: the run is not finished; only `verify` takes one that is not.
        DamageError: a file that is read is not what was written.
    """

    path: Path

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers of images and classes, seconds of each stage: what `d4m-fast distill --json` prints."""
        with foreseen():
            return read_summary(self.path)

    @property
    def images(self) -> Images:
        """All images, class by class, each read when it is asked for."""
        return Images([self.path / row["file"] for row in self._rows()])

    @property
    def classes(self) -> tuple[str, ...]:
        """Folders of the classes, by class id; a label of `load` is a position among them."""
        with foreseen():
            return tuple(class_ids(self.path))

    @property
    def manifest(self) -> pandas.DataFrame:
        """Rows of all images as a table: class id, prompt, seed, cluster, nearest real image, file and its checksum.

        Raises:
            PreflightError: pandas is not installed.
        """
        pandas = require_pandas("manifest")
        return pandas.DataFrame(self._rows())

    @property
    def labels(self) -> list[Path]:
        """Directories of soft labels that `evaluate` stored of these images, by name; `load` takes one of them."""
        from d4m_fast.api.loading import labels_of

        return labels_of(self.path)

    def verify(self, *, deep: bool = False, repair: bool = False) -> Verdict:
        """Compare all files with the checksums that they were written with.

        Args:
            deep: decode every image, too.
            repair: uncommit what is damaged, so that `distill` with the same options makes exactly that again.

        Raises:
            RunDirectoryError: the run is in use.
            DamageError: its config is damaged, so that nothing can be compared.
        """
        from d4m_fast.runs.verify import verify

        with foreseen():
            return verify(self.path, deep=deep, repair=repair)

    def _rows(self) -> list[dict[str, Any]]:
        with foreseen():
            return read_manifest(self.path)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Return the run in a directory.

    Raises:
        DataError: there is no such directory.
        RunDirectoryError: it is no run of d4m-fast.
    """
    with foreseen():
        run = Path(os.fspath(path))
        require_run(run)
    return Run(run)


def path_of(run: Run | str | os.PathLike[str]) -> Path:
    """Return the directory of a run, or of images."""
    return run.path if isinstance(run, Run) else Path(os.fspath(run))


def require_pandas(what: str) -> Any:
    """Return the module.

    Raises:
        PreflightError: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise PreflightError(f"{what} needs pandas: pip install 'd4m-fast[notebook]'") from error
    return pandas
