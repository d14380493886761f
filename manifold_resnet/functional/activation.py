"""Activations in the tangent space at the origin.

References
----------
.. [1] van Spengler, Berkhout, Mettes: Poincaré ResNet. ICCV 2023, sec. 3.
"""

from __future__ import annotations

from torch import Tensor

from manifold_resnet.functional._checks import Chart, check_chart, curvature, full_precision
from manifold_resnet.functional.charts import convert


def poincare_relu(
    x: Tensor, *, c: Tensor | float, dim: int = 1, in_chart: Chart = "ball", out_chart: Chart = "ball"
) -> Tensor:
    r"""Tangent ReLU, :math:`\exp_0(\max(\log_0 x, 0))`.

    Parameters
    ----------
    x : Tensor
        Points, any shape, along `dim`.
    c : Tensor or float
        The curvature of the space is ``-c``.
    dim : int
        The dimension the manifold runs along.
    in_chart, out_chart : {"ball", "tangent", "hyperboloid"}
        Charts of the input and of the result.

    Returns
    -------
    Tensor
        Points, same shape.

    Raises
    ------
    ValueError
        If a chart is unknown or `c` is not positive.

    Examples
    --------
    >>> import torch
    >>> import manifold_resnet.functional as F
    >>> x = torch.tensor([[0.3, -0.4]])
    >>> F.poincare_relu(x, c=1.0)  # the tangent vector, not the point, loses its negative coordinate
    tensor([[0.3181, 0.0000]])
    """
    check_chart(out_chart, "out_chart")
    x = full_precision(x)
    c = curvature(c, x)
    return convert(convert(x, in_chart, "tangent", c=c, dim=dim, relu=True), "tangent", out_chart, c=c, dim=dim)
