"""The checks of a task before it is learned, critical ones and warnings, and the tables that they look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from components.config import Data

# The manifest's own names, repeated so that a change of how images are read does not validate every task again.
SPLITS = ("train", "val", "test")
COLUMNS = ("path", "label", "split", "sha256", "bytes", "width", "height", "mode", "format", "readable", "error")
INDEX_COLUMNS = ("sha256", "task", "split", "path")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")  # what images.py turns into RGB without loss
MAX_ASPECT = 4.0
MAX_SIZE_RATIO = 64.0  # of an image's pixels to the task's median, either way
_NULL = "ExpectColumnValuesToBeNull"


@dataclass(frozen=True)
class Check:
    """An expectation, and what a person reads where it fails.

    Attributes:
        expectation: its name in Great Expectations.
        arguments: those of the expectation.
        problem: what is wrong with the rows that fail.
        remedy: what to do.
        critical: whether the task must not be learned; else it is a warning.
        detail: the column that explains each example.
    """

    expectation: str
    arguments: Mapping[str, Any]
    problem: str
    remedy: str
    critical: bool = True
    detail: str | None = None


def annotate(manifest: pd.DataFrame, earlier: pd.DataFrame, data: Data) -> pd.DataFrame:
    """Add derived columns to a manifest: one value per image that an expectation can look at.

    Columns that name another image (other_label, other_split, repeat, earlier) are null where there is none.
    `damage` is why an image cannot be read, unless that is a limit which has an expectation of its own.

    Args:
        manifest: a row per image, with COLUMNS.
        earlier: a row per image of the earlier tasks, with INDEX_COLUMNS.
        data: the limits.
    """
    table = manifest.reset_index(drop=True).copy()
    readable = table["readable"].astype(bool)
    table["sha256"] = table["sha256"].where(table["sha256"] != "", None)  # the file could not even be opened
    sides = table[["width", "height"]].where(table["width"] > 0).astype(float)
    table["pixels"], table["shorter_side"] = sides["width"] * sides["height"], sides.min(axis=1)
    outside = (table["pixels"] > data.max_pixels) | (table["shorter_side"] < data.min_side)
    outside |= table["bytes"] > data.max_bytes
    table["damage"] = table["error"].where(~readable & ~outside, None)
    table["aspect"] = (sides.max(axis=1) / sides.min(axis=1)).where(readable)
    table["relative_size"] = (table["pixels"] / table["pixels"].median()).where(readable)
    table["known_mode"] = table["mode"].where(readable, None)
    copies = pd.DataFrame(_copies(table), columns=["other_label", "other_split", "repeat"], dtype=object)
    known = earlier.drop_duplicates("sha256").set_index("sha256")
    names = ("= " + known["task"] + ": " + known["path"]).to_dict()
    table["earlier"] = pd.Series([names.get(digest) for digest in table["sha256"]], dtype=object)
    return pd.concat([table, copies], axis=1)


def _copies(table: pd.DataFrame) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Name for every row an earlier row of equal content: under another label, in another split, in neither."""
    before: dict[str, list[Any]] = {}
    for row in table.itertuples(index=False):
        same = before.setdefault(row.sha256, []) if isinstance(row.sha256, str) else []
        label = next((other for other in same if other.label != row.label), None)
        split = next((other for other in same if other.split != row.split), None)
        yield (
            f"= {label.path}" if label else None,
            f"= {split.path} in {split.split}" if split else None,
            f"= {same[0].path}" if same and not label and not split else None,
        )
        same.append(row)


def per_class(manifest: pd.DataFrame) -> pd.DataFrame:
    """Count each class's readable images, in all and in each split; `ratio` is the largest class over this one."""
    readable = manifest[manifest["readable"].astype(bool)]
    table = pd.DataFrame({"label": sorted(set(manifest["label"].dropna()))})
    parts = {"images": readable} | {split: readable[readable["split"] == split] for split in SPLITS}
    for column, rows in parts.items():
        counts = rows["label"].value_counts()
        table[column] = [int(counts.get(label, 0)) for label in table["label"]]
    table["ratio"] = table["images"].max() / table["images"].clip(lower=1)
    return table


def image_checks(data: Data) -> list[Check]:
    """List the expectations on the table of images."""
    return [*_manifest_checks(), *_file_checks(data), *_copy_checks(), *_appearance_checks()]


def _manifest_checks() -> list[Check]:
    """Check that the table is one that `ingest` wrote."""
    again = "run the stage ingest again"
    return [
        Check(
            "ExpectTableColumnsToMatchSet",
            {"column_set": list(COLUMNS), "exact_match": False},
            "the manifest lacks columns",
            again,
        ),
        Check("ExpectTableRowCountToBeBetween", {"min_value": 1}, "the manifest holds no images", "add images"),
        Check("ExpectColumnValuesToBeUnique", {"column": "path"}, "listed twice", again),
        Check("ExpectColumnValuesToNotBeNull", {"column": "label"}, "without a label", again),
        Check(
            "ExpectColumnValuesToBeInSet", {"column": "split", "value_set": list(SPLITS)}, "in no known split", again
        ),
        Check(
            "ExpectColumnValuesToMatchRegex", {"column": "sha256", "regex": "^[0-9a-f]{64}$"}, "without a sha256", again
        ),
    ]


def _file_checks(data: Data) -> list[Check]:
    """Check that every image can be used within the limits."""
    between = "ExpectColumnValuesToBeBetween"
    smaller, larger = "remove them or lower the limit", "shrink them or raise the limit"
    return [
        Check(_NULL, {"column": "damage"}, "that cannot be used", "repair or remove them", detail="damage"),
        Check(between, {"column": "bytes", "max_value": data.max_bytes}, "over data.max_bytes", larger, detail="bytes"),
        Check(
            between, {"column": "pixels", "max_value": data.max_pixels}, "over data.max_pixels", larger, detail="pixels"
        ),
        Check(
            between,
            {"column": "shorter_side", "min_value": data.min_side},
            f"with a side below data.min_side ({data.min_side})",
            smaller,
            detail="shorter_side",
        ),
    ]


def _copy_checks() -> list[Check]:
    """Check that no image is there twice, in this task or in an earlier one."""
    return [
        Check(_NULL, {"column": "other_label"}, "under two labels", "keep one of the two", detail="other_label"),
        Check(_NULL, {"column": "other_split"}, "in two splits", "keep one of the two", detail="other_split"),
        Check(
            _NULL,
            {"column": "earlier"},
            "already in an earlier task",
            "remove them from one of the two",
            detail="earlier",
        ),
        Check(_NULL, {"column": "repeat"}, "repeated within a class", "keep one of the two", False, "repeat"),
    ]


def _appearance_checks() -> list[Check]:
    """Warn of images that look unlike the others."""
    between = "ExpectColumnValuesToBeBetween"
    return [
        Check(
            "ExpectColumnValuesToBeInSet",
            {"column": "known_mode", "value_set": list(MODES)},
            "of an unusual pixel type",
            "look whether their colours are right",
            False,
            "mode",
        ),
        Check(
            between,
            {"column": "aspect", "max_value": MAX_ASPECT},
            f"longer than {MAX_ASPECT:g}:1",
            "crop them: they are squeezed into a square",
            False,
            "aspect",
        ),
        Check(
            between,
            {"column": "relative_size", "min_value": 1 / MAX_SIZE_RATIO, "max_value": MAX_SIZE_RATIO},
            f"over {MAX_SIZE_RATIO:g} times larger or smaller than the median",
            "look whether they belong here",
            False,
            "pixels",
        ),
    ]


def class_checks(data: Data) -> list[Check]:
    """List the expectations on the table of classes."""
    between = "ExpectColumnValuesToBeBetween"
    least = {"column": "images", "min_value": data.min_images_per_class}
    few = f"below data.min_images_per_class ({data.min_images_per_class} readable images)"
    ratio = {"column": "ratio", "max_value": data.max_class_ratio}
    uneven = f"beyond data.max_class_ratio (the largest class is over {data.max_class_ratio:g} times as large)"
    return [
        Check("ExpectTableRowCountToBeBetween", {"min_value": 1}, "no class", "add a class folder"),
        Check(between, least, few, "add images or remove the class", detail="images"),
        *(
            Check(between, {"column": split, "min_value": 1}, f"without a readable image in {split}", "add images")
            for split in SPLITS
        ),
        Check(between, ratio, uneven, "add images of it", False, "images"),
    ]
