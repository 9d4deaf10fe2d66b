"""``lichen export``: a transform as an ONNX graph for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands._config import Size
from lichen.errors import UserError
from lichen.network.network import PHOTO


@click.command(cls=Command)
@_options.net
@click.option(
    "--qonnx", "output", required=True, metavar="FILE.onnx", type=click.Path(path_type=Path),
    help="File to write: ONNX, with QONNX's Quant nodes for the widths.",
)  # fmt: skip
@_options.transform
@click.option(
    "--size", type=Size(), metavar="WxH", default=f"{PHOTO[1]}x{PHOTO[0]}", show_default=True,
    help="Columns and rows of the image; the graph's shapes are those that follow from it.",
)  # fmt: skip
@_options.json_file
def command(
    net: str, output: Path, transform_name: str, size: tuple[int, int], json_file: str | None
) -> None:
    """Write a transform as an ONNX graph for other tools.

    NET is a network file or the name of a shipped network. The graph computes the golden model's
    integers exactly: convolutions in float32 whose sums float32 holds, everything else in int64.
    Its input and its output are float32 tensors of integers, (1, channels, height, width).
    """
    from lichen import files
    from lichen.models import load_network
    from lichen.network.onnx_graph import onnx_model

    network = load_network(net)
    width, height = size
    try:
        network.transform(transform_name)
        rows, columns = network.frames(height, width)[transform_name]
        model = onnx_model(network, transform_name, rows, columns)
    except ImportError as error:
        raise UserError(
            f"lichen export needs the package {error.name}; "
            "install it with: pip install 'lichen[export]'"
        ) from None
    except ValueError as error:
        raise UserError(f"cannot export {transform_name}: {error}.") from None
    files.write_atomically(output, model.SerializeToString())
    shapes = [
        [dimension.dim_value for dimension in tensor.type.tensor_type.shape.dim]
        for tensor in (*model.graph.input, *model.graph.output)
    ]
    report = {
        "network": network.title,
        "transform": transform_name,
        "file": str(output),
        "bytes": model.ByteSize(),
        "nodes": len(model.graph.node),
        "input": shapes[0],
        "output": shapes[1],
    }
    _options.report(
        report,
        json_file,
        f"wrote {output}: {transform_name} of {network.title} as {report['nodes']} nodes, "
        f"{' x '.join(map(str, shapes[0]))} to {' x '.join(map(str, shapes[1]))}",
    )
