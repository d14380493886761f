import math

import geoopt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from manifold_resnet.optim.describe import describe_parameters

from manifold_resnet.models import create_model


def module(**parameters):
    model = torch.nn.Module()
    for name, value in parameters.items():
        setattr(model, name, value)
    return model


def on(manifold, *shape):
    return geoopt.ManifoldParameter(manifold.random(*shape).as_subclass(torch.Tensor), manifold=manifold)


def every_manifold():
    ball, sphere, stiefel = geoopt.PoincareBall(c=0.5), geoopt.Sphere(), geoopt.Stiefel()
    lorentz = geoopt.Lorentz(k=4.0)
    product = geoopt.ProductManifold((geoopt.PoincareBall(), 3), (geoopt.CanonicalStiefel(), (4, 2)))
    return module(
        plain=torch.nn.Parameter(torch.zeros(2, 3)),
        scale=torch.nn.Parameter(torch.zeros(()), requires_grad=False),
        ball=on(ball, 5, 4),
        centre=on(ball, 4),
        exact=on(geoopt.PoincareBallExact(c=2.0), 4),
        stretched=on(geoopt.Scaled(ball, 2.0), 5, 4),
        twice=on(geoopt.Scaled(geoopt.Scaled(ball, 2.0), 3.0), 5, 4),
        hyperbolic=on(geoopt.Stereographic(k=-0.25), 5, 4),
        spherical=on(geoopt.SphereProjection(k=0.25), 5, 4),
        lorentz=geoopt.ManifoldParameter(lorentz.random_normal(5, 4)),
        sphere=on(sphere, 5, 4),
        stretched_sphere=on(geoopt.Scaled(sphere, 2.0), 5, 4),
        stiefel=on(stiefel, 5, 3),
        spd=on(geoopt.SymmetricPositiveDefinite(), 3, 3),
        product=geoopt.ManifoldParameter(torch.cat([torch.zeros(3), stiefel.origin(4, 2).flatten()]), product),
        siegel=on(geoopt.UpperHalf(), 2, 2),
        birkhoff=on(geoopt.BirkhoffPolytope(), 3, 3),
        flat=on(geoopt.Euclidean(1), 3),
    )


def test_every_manifold_has_its_name_and_curvature():
    table = describe_parameters(every_manifold())
    found = {row.name: (row.manifold, None if row.c is None else round(row.c, 5)) for row in table}
    assert found == {
        "plain": ("Euclidean", None),
        "scale": ("Euclidean", None),
        "ball": ("PoincareBall", 0.5),
        "centre": ("PoincareBall", 0.5),
        "exact": ("PoincareBallExact", 2.0),
        "stretched": ("Scaled(PoincareBall)", 0.125),
        "twice": ("Scaled(Scaled(PoincareBall))", round(0.5 / 36, 5)),
        "hyperbolic": ("Stereographic", 0.25),
        "spherical": ("SphereProjection", -0.25),
        "lorentz": ("Lorentz", 0.25),
        "sphere": ("Sphere", None),
        "stretched_sphere": ("Scaled(Sphere)", None),
        "stiefel": ("CanonicalStiefel", None),
        "spd": ("SymmetricPositiveDefinite", None),
        "product": ("PoincareBall x CanonicalStiefel", None),
        "siegel": ("UpperHalf", None),
        "birkhoff": ("BirkhoffPolytope", None),
        "flat": ("Euclidean", None),
    }
    balls = {"ball", "centre", "exact", "stretched", "twice", "hyperbolic"}
    assert {row.name for row in table if row.near_boundary is not None} == balls
    assert [row.name for row in table if not row.trainable] == ["scale"]
    assert table[2].shape == (5, 4)
    assert len(table) == len(list(table)) == 18


@pytest.mark.parametrize("kind", ["ball", "lorentz"])
def test_c_is_minus_the_curvature(kind):
    """A small circle of radius r is longer than 2 pi r by the factor 1 + c r^2 / 6."""
    torch.set_default_dtype(torch.float64)
    try:
        manifold = geoopt.PoincareBall(c=0.4) if kind == "ball" else geoopt.Lorentz(k=2.5)
        manifold = geoopt.Scaled(manifold, 3.0)
        u = torch.zeros(1001, 2 if kind == "ball" else 3)
        angle = torch.linspace(0, 2 * math.pi, 1001)
        u[:, -2], u[:, -1] = angle.cos(), angle.sin()
        circle = manifold.expmap0(u / (2 if kind == "ball" else 1))  # a ball's metric at the origin is 4 |u|^2
        length = manifold.dist(circle[1:], circle[:-1]).sum()
        radius = manifold.dist0(circle).mean()
        c = describe_parameters(module(x=geoopt.ManifoldParameter(circle, manifold=manifold)))[0].c
        assert length.item() == pytest.approx(2 * math.pi * math.sinh(c**0.5 * radius) / c**0.5, rel=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


@given(
    st.lists(st.floats(0, 0.995).filter(lambda r: abs(r - 0.8) > 1e-4), min_size=1, max_size=20),
    st.floats(0.05, 10),
)
def test_share_of_points_near_the_boundary(radii, c):
    ball = geoopt.PoincareBall(torch.tensor(c, dtype=torch.float64))
    x = torch.zeros(len(radii), 3, dtype=torch.float64)
    x[:, 1] = torch.tensor(radii, dtype=torch.float64) / ball.c.sqrt()
    for manifold in (ball, geoopt.Scaled(ball, 2.0)):
        (row,) = describe_parameters(module(x=geoopt.ManifoldParameter(x, manifold=manifold)), near=0.8)
        assert row.near_boundary == pytest.approx(sum(r > 0.8 for r in radii) / len(radii))


def test_curvature_parameters_show_the_c_they_stand_for():
    model = create_model("hyperbolic-4-4-4-resnet-8", c=0.3, learnable_c=True)
    model.cone = geoopt.Scaled(geoopt.Lorentz(k=2.0), 2.0, learnable=True)
    rows = {row.name: row for row in describe_parameters(model)}
    assert rows["ball.isp_c"].c == pytest.approx(0.3, rel=1e-5)
    assert rows["ball.isp_c"].trainable
    assert rows["cone._log_scale"].c == pytest.approx(0.125, rel=1e-5)
    assert rows["cone.base.k"].c == 0.5
    assert not rows["cone.base.k"].trainable


def test_text_is_an_aligned_table():
    header, rule, *lines = str(describe_parameters(every_manifold(), near=0.9)).splitlines()
    assert len(lines) == 18
    assert "beyond 0.9 of radius" in header
    starts = [0] + [i + 2 for i in range(len(rule) - 1) if rule[i : i + 2] == "  "]
    for line in [header, *lines]:
        assert all(start == 0 or line[start - 2 : start].strip() == "" for start in starts)
    assert lines[1].split() == ["scale", "scalar", "Euclidean", "no"]
    assert lines[2].split()[:3] == ["ball", "5", "x"]


def test_notebooks_get_escaped_html():
    text = describe_parameters(module(**{"a<b": torch.nn.Parameter(torch.zeros(2))}))._repr_html_()
    assert "<td>a&lt;b</td>" in text
    assert text.count("<tr>") == 2


def test_empty_models_and_tensors():
    assert len(describe_parameters(torch.nn.ReLU())) == 0
    assert str(describe_parameters(torch.nn.ReLU())).startswith("name")
    empty = geoopt.ManifoldParameter(torch.zeros(0, 3), geoopt.PoincareBall())
    assert describe_parameters(module(x=empty))[0].near_boundary is None


def test_errors_say_what_came():
    with pytest.raises(TypeError, match=r"torch.nn.Module, got list"):
        describe_parameters([1])
    for near in (0, 1, 95, float("nan")):
        with pytest.raises(ValueError, match=f"between 0 and 1; got {near}"):
            describe_parameters(torch.nn.Linear(2, 2), near=near)
