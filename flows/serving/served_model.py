"""The model that is served: one version, the source it comes from, and its Predictor, tried once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from components.arrays import Pixels
from components.data.images import to_square
from components.errors import IntaglioError
from components.inference.bundle import INDEX
from components.inference.image_values import open_value
from components.inference.predictor import Predictor
from components.io import sha256_file


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of the model. While it is served, only the batcher's thread may call the predictor."""

    version: str
    predictor: Predictor
    loaded_at: float = field(default_factory=time.time)

    @classmethod
    def load(cls, version: str, bundle: Path, device: str, precision: str, batch: int) -> ServedModel:
        """Load a bundle and predict one image and one full batch, so that a broken one fails here.

        Args:
            version: its name.
            bundle: its folder.
            device: auto, cpu, cuda or mps.
            precision: auto, fp32 or bf16.
            batch: images predicted together at most.

        Raises:
            IntaglioError: the bundle is damaged, or there is no such device or precision.
        """
        predictor = Predictor.load(bundle, device, precision)
        for count in (1, batch):
            shape = (count, predictor.image_size, predictor.image_size, 3)
            predictor.predict_pixels(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        return cls(version, predictor)

    def pixels(self, image: object) -> Pixels:
        """Decode an image of a request to (image_size, image_size, 3), uint8, RGB. Any thread may call it.

        Raises:
            ImageError: it is not an image, or one beyond the limits.
        """
        return to_square(open_value(image, self.predictor.limits, files=False), self.predictor.image_size)


class Source(Protocol):
    """Where versions come from."""

    def version_to_serve(self) -> str:
        """Name the version that should be served now."""
        ...

    def bundle(self, version: str) -> Path:
        """Return the folder with a version's bundle."""
        ...


@dataclass(frozen=True)
class Folder:
    """A bundle's folder: one version, named by the hash of its index."""

    path: Path

    def version_to_serve(self) -> str:
        """Name the content: the same name as long as it is the same.

        Raises:
            IntaglioError: there is no bundle.
        """
        index = self.path / INDEX
        if not index.is_file():
            raise IntaglioError(f"{self.path}: not a bundle ({INDEX} is missing); the stage `bundle` writes one")
        return f"bundle-{sha256_file(index)[:12]}"

    def bundle(self, version: str) -> Path:
        """Return the folder."""
        return self.path


@dataclass(frozen=True)
class Champion:
    """The version of the registered model that has the alias `champion`."""

    root: Path

    def version_to_serve(self) -> str:
        """Return the champion's version.

        Raises:
            IntaglioError: there is none.
        """
        from flows.registry.mlflow_store import CHAMPION, aliases, connect

        if (self.root / "mlruns" / "mlflow.db").is_file():
            champion = aliases(connect(self.root)).get(CHAMPION)
            if champion:
                return champion
        raise IntaglioError(
            f"{self.root}: no champion; `intaglio run` promotes one, or name a bundle's folder with `--bundle DIR`"
        )

    def bundle(self, version: str) -> Path:
        """Return the folder of its bundle.

        Raises:
            IntaglioError: its files are gone.
        """
        from flows.registry.mlflow_store import bundle_of, connect

        return bundle_of(connect(self.root), self.root, version)
