"""Parameters on every kind of manifold that geoopt has, and gradients for them."""

import geoopt
import torch


def parameters(dtype=torch.float64, seed=0):
    """Ball points in several shapes and of two curvatures, and points of other manifolds, all in one list."""
    torch.manual_seed(seed)
    ball, flat, exact = geoopt.PoincareBall(0.7), geoopt.PoincareBall(1e-3), geoopt.PoincareBallExact(1.3)
    lorentz = geoopt.Lorentz(k=1.5)
    product = geoopt.ProductManifold((geoopt.PoincareBall(1.0), 3), (geoopt.Sphere(), 2))
    manifolds = [
        (ball, (5, 4)),
        (ball, (4,)),
        (ball, (2, 3, 4)),
        (ball, (6, 9)),
        (flat, (3, 4)),
        (exact, (5, 4)),
        (geoopt.Stiefel(), (5, 3)),
        (geoopt.CanonicalStiefel(), (4, 2)),
        (geoopt.Sphere(), (3, 4)),
        (geoopt.SymmetricPositiveDefinite(), (3, 3)),
        (geoopt.Scaled(geoopt.PoincareBall(1.0), 2.0), (3, 4)),
        (geoopt.Euclidean(1), (3, 4)),
        (geoopt.SphereProjection(1.0), (3, 4)),
    ]
    points = []
    for manifold, shape in manifolds:
        manifold = manifold.to(dtype)
        x = 0.15 * torch.randn(shape, dtype=dtype)  # near the boundary, float32 loses digits fast
        if isinstance(manifold, geoopt.SymmetricPositiveDefinite):
            x = torch.eye(3, dtype=dtype) + 0.1 * (x @ x.T)
        points.append(geoopt.ManifoldParameter(manifold.projx(x), manifold=manifold))
    lorentz = lorentz.to(dtype)
    x = lorentz.expmap0(torch.cat([torch.zeros(3, 1, dtype=dtype), 0.3 * torch.randn(3, 4, dtype=dtype)], 1))
    points.append(geoopt.ManifoldParameter(x, manifold=lorentz))
    x = product.to(dtype).projx(torch.randn(4, 5, dtype=dtype) * 0.4)
    points.append(geoopt.ManifoldParameter(x, manifold=product))
    points += [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((3, 4), (5,), ())]
    return points


def set_gradients(points, step, scale=1.0):
    """Gradients that depend on the step alone, so that two optimizers see the same ones."""
    generator = torch.Generator().manual_seed(step)
    for point in points:
        point.grad = scale * torch.randn(point.shape, dtype=torch.float64, generator=generator).to(point.dtype)
