"""Which sparse autoencoder architecture is best: trained, evaluated and ranked on one stream of activations.

This module names what a plugin needs. Importing it is cheap: what `__init__.pyi` lists is loaded at its first
use.
"""

import warnings
from pathlib import Path

import lazy_loader

# In an uninstalled checkout the plugin folders stand beside this package; an installed package contains them.
_here = Path(__file__).parent
if not (_here / "architectures").is_dir() and (_here.parent / "architectures").is_dir():
    __path__.append(str(_here.parent))

# SAEBench's distribution installs a package of this name, too: its files may lie between ours.
if (_here / "sae_bench_utils").is_dir():
    warnings.warn(
        f"{_here} holds files of SAEBench (sae-bench) beside those of sae-arch-bench: uninstalling or upgrading either "
        "breaks the other; give each an environment of its own",
        stacklevel=2,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
