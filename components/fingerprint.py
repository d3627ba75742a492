"""A hash of the code that a result depends on: a module and everything that it imports of this package.

Files that the module does not reach, such as a chart's or a command's, do not count. So an edited chart keeps a
half-trained checkpoint, and an edited training loop does not.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import grimp

from components.io import sha256_bytes, sha256_file


@cache
def code_fingerprint(module: str) -> str:
    """Hash a module and its direct and indirect imports, as they are on disk at the process's first call.

    Args:
        module: dotted name in this package, such as `components.training.loop`.

    Returns:
        Hex sha256.
    """
    package = __name__.partition(".")[0]
    graph = grimp.build_graph(package, cache_dir=None)
    root = Path(__file__).parent
    reached = sorted({module, *graph.find_upstream_modules(module)})
    return sha256_bytes("".join(f"{name} {sha256_file(_source(root, name))}\n" for name in reached).encode())


def _source(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
