"""The passes of one capture on the disk, found by their tokens: read, added to, and never served unless they are whole.

Several processes may work in one folder. What is written is written beside its name and renamed, under a lock that
lasts as long as the writing; who finds that another was first leaves its own copy out.

Shapes: n contexts, S tokens in each, D width of a site.
"""

import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_bench.activations_cache.shards import (
    Captured,
    ForeignError,
    Pass,
    Shard,
    ShardReader,
    description_path,
    digest,
    read_description,
    write_shard,
)
from sae_bench.activations_cache.sizes import SPARE_BYTES, bytes_in, in_words
from sae_bench.errors import UserError
from sae_bench.lm.sites import Site
from sae_bench.lm.tokens import TokenBatch
from sae_bench.records.files import Damaged, is_temporary
from sae_bench.records.names import file_name
from sae_bench.records.ownership import is_within

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

SHARD_BYTES = 128 << 20
"""Of all sites together: what is held in memory before it is written, and lost where a process is killed."""

Key = tuple[Site, str, int]
"""A site, `Pass.opening` and `Pass.of`."""

Place = tuple[Shard, int, Pass]
"""A pass of a shard, and the context of the shard that it begins with."""


class PassStore:
    """The passes in `folder`, whose capture is called `capture`; all of `root` takes at most `limit` bytes.

    With `alone` the contexts of a pass influence each other's bits, as in a model with experts: such a pass is found
    for the very same contexts alone; any other for its first ones, too.
    """

    def __init__(
        self,
        folder: Path,
        capture: str,
        root: Path,
        limit: int | None = None,
        *,
        alone: bool = False,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.capture, self.root, self.limit, self.alone = folder, capture, root, limit, alone
        self._begun = begun
        self._index: dict[Key, list[Place]] = defaultdict(list)
        self._seen: dict[Path, Shard | None] = {}  # by description; None where it is of no use
        self._times: dict[Path, int] = {}
        self._open: dict[Site, tuple[Shard, ShardReader]] = {}
        self._whole: set[Path] = set()
        self._pending: dict[Site, list[Captured]] = defaultdict(list)
        self._full = False
        if self.folder.is_dir():
            with suppress(PermissionError), self._locked():  # one may be given a cache to read alone
                self._sweep()
            self._refresh()

    @property
    def sites(self) -> set[Site]:
        """Those that something is there of."""
        return {shard.site for shard in self._seen.values() if shard is not None}

    def find(self, site: Site, tokens: Int[Tensor, "n S"], of: int) -> Float[Tensor, "n S D"] | None:
        """What was captured at `site` of these tokens, in a pass of `of` contexts; None where nothing is there."""
        opening = digest(tokens[0])
        for one in self._pending[site]:
            if self._serves(one.what, opening, of, len(tokens)) and torch.equal(one.tokens[: len(tokens)], tokens):
                return one.x[: len(tokens)]
        found = self._on_disk(site, tokens, opening, of)
        if found is None and self._refresh():
            found = self._on_disk(site, tokens, opening, of)
        return found

    def add(self, batch: TokenBatch, of: int, activations: Mapping[Site, Float[Tensor, "n S D"]]) -> None:
        """Keep what a pass captured; it may be in memory until `flush`."""
        if self._full:
            return
        what = Pass(digest(batch.tokens[0]), digest(batch.tokens), len(batch.tokens), of)
        for site, x in activations.items():
            self._pending[site].append(Captured(what, batch.tokens, batch.document, x.cpu()))
        if sum(one.x.nbytes for of_site in self._pending.values() for one in of_site) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all that is kept in memory. Where there is no room for it, say so and keep nothing from then on."""
        pending = {site: of_site for site, of_site in self._pending.items() if of_site}
        self._pending.clear()
        if not pending:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._begun()
                self._refresh()
                for site, of_site in pending.items():
                    self._write(site, [one for one in of_site if not self._has(site, one.what)])
        except (UserError, OSError) as error:
            self._full = True
            reason = str(error.__cause__ or error)
            log.warning("--activations-cache %s: %s; what else is captured is not kept", self.root, reason)

    def _write(self, site: Site, captured: list[Captured]) -> None:
        if not captured:
            return
        n_bytes = sum(one.x.nbytes + 2 * one.tokens.numel() * 4 for one in captured)
        if self.limit is not None and (used := bytes_in(self.root)) + n_bytes > self.limit:
            raise UserError(f"{in_words(used)} of --cache-limit {in_words(self.limit)} are taken")
        if (free := shutil.disk_usage(self.root).free) < n_bytes + SPARE_BYTES:
            raise UserError(f"{in_words(free)} are free on its disk")
        of_site = self.folder / file_name(site.name)
        numbers = [int(path.stem) for path in of_site.glob("*.json") if path.stem.isdecimal()]
        path = of_site / f"{max(numbers, default=-1) + 1:06d}.safetensors"
        shard = write_shard(path, self.capture, site, captured)
        self._take(shard)

    def _serves(self, what: Pass, opening: str, of: int, n: int) -> bool:
        enough = what.n == n if self.alone else what.n >= n
        return what.opening == opening and what.of == of and enough

    def _has(self, site: Site, what: Pass) -> bool:
        return any(other == what for _, _, other in self._index[site, what.opening, what.of])

    def _on_disk(self, site: Site, tokens: Int[Tensor, "n S"], opening: str, of: int) -> Tensor | None:
        for shard, first, what in list(self._index[site, opening, of]):
            if not self._serves(what, opening, of, len(tokens)):
                continue
            try:
                reader = self._reader(shard)
            except Damaged as damage:
                self._drop(shard, str(damage))
                continue
            if torch.equal(reader.tokens(first, len(tokens)), tokens):
                return reader.activations(first, len(tokens))
        return None

    def _reader(self, shard: Shard) -> ShardReader:
        """One shard of each site is open: passes come in the order in which they were captured."""
        found = self._open.get(shard.site)
        if found is None or found[0] is not shard:
            found = self._open[shard.site] = shard, ShardReader(shard)
        return found[1]

    def _drop(self, shard: Shard, why: str) -> None:
        """A shard is of no use: say so, and take it away, so that what is captured anew has its room."""
        log.warning("%s: its activations are captured anew", why)
        for place in self._index.values():
            place[:] = [one for one in place if one[0] is not shard]
        self._seen[description_path(shard.path)] = None
        with suppress(PermissionError), self._locked():
            _delete(shard.path)

    def _take(self, shard: Shard) -> None:
        first = 0
        for what in shard.passes:
            self._index[shard.site, what.opening, what.of].append((shard, first, what))
            first += what.n
        self._seen[description_path(shard.path)] = shard

    def _refresh(self) -> bool:
        """See what is new in the folder; whether anything is."""
        new = False
        for of_site in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            if self._times.get(of_site) == (time := of_site.stat().st_mtime_ns):
                continue
            self._times[of_site] = time
            for description in sorted(of_site.glob("[0-9]*.json")):
                if description not in self._seen:
                    new = self._read(description) or new
        return new

    def _read(self, description: Path) -> bool:
        self._seen[description] = None
        try:
            self._take(read_description(description, self.capture))
        except ForeignError:
            log.warning("%s is of another capture than its folder: it is not used", description)
        except (UserError, LookupError, TypeError, ValueError) as damage:
            log.warning(
                "%s: its activations are captured anew", damage if isinstance(damage, UserError) else description
            )
            with suppress(PermissionError):
                _delete(description)
        return self._seen[description] is not None

    def _sweep(self) -> None:
        """Delete what a process left that was killed while it wrote: nobody else writes now."""
        for file in self.folder.glob("*/*"):
            unsaid = re.fullmatch(r"\d+\.safetensors", file.name) and not description_path(file).exists()
            if is_within(self.folder, file) and (unsaid or is_temporary(file.name)):
                file.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only one that writes in the folder; the system lets go when a process dies."""
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _delete(file: Path) -> None:
    """Both files of a shard, the description first: what has none is swept away."""
    for path in (description_path(file), file.with_suffix(".safetensors")):
        path.unlink(missing_ok=True)
