"""Options: defaults, presets, checks, and which modules they choose."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.adapters.models import FAMILIES, bert
from ttnet.adapters import Axis, MetaTT, TTAdapterConfig, attach
from ttnet.errors import ConfigError, PatternError, RankError, ShapeError


def test_presets():
    assert MetaTT("4d").pattern == "in layer matrix out"
    assert MetaTT("5D", rank=4).pattern == "in layer matrix head out"
    assert MetaTT("in matrix layer out").pattern == "in matrix layer out"
    with pytest.raises(PatternError, match=r"4d, 5d, 4\+1d or a pattern, got '6d'"):
        MetaTT("6d")


def test_a_config_goes_through_json():
    config = TTAdapterConfig(
        pattern="in half out",
        axes=[Axis("half", labels=["low", "high"])],
        rank=[2, 3],
        target_modules=["query"],
        init="ze-id-no",
        layers_to_transform=range(1),
        dtype=torch.float64,
    )
    assert TTAdapterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="no option of an adapter"):
        TTAdapterConfig.from_dict({"ranks": 3})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"r": 8}, ConfigError, "r: no option of an adapter; did you mean 'rank'?"),
        ({"target_module": ["q"]}, ConfigError, "did you mean 'target_modules'?"),
        ({"tasks": ["a"]}, ConfigError, "tasks: pattern 'in layer matrix out' has no axis 'task'"),
        ({"axes": [Axis("expert", size=3)]}, ConfigError, "'expert' is no axis of pattern"),
        ({"rank": 0}, RankError, "rank: expected at least 1, got 0"),
        ({"rank": [1, 2]}, RankError, "3 bonds, got 2 ranks"),
        ({"rank": [1, 0, 2]}, RankError, "at least 1"),
        ({"rank": 2.5}, RankError, "rank: expected an integer"),
        ({"rank": True}, RankError, "rank: expected an integer"),
        ({"alpha": float("nan")}, ConfigError, "alpha: expected a finite number"),
        ({"alpha": "1"}, ConfigError, "alpha"),
        ({"alpha_scaling": 1}, ConfigError, "alpha_scaling"),
        ({"init": "zero-identity"}, ConfigError, "init: expected one name for each of the 4 cores"),
        ({"init": "ze-id-id-xx"}, ConfigError, "init: expected zero, identity, normal"),
        ({"init_std": -1.0}, ConfigError, "init_std"),
        ({"target_modules": []}, ConfigError, "target_modules"),
        ({"target_modules": [3]}, ConfigError, "target_modules"),
        ({"exclude_modules": 3}, ConfigError, "exclude_modules"),
        ({"dtype": "int8"}, ConfigError, "dtype: expected one of float32"),
        ({"seed": "a"}, ConfigError, "seed"),
        ({"head_dim": 0}, ConfigError, "head_dim"),
        ({"layers_to_transform": [-1]}, ConfigError, "layers_to_transform"),
        ({"axes": ["task"]}, ConfigError, "axes: expected Axis objects"),
        ({"variant": "in layer layer out"}, PatternError, "repeated"),
        ({"pattern": "in layer out"}, ConfigError, "first argument"),
    ],
)
def test_a_bad_option_is_named(options, error, message):
    with pytest.raises(error, match=message):
        MetaTT(**options)


def names(config, model=None):
    return [site.name for site in attach(model or bert(), config).layout.sites]


QUERIES = [f"bert.encoder.layer.{k}.attention.self.query" for k in range(2)]


def test_targets_by_suffix_regular_expression_and_all():
    assert names(MetaTT(target_modules=["query"])) == QUERIES
    assert names(MetaTT(target_modules=["self.query"])) == QUERIES
    assert names(MetaTT(target_modules=r".*\.query")) == QUERIES
    everything = names(MetaTT(target_modules="all-linear"))
    assert len(everything) == 12
    assert not any("pooler" in name or "classifier" in name for name in everything)


def test_exclusions_and_layers():
    assert names(MetaTT(target_modules=["query", "key"], exclude_modules=["key"])) == QUERIES
    assert names(MetaTT(target_modules=["query", "key"], exclude_modules=r".*key")) == QUERIES
    assert names(MetaTT(target_modules=["query"], layers_to_transform=1)) == QUERIES[1:]
    assert names(MetaTT(target_modules=["query"], layers_pattern="layer")) == QUERIES


@pytest.mark.parametrize("name", FAMILIES)
def test_query_and_value_are_found_by_default(name):
    assert names(MetaTT(), FAMILIES[name].build()) == names(
        MetaTT(target_modules=FAMILIES[name].query_value), FAMILIES[name].build()
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target_modules": ["qeury"]}, ConfigError, "target_modules: .*'qeury'; did you mean 'query'"),
        ({"target_modules": ["query", "val"]}, ConfigError, "target_modules: .*'val'.*'value'"),
        ({"target_modules": "query"}, ConfigError, r"target_modules: .*give a list, \['query'\]"),
        ({"target_modules": "("}, ConfigError, "no regular expression"),
        ({"target_modules": ["word_embeddings"]}, ConfigError, "is Embedding here"),
        ({"target_modules": ["classifier"]}, ConfigError, "trained whole"),
        (
            {"target_modules": ["query"], "exclude_modules": ["query"]},
            ConfigError,
            "exclude_modules: .*leaves no",
        ),
        (
            {"target_modules": ["query"], "layers_to_transform": [0, 7]},
            ConfigError,
            r"layers \[7\]; there are .*\[0, 1\]",
        ),
        ({"target_modules": ["dense"]}, PatternError, r"pooler.dense' stands in no layer; .*exclude_modules"),
        (
            {"modules_to_save": ["pooller"]},
            ConfigError,
            "modules_to_save: .*'pooller'; did you mean 'pooler'",
        ),
        ({"pattern": "in layer task matrix out"}, PatternError, "'task': module .* has no label on it"),
        ({"pattern": "out layer matrix in"}, PatternError, "it stands left of 'in'"),
        ({"pattern": "in layer matrix head out", "head_dim": 5}, ShapeError, "head_dim: 5 does not divide"),
        ({"rank": [40, 3, 3]}, RankError, "from 1 to 32 at bond 0"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_changes_nothing(options, error, message):
    model = bert()
    before = {name: (type(m), len(m._forward_hooks)) for name, m in model.named_modules()}
    with pytest.raises(error, match=message):
        attach(model, TTAdapterConfig(**options))
    assert {name: (type(m), len(m._forward_hooks)) for name, m in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_scalar_rank_is_clipped_to_what_a_bond_allows():
    adapter = attach(nn.Sequential(nn.Linear(4, 6)), MetaTT(rank=64, target_modules="all-linear"))
    assert adapter.cores.ranks == (1, 4, 4, 4, 1)


def test_a_model_without_linear_modules_is_refused():
    with pytest.raises(ConfigError, match="has no linear module"):
        attach(nn.Sequential(nn.ReLU()), MetaTT())
    with pytest.raises(ConfigError, match=r"expected a torch\.nn\.Module"):
        attach("bert", MetaTT())
    with pytest.raises(ConfigError, match="expected a TTAdapterConfig"):
        attach(bert(), "4d")


def test_multihead_attention_keeps_its_own_projection():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    sites = names(
        MetaTT(target_modules="all-linear"), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    )
    assert sites == [f"layers.{k}.linear{j}" for k in range(2) for j in (1, 2)]


def test_modules_to_save_can_be_none_or_others():
    model = bert()
    attach(model, MetaTT(modules_to_save=()))
    assert not model.classifier.weight.requires_grad
    model = bert()
    attach(model, MetaTT(modules_to_save=["pooler", "classifier"]))
    assert model.classifier.weight.requires_grad
    assert model.bert.pooler.dense.weight.requires_grad


def test_numbers_of_numpy_are_numbers():
    config = MetaTT(
        "in layer expert out",
        rank=np.int64(4),
        alpha=np.float32(2),
        dropout=np.float64(0.5),
        layers_to_transform=[np.int64(1)],
        axes=[Axis("expert", size=np.int32(3))],
    )
    assert TTAdapterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.rank, config.alpha, type(config.rank), type(config.alpha)) == (4, 2.0, int, float)


@pytest.mark.parametrize("label", [True, 1.5, None, ("a", "b")])
def test_labels_are_integers_or_texts(label):
    with pytest.raises(PatternError, match="labels must be integers or texts"):
        Axis("expert", labels=[label, "x"])


def test_an_axis_is_declared_once():
    with pytest.raises(ConfigError, match="'task' is declared twice"):
        MetaTT("4+1d", tasks=["a"], axes=[Axis("task", size=2)])
    with pytest.raises(PatternError, match="list of labels"):
        Axis("expert", labels="ab")


def test_layers_without_a_width_are_refused():
    with pytest.raises(ConfigError, match="'0' has the widths 0 and 4; call the model once"):
        attach(nn.Sequential(nn.LazyLinear(4)), MetaTT(target_modules="all-linear"))
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Linear(0, 4)
    with pytest.raises(ConfigError, match="exclude_modules"):
        attach(nn.Sequential(empty), MetaTT(target_modules="all-linear"))
