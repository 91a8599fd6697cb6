"""What the nodes of a run must agree on: run folder and checkpoints before it starts, later what the learner writes."""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.calls import wait_for_all
from actors.nodes import ask_nodes, node_names
from actors.placement import LEARNER
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError, UserError
from t2ir1_ray.storage import write_whole

READ = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja")
"""Endings of the files that loaders read in a checkpoint folder."""
WHOLE_BYTES = 1 << 20
BLOCKS, BLOCK_BYTES = 64, 1 << 16


@dataclass(frozen=True)
class Seen:
    """What one node sees. folder: None, or what is wrong with the run folder there; checkpoints: file name -> digest
    by path, None for a path that is not there."""

    folder: str | None
    checkpoints: dict[str, dict[str, str] | None]


def check_agreement(config: Config, run: Path, roles_by_node: Mapping[str, set[str]]) -> None:
    """Raises UserError in one line that names the node which sees another run folder or other checkpoints.

    Checkpoints are compared where their roles are. One that no node has as a file is left to the actor that loads it:
    it is a model hub's.
    """
    me = ray.get_runtime_context().get_node_id()
    if roles_by_node.keys() <= {me}:
        return
    names = node_names()
    wanted = {node: _paths(config, roles) for node, roles in roles_by_node.items()}
    with marked(run) as (mark, token):
        asked = ask_nodes(
            look, {n: (mark, token, LEARNER in roles_by_node[n], set(keys.values())) for n, keys in wanted.items()}
        )
        calls = {names[node]: call for node, call in asked.items()}
        answers = wait_for_all(calls, "a look at run folder and checkpoints", config.cluster.start_timeout_s)
    seen: dict[str, Seen] = dict(zip(asked, answers, strict=True))
    for node, found in seen.items():
        if found.folder:
            mend = "put journal.root on a disk that all nodes share"
            raise UserError(f"{names[node]}: journal.root: {run.resolve()} {found.folder}: {mend}")
    for key, path in {key: path for keys in wanted.values() for key, path in keys.items()}.items():
        there = {names[node]: seen[node].checkpoints[path] for node, keys in wanted.items() if key in keys}
        if fault := difference(path, {names[me]: digests(Path(path))}, there):
            raise UserError(f"{key}: {fault}: copy it, or put it on a disk that all nodes share")


@contextmanager
def marked(folder: Path) -> Iterator[tuple[str, str]]:
    """A file in the folder by which others know it: (its absolute path, what it holds). Raises RunError if the folder
    cannot be written."""
    mark, token = folder.resolve() / f".{secrets.token_hex(4)}.partial", secrets.token_hex(16)
    write_whole(mark, token)
    try:
        yield str(mark), token
    finally:
        with suppress(OSError):
            mark.unlink()


def look(mark: str, token: str, writes: bool, paths: Iterable[str]) -> Seen:
    """On a node: see `look_at_folder`, and what do the checkpoints hold?"""
    return Seen(look_at_folder(Path(mark), token, writes), {path: digests(Path(path)) for path in paths})


def look_at_folder(mark: Path, token: str, writes: bool) -> str | None:
    """What is wrong with the folder of `mark`, which holds `token` where it is the driver's; None: nothing.

    writes: whether this node must be able to write there.
    """
    try:
        if not mark.is_file() or mark.read_text() != token:
            return "is not the folder that the driver sees"
        if writes:
            own = mark.with_name(f"{mark.name}-{secrets.token_hex(4)}")
            own.write_text(token)
            own.unlink()
    except OSError as error:
        return f"cannot be written there ({error.strerror})"
    return None


def digests(path: Path) -> dict[str, str] | None:
    """File name -> digest of a checkpoint's size and contents, of large files a sample; None: there is nothing.

    Enough to notice another version, a download that broke off and a file that is missing, at any size: a file of
    many GB costs 4 MiB. Raises OSError if a file cannot be read.
    """
    local = path.expanduser()
    if local.is_file():
        return {local.name: _digest(local)}
    if not local.is_dir():
        return None
    files = (file for file in local.rglob("*") if file.suffix in READ and file.is_file())
    names = {str(file.relative_to(local)): file for file in files}
    return {name: _digest(file) for name, file in sorted(names.items()) if not name.startswith(".")}


def _digest(file: Path) -> str:
    size = file.stat().st_size
    found = hashlib.blake2b(str(size).encode(), digest_size=8)
    with file.open("rb") as content:
        if size <= WHOLE_BYTES:
            found.update(content.read())
        else:
            for block in range(BLOCKS):
                content.seek((size - BLOCK_BYTES) * block // (BLOCKS - 1))
                found.update(content.read(BLOCK_BYTES))
    return found.hexdigest()


def difference(
    path: str, here: Mapping[str, dict[str, str] | None], there: Mapping[str, dict[str, str] | None]
) -> str | None:
    """What the nodes that need a checkpoint (`there`) lack of it, or have otherwise; None: nothing.

    here: the driver's own, which may be nothing if it needs none.
    """
    having = [(node, files) for node, files in (here | there).items() if files is not None]
    if not having:
        return None
    model, expected = having[0]
    for node, files in there.items():
        if files is None:
            return f"{path} is on {model}, and not on {node}"
        names = sorted(name for name in expected.keys() | files.keys() if expected.get(name) != files.get(name))
        if names:
            return f"{path} is not the same on {node} and on {model} ({names[0]})"
    return None


def _paths(config: Config, roles: set[str]) -> dict[str, str]:
    """Checkpoints that these roles load, by the keys that name them."""
    found = {"policy.path": config.policy.path} if roles & {LEARNER, "rollout", "reference"} else {}
    return found | {f"experts.{n}.path": e.path for n, e in config.experts.items() if f"expert-{n}" in roles}


def check_seen(folder: Path, written: Sequence[Mapping[str, int]]) -> None:
    """Is every file that a learner rank wrote here, as long as it was there? written: of each rank, {path: bytes}.

    Raises RunError with the rank that wrote elsewhere.
    """
    for rank, files in enumerate(written):
        for name, size in files.items():
            seen = (folder / name).stat().st_size if (folder / name).is_file() else None
            if seen != size:
                how = "is not seen here" if seen is None else f"has {seen} bytes here instead of {size}"
                raise RunError(
                    f"learner {rank}: {name}, which it wrote to {folder}, {how}: use a folder that the nodes share"
                )
