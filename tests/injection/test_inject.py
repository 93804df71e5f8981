from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, adapter_disabled, inject_adapter, remove_adapter
from pera_lightning.errors import InjectionError, TargetError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids

MODELS = [tiny_llama, tiny_gpt2, tiny_bert_classifier]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def names(model: nn.Module) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name, _ in adapted_layers(model)}


@pytest.mark.parametrize("make", MODELS)
def test_injection_changes_no_bit_and_removal_restores_everything(make: Callable[[], nn.Module]) -> None:
    model = make()
    next(model.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    ids = token_ids()
    expected = logits(model, ids)
    report = inject_adapter(model, PeraConfig(2, modules_to_save=()))
    assert torch.equal(logits(model, ids), expected)
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    randomise_adapter(model)
    assert not torch.equal(logits(model, ids), expected)
    assert remove_adapter(model) is model
    assert torch.equal(logits(model, ids), expected)
    assert [type(module) for module in model.modules()] == kinds
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    inject_adapter(model, PeraConfig(2))


def test_all_linear_leaves_the_output_head_alone() -> None:
    model = tiny_llama()
    report = inject_adapter(model, PeraConfig(2))
    assert names(model) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(report.adapted) == 14
    assert report.head == ("lm_head",)
    gpt2 = tiny_gpt2()
    inject_adapter(gpt2, PeraConfig(2))
    assert names(gpt2) == {"c_attn", "c_proj", "c_fc"}
    bert = tiny_bert_classifier()
    assert inject_adapter(bert, PeraConfig(2)).head == ("classifier",)


def test_output_head_of_other_models() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert inject_adapter(network, PeraConfig(2)).head == ("2",)
    single = nn.Sequential(nn.Linear(4, 4))
    assert inject_adapter(single, PeraConfig(2)).adapted == ("0",)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2)
    assert inject_adapter(encoder, PeraConfig(2)).head == ()


def test_transformers_model_inside_another_module() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_llama()
            self.score = nn.Linear(32, 3)

    report = inject_adapter(Tagger(), PeraConfig(2))
    assert report.head == ("body.lm_head",)
    assert "score" in report.adapted


def test_only_the_adapter_is_trainable_and_gets_gradients() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    model(input_ids=token_ids()).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        is_adapter = name.rsplit(".", 1)[-1].startswith("pera_")
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None) == is_adapter, name


def test_targets_by_suffix_regex_and_exclusion() -> None:
    def adapted(**options: object) -> set[str]:
        model = tiny_llama()
        inject_adapter(model, PeraConfig(2, **options))
        return {name for name, _ in adapted_layers(model)}

    q = {f"model.layers.{i}.self_attn.q_proj" for i in range(2)}
    assert adapted(target_modules=["q_proj"]) == q
    assert adapted(target_modules=["self_attn.q_proj"]) == q
    assert adapted(target_modules=r".*layers\.1\.self_attn\.(q|v)_proj") == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    }
    assert adapted(target_modules=["lm_head"]) == {"lm_head"}
    without = adapted(exclude_modules=["mlp", "layers.0"])
    assert without == {f"model.layers.1.self_attn.{kind}_proj" for kind in "qkvo"}
    # A suffix ends at a dot: "proj" is no layer's whole name.
    with pytest.raises(TargetError, match="matches no module"):
        adapted(target_modules=["proj"])


def test_rank_and_alpha_patterns() -> None:
    model = tiny_llama()
    config = PeraConfig(
        4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={r".*layers\.0\..*q_proj": 2, "q_proj": 3},
        alpha_pattern={"v_proj": 8},
    )
    inject_adapter(model, config)
    layers = dict(adapted_layers(model))
    assert layers["model.layers.0.self_attn.q_proj"].rank == 2
    assert layers["model.layers.1.self_attn.q_proj"].rank == 3
    assert layers["model.layers.1.self_attn.q_proj"].scaling == 1
    assert layers["model.layers.0.self_attn.v_proj"].scaling == 2


def test_modules_saved_whole() -> None:
    model = tiny_bert_classifier()
    ids = token_ids()
    expected = logits(model, ids)
    report = inject_adapter(model, PeraConfig(2, modules_to_save=["classifier"]))
    assert report.saved == ("classifier",)
    assert report.head == ()
    assert model.classifier.weight.requires_grad
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    trained = logits(model, ids)
    with adapter_disabled(model):
        assert torch.equal(logits(model, ids), expected)
    assert torch.equal(logits(model, ids), trained)
    assert "_pera" not in " ".join(model.state_dict())
    remove_adapter(model)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("targets", ["all-linear", r".*(q_proj|lm_head)", ["q_proj"]])
def test_what_is_saved_whole_is_not_adapted(targets: str | list[str]) -> None:
    model = tiny_llama()
    report = inject_adapter(model, PeraConfig(2, target_modules=targets, modules_to_save=["lm_head", "layers.1"]))
    assert "model.layers.0.self_attn.q_proj" in report.adapted
    assert not [name for name in report.adapted if name.startswith(("lm_head", "model.layers.1."))]
    assert "trained whole, without adapters: model.layers.1, lm_head" in str(report)


def test_tied_modules_saved_whole_keep_what_they_learned() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    inject_adapter(model, PeraConfig(2, modules_to_save=["embed_tokens", "lm_head"]))
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    trained = model.lm_head.weight.detach().clone()
    with adapter_disabled(model):
        assert not torch.equal(model.lm_head.weight, trained)
    assert torch.equal(model.lm_head.weight, trained)


def test_tied_layers_merged_one_by_one_come_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    original, x = model[0].weight.detach().clone(), torch.randn(3, 4)
    expected = model(x)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    for _, layer in adapted_layers(model):
        layer.merge()
    with adapter_disabled(model):
        assert torch.equal(model(x), expected)
    remove_adapter(model)
    assert torch.equal(model[0].weight, original)


def test_a_computed_weight_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(TargetError, match="remove_parametrizations"):
        inject_adapter(model, PeraConfig(2))
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(TargetError, match="lazy"):
        inject_adapter(lazy, PeraConfig(2))


def test_a_layer_used_twice_gets_one_adapter() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"one": shared, "two": shared, "head": nn.Linear(4, 2)})
    report = inject_adapter(model, PeraConfig(2, target_modules=["one"]))
    assert report.adapted == ("one",)
    assert model["one"] is model["two"]
    remove_adapter(model)
    assert model["one"] is shared
    assert model["two"] is shared


def test_torch_attention_does_not_bypass_the_adapter() -> None:
    """In eval mode torch's transformer layers read weights instead of calling layers."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    inject_adapter(model, PeraConfig(2))
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        before = model(x)
        randomise_adapter(model)
        fast = model(x)
    slow = model(x)
    assert not torch.allclose(fast, before, atol=1e-2)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": ["q_prj"]}, "q_proj"),
        ({"target_modules": ["q_proj", "queri"]}, "queri"),
        ({"target_modules": ["*_proj"]}, "q_proj"),
        ({"target_modules": ".*nothing.*"}, "matches no module"),
        ({"target_modules": "q_proj,v_proj"}, r"a list is written \[q_proj,v_proj\]"),
        ({"exclude_modules": ["self_attn.q_proj, v_proj"]}, r"a list is written \[self_attn.q_proj, v_proj\]"),
        ({"target_modules": ["self_attn"]}, "LlamaAttention"),
        ({"target_modules": ["rotary_emb"]}, "LlamaRotaryEmbedding"),
        ({"exclude_modules": ["mpl"]}, "mlp"),
        ({"modules_to_save": ["lm_had"]}, "lm_head"),
        ({"modules_to_save": ["act_fn"]}, "without parameters"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "lm_head"]}, "'lm_head' out of target_mod"),
        ({"modules_to_save": ["self_attn.q_proj"], "target_modules": ["q_proj"]}, "adapted and to be trained whole"),
        ({"rank_pattern": {"q_prooj": 4}}, "q_proj"),
        ({"alpha_pattern": {"lm_head": 4}}, "no adapted layer"),
        ({"exclude_modules": ".*"}, "No layer is left"),
    ],
)
def test_wrong_patterns_change_nothing(options: dict[str, object], words: str) -> None:
    model = tiny_llama()
    modules = list(model.modules())
    with pytest.raises(TargetError, match=words):
        inject_adapter(model, PeraConfig(2, **options))
    assert list(model.modules()) == modules
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_injection_is_refused() -> None:
    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    with pytest.raises(InjectionError, match="remove_adapter"):
        inject_adapter(model, PeraConfig(2))
    with pytest.raises(InjectionError, match="no adapter"):
        remove_adapter(tiny_llama())


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), nn.Sequential()])
def test_a_model_without_linear_layers(model: nn.Module) -> None:
    with pytest.raises(TargetError, match="no linear layer"):
        inject_adapter(model, PeraConfig(2))


def test_an_unknown_quantised_layer_is_refused_by_name() -> None:
    model = tiny_llama()
    packed = model.model.layers[0].mlp.up_proj
    packed.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TargetError, match=r"layers\.0\.mlp\.up_proj"):
        inject_adapter(model, PeraConfig(2))
    assert not list(adapted_layers(model))


def test_says_which_matrices_no_adapter_reaches() -> None:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(5, 8),
            "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False),
            "conv": nn.Conv1d(8, 8, 3),
            "memory": nn.LSTM(8, 8),
            "head": nn.Linear(8, 2),
        }
    )
    report = inject_adapter(model, PeraConfig(2, exclude_modules=["memory"]))
    projections = [f"encoder.layers.{layer}.self_attn.in_proj_weight" for layer in range(3)]
    assert report.unreached == (*projections, "conv.weight")
    assert "left alone: encoder.layers.*.self_attn.in_proj_weight (3), conv.weight" in str(report)


def test_named_targets_reach_what_was_asked_for() -> None:
    model = nn.ModuleDict({"conv": nn.Conv1d(8, 8, 3), "fc": nn.Linear(8, 2)})
    assert inject_adapter(model, PeraConfig(2, target_modules=["fc"])).unreached == ()


@pytest.mark.parametrize(("rank", "told"), [(2, False), (6, True)])
def test_more_columns_than_a_layer_has_rank_are_told(rank: int, told: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 64))
    report = inject_adapter(model, PeraConfig(rank, target_modules=["0", "1"]))
    assert report.beyond_rank == (("0", "1") if told else ())
    assert ("a smaller rank reaches as much" in str(report)) == told
