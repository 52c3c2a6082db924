"""merge.recipe.alpha: schedules, places, overrides, refusals."""

import pytest

from configs.errors import ConfigError
from merge.recipe.alpha import (
    KINDS,
    AlphaSpec,
    depth_of,
    parse_alpha,
    resolve_alphas,
    show_alpha,
)

LAYER_TENSORS = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.o_proj.bias",
    "mlp.down_proj.weight",
)


def names(num_layers: int, *, head: bool = True) -> list[str]:
    layers = [f"model.layers.{i}.{name}" for i in range(num_layers) for name in LAYER_TENSORS]
    ends = ["model.norm.weight", *(["lm_head.weight"] if head else [])]
    return ["model.embed_tokens.weight", *layers, *ends]


def alphas(
    alpha: object, overrides: dict[str, object] | None = None, num_layers: int = 5
) -> dict[str, float]:
    spec = parse_alpha(alpha, overrides or {}, extrapolate=False)
    return resolve_alphas(spec, names(num_layers), num_layers)


def by_layer(resolved: dict[str, float], name: str = "mlp.down_proj.weight") -> list[float]:
    return [value for key, value in resolved.items() if key.endswith(f".{name}")]


def test_one_number_for_all():
    assert set(alphas(0.4).values()) == {0.4}
    assert alphas(1).keys() == set(names(5))
    assert AlphaSpec(0.4).number == 0.4
    assert AlphaSpec(0.4, {"mlp": 0.1}).number is None
    assert parse_alpha([0.4, 0.4], {}, extrapolate=False).number is None


def test_numbers_are_spread_evenly():
    resolved = alphas([0.8, 0.2])
    assert by_layer(resolved) == pytest.approx([0.8, 0.65, 0.5, 0.35, 0.2], abs=1e-15)
    assert resolved["model.embed_tokens.weight"] == 0.8
    assert resolved["model.norm.weight"] == resolved["lm_head.weight"] == 0.2
    assert by_layer(alphas([0, 1, 0])) == [0, 0.5, 1, 0.5, 0]
    assert by_layer(alphas([0, 0.1, 0.2, 0.3, 0.4])) == [0, 0.1, 0.2, 0.3, 0.4]


def test_points():
    resolved = alphas([[0, 0.8], [0.5, 0.6], [1, 0]])
    assert by_layer(resolved) == pytest.approx([0.8, 0.7, 0.6, 0.3, 0], abs=1e-15)
    assert by_layer(alphas([(0, 1), (0.1, 0.2), (1, 0.2)])) == [1, 0.2, 0.2, 0.2, 0.2]


def test_points_themselves_are_hit_exactly():
    """By the formula 0.8 + 1 * (0.2 - 0.8) is 0.19999999999999996."""
    assert by_layer(alphas([0.8, 0.2]))[-1] == 0.2
    assert by_layer(alphas([0.8, 0.2, 0.8]))[2] == 0.2


def test_one_layer_is_the_first():
    assert by_layer(alphas([0.8, 0.2], num_layers=1)) == [0.8]
    assert alphas([0.8, 0.2], num_layers=1)["model.norm.weight"] == 0.2


def test_depth():
    assert [depth_of(f"model.layers.{i}.mlp.up_proj.weight", 5) for i in (0, 1, 4)] == [0, 0.25, 1]
    assert depth_of("model.embed_tokens.weight", 5) == 0
    assert depth_of("model.norm.weight", 5) == depth_of("lm_head.weight", 5) == 1


def test_every_kind():
    """Each tensor of a decoder is of one kind; q_norm stands in the attention and is a norm."""
    found = alphas(
        0.5, {"embeddings": 0.1, "head": 0.2, "attention": 0.3, "mlp": 0.4, "norms": 0.6}
    )
    wanted = {"embed": 0.1, "lm_head": 0.2, "proj": 0.3, "mlp": 0.4, "norm": 0.6}
    for name, value in found.items():
        fits = [key for key in wanted if key in name and not (key == "proj" and "mlp" in name)]
        assert value == wanted[fits[-1]], name
    assert all(sum(bool(kind.search(name)) for kind in KINDS.values()) == 1 for name in found)


def test_expressions_go_over_kinds_and_later_over_earlier():
    overrides = {r"layers\.[01]\.": 0.9, "mlp": 0.1, r"layers\.1\.mlp": 0.2}
    found = alphas(0.5, overrides)
    assert by_layer(found) == [0.9, 0.2, 0.1, 0.1, 0.1]
    assert by_layer(found, "self_attn.q_proj.weight") == [0.9, 0.9, 0.5, 0.5, 0.5]
    last = {r"layers\.1\.mlp": 0.2, "mlp": 0.1, r"layers\.[01]\.": 0.9, r"\.0\.": 0.3}
    with pytest.raises(ConfigError, match=r"1 of 4 decide about no tensor"):
        alphas(0.5, last)
    del last[r"layers\.1\.mlp"]
    assert by_layer(alphas(0.5, last)) == [0.3, 0.9, 0.1, 0.1, 0.1]


def test_an_override_may_be_a_schedule():
    found = alphas(0.5, {"mlp": [0, 1]})
    assert by_layer(found) == [0, 0.25, 0.5, 0.75, 1]
    assert by_layer(found, "self_attn.q_proj.weight") == [0.5] * 5


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"vision": 0.1}, "1 of 1 decide about no tensor of the decoder: vision. Names are like"),
        ({"mlp": 0.1, "mlp.": 0.2}, "1 of 2 decide about no tensor of the decoder: mlp. "),
        ({r"layers\.0": 0.1, "layers": 0.2}, r"1 of 2 .* layers\\.0. .* hides an earlier one"),
        ({"layers": 0.2, r"\.9\.": 0.2, "x": 1}, r"2 of 3 .* \\.9\\., x"),
    ],
    ids=["fits nothing", "kind hidden", "expression hidden", "several"],
)
def test_overrides_that_decide_nothing(overrides, told):
    with pytest.raises(ConfigError, match=told):
        alphas(0.5, overrides)


def test_a_tied_head_has_no_alpha_of_its_own():
    spec = parse_alpha(0.5, {"head": 0.1}, extrapolate=False)
    with pytest.raises(ConfigError, match="no tensor of the decoder: head"):
        resolve_alphas(spec, names(5, head=False), 5)


@pytest.mark.parametrize(
    "nonsense",
    [
        10**400,
        "0.4",
        "half",
        [0.4],
        [],
        [[0, 0.4]],
        None,
        True,
        [True, False],
        {"a": 1},
        float("nan"),
        float("inf"),
        [0.1, float("nan")],
        ["0.1", "0.2"],
        ["ab", "cd"],
        [[0, 0.1], 0.2],
        [[0, 0.1, 0.2], [1, 0.2, 0.3]],
        [[0, 0.1], [1, None]],
        [[float("nan"), 0.1], [1, 0.3]],
    ],
    ids=str,
)
@pytest.mark.parametrize("extrapolate", [False, True])
def test_nonsense(nonsense, extrapolate):
    with pytest.raises(ConfigError, match=r"^alpha=.*: give a number \(0.4\), numbers spread"):
        parse_alpha(nonsense, {}, extrapolate=extrapolate)
    with pytest.raises(ConfigError, match=r"^alpha_overrides\.mlp=.*: give a number"):
        parse_alpha(0.4, {"mlp": nonsense}, extrapolate=extrapolate)


@pytest.mark.parametrize(
    "depths", [[1, 0], [0, 0.5], [0.1, 1], [0, 0.7, 0.5, 1], [0, 0.5, 0.5, 1], [0, 2], [0, 0]]
)
def test_depths(depths):
    with pytest.raises(ConfigError, match=r"^alpha: depths must rise from 0 to 1, they are \["):
        parse_alpha([[depth, 0.4] for depth in depths], {}, extrapolate=False)


@pytest.mark.parametrize("value", [-0.1, 1.1, -1e-300])
def test_outside(value):
    outside = rf"={value:g} is outside \[0, 1\]; 0 is the text LM, 1 the VLM \(extrapolate=true"
    for alpha in (value, [0.4, value], [[0, value], [1, 0.4]]):
        with pytest.raises(ConfigError, match=f"^alpha{outside}"):
            parse_alpha(alpha, {}, extrapolate=False)
        with pytest.raises(ConfigError, match=rf"^alpha_overrides\.mlp{outside}"):
            parse_alpha(0.4, {"mlp": alpha}, extrapolate=False)
        parse_alpha(alpha, {"mlp": alpha}, extrapolate=True)


def test_an_override_called_alpha_hides_no_check():
    with pytest.raises(ConfigError, match=r"^alpha=7 is outside"):
        parse_alpha(7, {"alpha": 0.4}, extrapolate=False)


def test_no_expression():
    with pytest.raises(ConfigError, match=r"'mlp\(' is neither one of embeddings, head, .* nor a"):
        parse_alpha(0.4, {"mlp(": 0.1}, extrapolate=False)


@pytest.mark.parametrize(
    ("alpha", "told"),
    [
        (0.4, "0.4"),
        (1, "1"),
        ([0.8, 0.2], "0.8 -> 0.2"),
        ([0.8, 0.5, 0.2, 0], "0.8 -> 0.5 -> 0.2 -> 0"),
        ([[0, 0.8], [0.5, 0.6], [1, 0]], "0.8 -> 0.6 -> 0"),
        ([[0, 0.8], [0.25, 0.6], [1, 0]], "0.8 at 0 -> 0.6 at 0.25 -> 0 at 1"),
    ],
)
def test_told(alpha, told):
    spec = parse_alpha(alpha, {}, extrapolate=False)
    assert show_alpha(spec.alpha) == str(spec) == told


def test_overrides_are_told():
    spec = parse_alpha(0.4, {"mlp": [0.8, 0.2], "q_proj": 1}, extrapolate=False)
    assert str(spec) == "0.4 (mlp: 0.8 -> 0.2, q_proj: 1)"
