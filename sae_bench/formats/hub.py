"""The model hub, down and up; whatever goes wrong there is one line with a remedy.

Only the files that a format knows are fetched, none of them is code, and they stay in the hub's own cache.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from sae_bench.errors import UserError
from sae_bench.progress import quiet_hub


def fetch(repo: str, revision: str | None, folder: str, names: Iterable[str]) -> tuple[dict[str, Path], str]:
    """Download those of some files that a folder of a repository has; their paths by name, and the commit.

    Raises:
        UserError: the repository cannot be had.
    """
    wanted = {name: f"{folder}/{name}".strip("/") for name in names}
    with _explained(repo, revision):
        snapshot = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=[*wanted.values()]))
    # The hub's cache links names to the bytes that it keeps elsewhere: these are the files themselves.
    files = {name: (snapshot / path).resolve() for name, path in wanted.items() if (snapshot / path).is_file()}
    return files, snapshot.name


def upload(repo: str, files: Mapping[str, Path | bytes], message: str, *, private: bool) -> str:
    """Put files into a repository, made if need be, as one commit; returns its address.

    Raises:
        UserError: there is no leave to, or no network.
    """
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in sorted(files.items())
    ]
    api = huggingface_hub.HfApi()
    with _explained(repo, None):
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, operations=operations, commit_message=message).commit_url)


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    try:
        with quiet_hub():
            yield
    except errors.GatedRepoError:
        raise UserError(f'"{repo}" is gated: accept its terms on its page and run `hf auth login`') from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f'"{repo}" is not on the hub: check the name, or run `hf auth login` if it is private'
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f'"{repo}" has no revision "{revision}": choose one that its page lists') from None
    except errors.HFValidationError as error:
        raise UserError(f'"{repo}" is no name of a repository ({error}): give owner/name') from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f'"{repo}" cannot be downloaded: check the network, or give a local folder instead') from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = "run `hf auth login` with a token that may write" if status in (401, 403) else "try again later"
        raise UserError(f'the hub refuses "{repo}" ({status}): {remedy}') from None
    except (ConnectionError, OSError) as error:
        raise UserError(f'"{repo}" cannot be reached ({type(error).__name__}): check the network') from None
