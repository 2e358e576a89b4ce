"""What `--sae` may say: a local path or glob, a run, `gemma-scope:...` or `hf:owner/repo/path`; and who reads it."""

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from sae_bench.errors import UserError
from sae_bench.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    hub,
    llama_scope,
    llamascopium,
    ours,
    qwen_scope,
    saelens,
    sparsify,
)
from sae_bench.formats.foreign import ForeignSAE, Source
from sae_bench.formats.hook_names import check_autoencoder, nearest

FOLDERS: tuple[ModuleType, ...] = (
    ours, saelens, sparsify, dictionary_learning, gemma_scope, gemma_scope_2, llama_scope, llamascopium
)  # fmt: skip
"""Each has a name, the files that it reads, the one with the weights last, and `read`. The first that fits reads."""

SINGLE_FILES: tuple[ModuleType, ...] = (qwen_scope, goodfire)
"""Each reads SAEs of one file, whose name is one of `NAMED`, a regular expression: it says what is not in the file."""

FORMATS = FOLDERS + SINGLE_FILES

NOT_READ = {
    r"conf\.yaml": "a temporal SAE, which looks at other tokens too",
    r"W_enc_\d+\.safetensors": "a cross-layer transcoder",
    r"(params_)?layer_\d+.*\.safetensors": "a transcoder, cross-layer transcoder or crosscoder",
}  # fmt: skip
"""Whose files are called so and are no SAEs of one site, by regular expressions."""

ALL_FILES = tuple(dict.fromkeys(name for module in FOLDERS for name in module.FILES))
GEMMA_SCOPE = re.compile(r"^gemma-scope:([\w.-]+)/")
HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.+))?")

MEMORY = "memory:"
"""What the name of an SAE begins with that a program gave; the rest is the hash of what it is."""

_given: dict[str, Source] = {}


@contextmanager
def given(folder: Path) -> Iterator[str]:
    """A name of the SAE in a folder that will not last: the same for the same files, wherever they are written."""
    (found,) = _local(folder)
    source = Source(MEMORY + found.sha256()[:16], found.files)
    _given[source.name] = source
    try:
        yield source.name
    finally:
        del _given[source.name]


def find_sources(text: str) -> list[Source]:
    """Every SAE that an argument of `--sae` stands for; several for a glob or a run.

    Raises:
        UserError: it stands for none.
    """
    if text.startswith(("gemma-scope:", "hf:")):
        return [_on_hub(text)]
    if text.startswith(MEMORY):
        if text not in _given:
            raise UserError(f'--sae "{text}" was in the memory of a program: give it to evaluate() there, or its files')
        return [_given[text]]
    paths = [text] if Path(text).exists() or not glob.has_magic(text) else sorted(glob.glob(text, recursive=True))
    found = list({source.name: source for path in paths for source in _local(Path(path))}.values())
    if not found and glob.has_magic(text):
        raise UserError(f'--sae "{text}" matches no SAE: check the pattern')
    below = Path(text).iterdir() if not found and Path(text).is_dir() else ()
    if any(source for folder in below if folder.is_dir() for source in _local(folder)):
        raise UserError(f'--sae "{text}" holds no SAE itself, but folders in it do: write --sae "{text}/*"')
    if not found:
        known = ", ".join([*(module.FILES[-1] for module in FOLDERS[1:]), "layerN.sae.pt", "MODEL-SAE-lN.pt"])
        why = _unread(Path(text)) or f"holds no SAE: none of {known}"
        why = why if Path(text).exists() else "does not exist"
        raise UserError(f'--sae "{text}" {why}; give a file, a folder, a run, gemma-scope:... or hf:owner/repo/path')
    return found


def open_sae(source: Source) -> ForeignSAE:
    """See, by its headers, what an SAE is.

    Raises:
        UserError: its format is unknown, or it is not what its format asks for.
    """
    module = _reader_of(*source.files) or next((m for m in FOLDERS if source.files.keys() >= {*m.FILES}), None)
    if module is None:
        module = next(module for module in FOLDERS[1:] if module.FILES[-1] in source.files)
        missing = next(name for name in module.FILES if name not in source.files)
        raise UserError(f"{source.name}: {missing} is missing beside {module.FILES[-1]}: {module.FORMAT} needs both")
    if module is not ours:
        check_autoencoder(source.name, nearest(source.name))
    sae: ForeignSAE = module.read(source)
    return sae


def _reader_of(*names: str) -> ModuleType | None:
    """Who reads the one file that an SAE is, if it is one."""
    return next((m for m in SINGLE_FILES if len(names) == 1 and re.fullmatch(m.NAMED, names[0])), None)


def _unread(path: Path) -> str | None:
    """What files of a layout that is not read are, if there are such."""
    names = [path.name, *(sorted(file.name for file in path.iterdir()) if path.is_dir() else ())]
    return next(filter(None, map(_unread_name, names)), None)


def _unread_name(path: str) -> str | None:
    name = path.rpartition("/")[2]
    whose = next((whose for pattern, whose in NOT_READ.items() if re.fullmatch(pattern, name)), None)
    return whose and f"holds {name}, the layout of {whose}, which is not evaluated"


def _on_hub(text: str) -> Source:
    match = HUB.fullmatch(GEMMA_SCOPE.sub(r"hf:google/gemma-scope-\1/", text))
    if match is None:
        raise UserError(
            f'--sae "{text}": write gemma-scope:9b-pt-res/layer_20/width_16k/average_l0_68, hf:owner/repo/path or '
            "hf:owner/repo@revision/path"
        )
    repo, revision, folder = match[1], match[2], match[3] or ""
    if why := _unread_name(folder):
        raise UserError(f'--sae "{text}" {why}')
    above, _, name = folder.rpartition("/")
    if single := _reader_of(name):
        files, commit = hub.fetch(repo, revision, above, [name])
    else:
        files, commit = hub.fetch(repo, revision, _without_file(folder), ALL_FILES)
    if not files or not (single or any(module.FILES[-1] in files for module in FOLDERS)):
        raise UserError(f'--sae "{text}": {repo} has no SAE in "{folder}": check the path on its page')
    return Source(text, files, commit)


def _without_file(path: str) -> str:
    """The folder of an SAE, where one of its files may be named."""
    name = next((name for name in ALL_FILES if f"/{path}".endswith(f"/{name}")), "")
    return path.removesuffix(name).rstrip("/") if name else path


def _local(path: Path) -> Iterator[Source]:
    if not path.is_dir():
        if _reader_of(path.name):
            yield Source(str(path), {path.name: path})
            return
        path = Path(_without_file(str(path)) or ".")
    if (path / "saes").is_dir():
        yield from (source for folder in sorted((path / "saes").iterdir()) for source in _local(folder))
        return
    files = {name: path / name for name in ALL_FILES if (path / name).is_symlink() or (path / name).exists()}
    if any(module.FILES[-1] in files for module in FOLDERS):
        yield Source(str(path), files)
    elif path.is_dir():
        yield from (Source(str(file), {file.name: file}) for file in sorted(path.iterdir()) if _reader_of(file.name))
