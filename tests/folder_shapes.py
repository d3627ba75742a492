"""Folders of images in every shape that people bring, and what must be said of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PETS = ("cat/1.png", "cat/2.png", "dog/1.png")


def under(*folders: str) -> tuple[str, ...]:
    """The two classes of PETS in each of these folders."""
    return tuple(f"{folder}/{name}" for folder in folders for name in PETS)


# An entry is an image, a folder where it ends with "/", or a link: "from -> to".
ACCEPTED: dict[str, tuple[str, ...]] = {
    "one class": PETS[:2],
    "classes": PETS,
    "three splits": under("train", "val", "test"),
    "train alone": under("train"),
    "train and val": under("train", "val"),
    "splits in capitals": under("TRAIN", "Val", "Test"),
    "usual other names": under("Train", "Valid", "Test"),
    "more other names": under("training", "validation", "testing"),
    "a class that test lacks": (*under("train"), "test/cat/3.png"),
    "images deep in a class": (*PETS, "cat/more/still/3.png", "dog/empty/"),
    "a class called train": ("train/1.png", "car/1.png"),
    "a class called Test": ("Test/1.png", "exam/1.png"),
    "hidden": (*PETS, ".cache/1.png", "cat/.1.png", ".ipynb_checkpoints/1.png", "cat/.DS_Store", ".x.png"),
    "litter of systems": (*PETS, "__MACOSX/cat/1.png", "cat/@eaDir/1.png/thumb.jpg", "Thumbs.db", "dog/desktop.ini"),
    "litter beside splits": (*under("train", "test"), "__MACOSX/train/cat/1.png", ".DS_Store", "test/.DS_Store"),
    "other files": (*PETS, "README.md", "cat/notes.txt", "labels.csv"),
    "a linked image": (*PETS, "cat/3.png -> ../dog/1.png"),
    "a linked text": (*PETS, "labels.csv -> ../elsewhere/labels.csv"),
    "a linked hidden folder": (*PETS, "cat/.git -> ../dog"),
    "in any alphabet": ("猫 1/ä.png", "Löwe's & co/b,c.png"),
}
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "empty": ((), "no class folders; expected one folder of images per class"),
    "an empty class": ((*PETS, "bird/notes.txt"), "no images in class bird; add images .*png.* or remove the folder"),
    "many empty classes": (
        (*PETS, *(f"empty{number}/" for number in range(5))),
        "no images in class empty0, empty1, empty2 and 2 more;",
    ),
    "hidden images alone": ((*PETS, "bird/.1.png"), "no images in class bird"),
    "loose images": ((*PETS, "1.png"), r"pets: images beside the class folders \(1.png\); move each into its class"),
    "nothing but images": (("1.png", "2.jpg"), r"pets: images beside the class folders \(1.png, 2.jpg\); move each"),
    "loose beside splits": ((*under("train"), "1.png"), r"pets: images beside the class folders \(1.png\); move each"),
    "loose in a split": ((*under("train"), "train/1.png"), r"pets/train: images beside the class folders \(1.png\)"),
    "splits without classes": (("train/1.png", "Test/2.png"), r"pets/Test: images beside the class folders \(2.png\)"),
    "an empty val": (
        (*under("train", "test"), "val/"),
        "pets/val: no class folders; expected one .*; add them, or remove val/, and its images are drawn from",
    ),
    "an empty train": (("train/", *under("test")), "pets/train: no class folders; expected one folder of images per"),
    "an empty class in val": ((*under("train", "val"), "val/dog/", "val/bird/"), "pets/val: no images in class bird;"),
    "no train": (under("val", "test"), "there is test, val but no train/ folder; add it"),
    "no train in capitals": (under("Valid", "Test"), "there is Test, Valid but no train/ folder; add it"),
    "a class that train lacks": (
        (*under("train", "val"), "val/bird/1.png"),
        "pets: class bird is in val/ but not in train/; add it there",
    ),
    "a class in another case": (
        ("Train/cat/1.png", "Train/dog/1.png", "Test/Cat/1.png"),
        "pets: class Cat is in Test/ but not in Train/; add it there",
    ),
    "splits beside classes": (
        (*PETS, *under("train")),
        r"split folders \(train\) stand beside other folders \(cat, dog\); keep only train/, val/ and test/, or only",
    ),
    "splits beside another": ((*under("Train", "test"), "extra/1.png"), r"\(Train, test\) stand beside other .*extra"),
    "a split twice": (under("train", "val", "Valid"), "Valid, val are folders of one split, val; keep one of them"),
    "an image that links elsewhere": (
        (*PETS, "cat/3.png -> ../../elsewhere/1.png"),
        "cat/3.png: a link that leaves .*pets; copy the image instead",
    ),
    "an image that links to nothing": (
        (*PETS, "cat/3.png -> gone.png"),
        "cat/3.png: a link to a file that does not exist; restore the file or remove the link",
    ),
    "an image that links to itself": ((*PETS, "cat/3.png -> 3.png"), "cat/3.png: a link to a file that does not exist"),
    "a linked folder in a class": (
        (*PETS, "cat/more -> ../dog"),
        "cat/more: a link to a folder, which is not followed; copy the folder instead",
    ),
    "a linked class": ((*PETS, "bird -> ../elsewhere"), "pets/bird: a link to a folder, which is not followed; copy"),
    "a name of two lines": ((*PETS, "cat/new\nline.png"), r"cat/new\\nline.png': the name has characters that cannot"),
    "a class of two lines": ((*PETS, "new\nline/"), r"new\\nline': the name has characters that cannot be printed;"),
    "a name in no encoding": ((*PETS, "cat/\udcff.png"), r"cat/\\udcff.png': the name has characters that cannot be"),
}


def build(folder: Path, entries: Iterable[str]) -> Path:
    """Make a folder of these entries; every file's content is its own."""
    folder.mkdir(parents=True)
    (folder.parent / "elsewhere").mkdir(exist_ok=True)
    for name in ("1.png", "labels.csv"):
        (folder.parent / "elsewhere" / name).touch()
    for entry in entries:
        name, _, target = entry.partition(" -> ")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(name.encode(errors="surrogateescape"))
    return folder
