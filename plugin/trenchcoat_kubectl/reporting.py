"""`kubectl trenchcoat report`: one page of a Trenchcoat as it is now, from what the API server tells."""

import importlib.util
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from trenchcoat_report.cluster import former, run_of

from trenchcoat_kubectl.commands import RESOURCE, read
from trenchcoat_kubectl.kubectl import Kubectl, PluginError

_NEEDED = ("matplotlib", "jinja2")


def report(arguments: Namespace, kubectl: Kubectl, console: Console) -> int:
    """Write the report of one Trenchcoat, beside others of its namespace that linearize the same model."""
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise PluginError(
            f"not installed: {' and '.join(absent)}; install Trenchcoat with the extra `report`, such as "
            "pip install 'trenchcoat[report]'"
        )
    from trenchcoat_report.page import render  # late: it loads what draws

    trenchcoat = read(kubectl.get(RESOURCE, arguments.name))
    try:
        others = [read(body) for body in kubectl.get(RESOURCE)["items"]]
    except PluginError as error:  # who may read one Trenchcoat may not read all
        console.print(f"without former runs: {error}", markup=False, soft_wrap=True)
        others = []
    page = render(run_of(trenchcoat), former(trenchcoat, others))
    output: Path = arguments.output or Path(f"{trenchcoat.metadata.name}-report.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise PluginError(
            f"{output} cannot be written ({error.strerror}): name another with --output"
        ) from error
    console.print(f"The report:\n  {output}", markup=False, soft_wrap=True)
    return 0
