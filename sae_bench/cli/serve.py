"""`serve`: a run's report on this machine, with a box for text and the run's language model behind it."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
Plugins = Annotated[list[str] | None, Parameter(help="Python files with the architectures and models of the run.")]


def serve(run: Path, /, *, port: Port = 0, browser: bool = False, plugin: Plugins = None) -> int:
    """Open a run's report on this machine, with a box for text: which latents fire on which token, in which SAE.

    It listens on 127.0.0.1 alone, at an address that it prints; Ctrl-C stops it.

    Args:
        run: A run's folder, with its weights.
        port: The port. Default: one that is free.
        browser: Open the page in the browser.
    """
    from sae_bench.api.firing import Firing
    from sae_bench.api.local_server import LocalServer
    from sae_bench.cli.runs import quieten_libraries
    from sae_bench.leaderboard.board import Board
    from sae_bench.leaderboard.html.report import report
    from sae_bench.progress import Progress
    from sae_bench.registry import load_plugin

    load_plugin(*plugin or ())
    quieten_libraries()
    progress = Progress()
    board = Board.read([run])
    firing = Firing(run, progress)
    if not firing.is_the_models(board.records[0].provenance):
        progress.say(f"{firing.lm.name} is not the language model that the run was measured with: it has changed since")

    def fires(asked: dict[str, Any]) -> dict[str, Any]:
        return firing.on(str(asked.get("text", "")), str(asked.get("sae", ""))).as_json()

    with LocalServer(report(board, serving=firing.saes), fires, port) as server:
        server.until_stopped("this machine", browser=browser)
    print("\nstopped")
    return 0
