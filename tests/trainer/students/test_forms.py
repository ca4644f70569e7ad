"""What every form must keep to, tried on each that there is and on one that the product does not have."""

import importlib
import sys

import pytest
import torch
from transformers.dynamic_module_utils import get_imports, get_relative_imports
from trenchcoat_trainer.data import Batch
from trenchcoat_trainer.models import artifacts as model_artifacts
from trenchcoat_trainer.models import student as student_module
from trenchcoat_trainer.models.student import initial_parameters, student_config
from trenchcoat_trainer.stages import export
from trenchcoat_trainer.stages.cria.fused import FusedCria
from trenchcoat_trainer.stages.cria.transfer import TransferPhase, transfer_step
from trenchcoat_trainer.stages.evaluate.crossing import shares_outside
from trenchcoat_trainer.stages.evaluate.variants import parts_of
from trenchcoat_trainer.students import FORMS, Heads, LossWeights, form_of

from tests.trainer.helpers.tiny_student import ATTENTION, make_cria, make_student, make_teacher
from tests.trainer.stages.cria.cria_training import make_spec
from tests.trainer.students.averaging.form import AveragingForm

LAYERS, TOKENS = 3, 43
NEEDED = {"torch", "transformers", "safetensors"} | set(sys.stdlib_module_names)
"""What an export may import: safetensors comes with transformers."""


@pytest.fixture(params=[*FORMS, AveragingForm.name])
def form(request, monkeypatch):
    """A form, chosen by the spec and named in the registry."""
    monkeypatch.setitem(FORMS, AveragingForm.name, AveragingForm())
    monkeypatch.setattr(student_module, "form_of_spec", lambda attention: FORMS[request.param])
    return FORMS[request.param]


@pytest.fixture
def config(form):
    return student_config(make_teacher(LAYERS).config, ATTENTION)


def tokens(batch=2):
    return torch.randint(0, 61, (batch, TOKENS), generator=torch.Generator().manual_seed(1))


def hidden(batch=2):
    return torch.randn(batch, TOKENS, 32, generator=torch.Generator().manual_seed(2))


def heads_of(config):
    draws = torch.Generator().manual_seed(3)
    return Heads(*(torch.randn(2, h, TOKENS, 8, generator=draws) for h in (4, 2, 2)))


def held(state):
    return {name: x for name, x in vars(state).items() if isinstance(x, torch.Tensor)}


@torch.no_grad()
def test_a_state_holds_no_more_memory_than_it_shows(form, config):
    heads = heads_of(config)
    for index in range(LAYERS):
        layer, parameters = form.layer(config, index), initial_parameters(config, index, seed=0)
        state = layer.new_state()
        layer.decode(state, heads, parameters)
        assert all(x.untyped_storage().nbytes() == x.numel() * x.dtype.itemsize for x in held(state).values())


def test_the_configuration_names_its_form(form, config):
    assert config.student_form == form.name
    assert form_of(config) is form
    config.student_form = "nobody's"
    with pytest.raises(ValueError, match="student_form must be one of lolcats"):
        form_of(config)


def test_a_form_that_nobody_made_is_named():
    with pytest.raises(ValueError, match=r"spec\.attention\.form is nobody's"):
        student_config(make_teacher(1).config, ATTENTION.model_copy(update={"form": "nobody's"}))


def test_parameters_start_as_a_pure_function_of_shapes_seed_and_layer(form, config):
    for layer in range(LAYERS):
        first, again = (initial_parameters(config, layer, seed=7) for _ in range(2))
        other = initial_parameters(config, layer, seed=8)
        shapes = form.layer(config, layer).shapes
        assert {name: tuple(tensor.shape) for name, tensor in first.items()} == dict(shapes)
        assert all(tensor.dtype == torch.float32 for tensor in first.values())
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not first or any(not torch.equal(first[name], other[name]) for name in first)


@torch.no_grad()
def test_every_layer_decodes_what_it_attends_within_the_bytes_it_names(form, config):
    heads = heads_of(config)
    for index in range(LAYERS):
        layer, parameters = form.layer(config, index), initial_parameters(config, index, seed=0)
        state, rows, most = layer.new_state(), [], 0
        assert (state.tokens, state.batch_size) == (0, 0)
        start = 0
        for length in (5, *[1] * 30, 8):
            new = Heads(*(x[:, :, start : start + length] for x in heads))
            rows.append(layer.decode(state, new, parameters))
            most = max(most, sum(x[0].numel() * x.dtype.itemsize for x in held(state).values()))
            start += length
        torch.testing.assert_close(torch.cat(rows, 2), layer.attend(heads, parameters), rtol=0, atol=1e-5)
        assert (state.tokens, state.batch_size) == (TOKENS, 2)
        assert most == layer.state_bytes(torch.float32)
        before = held(state)
        state.reorder(torch.tensor([1, 1, 0]))
        assert state.batch_size == 3
        assert all(torch.equal(x, before[name][[1, 1, 0]]) for name, x in held(state).items())


@torch.no_grad()
def test_the_model_decodes_and_generates(form):
    student, ids = make_student(make_teacher(LAYERS)), tokens()
    full = student(ids, use_cache=False).logits
    output = student(ids[:, :20], use_cache=True)
    pieces = [output.logits]
    for position in range(20, TOKENS):
        output = student(ids[:, position : position + 1], past_key_values=output.past_key_values)
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=0, atol=2e-5)
    settings = {"max_new_tokens": 9, "do_sample": False, "num_beams": 2, "pad_token_id": 0}
    cached = student.generate(ids[:, :9], **settings)
    assert cached.tolist() == student.generate(ids[:, :9], use_cache=False, **settings).tolist()


@torch.no_grad()
def test_padding_is_left_out_or_refused_with_the_remedy(form, config):
    student, ids = make_student(make_teacher(LAYERS)), tokens()
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[1, :13], right[1, 30:] = 0, 0
    rows = {"left": (left, slice(13, None)), "right": (right, slice(0, 30))}
    for side, (mask, own) in rows.items():
        alone = student(ids[1:, own], use_cache=False).logits[0]
        for use_cache in (True, False):
            if form.layer(config, 0).takes_padding or (side == "right" and not use_cache):
                logits = student(ids, attention_mask=mask, use_cache=use_cache).logits[1, own]
                torch.testing.assert_close(logits, alone, rtol=0, atol=2e-5)
            else:
                with pytest.raises(ValueError, match="for scores alone, pad on the right"):
                    student(ids, attention_mask=mask, use_cache=use_cache)


@pytest.mark.parametrize("index", [0, 1])
def test_the_loss_is_the_mean_square_against_softmax_and_trains_the_parameters_alone(form, config, index):
    heads = Heads(*(x.requires_grad_() for x in heads_of(config)))
    layer = form.layer(config, index)
    parameters = {n: p.requires_grad_() for n, p in initial_parameters(config, index, seed=0).items()}
    result = layer.transfer_loss(heads, parameters, LossWeights(mse=2.0, xent=0.0))
    assert result.loss.requires_grad == bool(parameters)
    if parameters:
        result.loss.backward()
    softmax = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(result.output, softmax.detach())
    expected = (layer.attend(heads, parameters) - softmax).square().mean()
    torch.testing.assert_close(result.mse, expected)
    torch.testing.assert_close(result.loss, 2 * result.mse)
    assert all(x.grad is None for x in heads)
    assert all(p.grad is not None for p in parameters.values())


def test_attention_transfer_lowers_the_loss_and_the_fused_step_is_the_same(form):
    cria = make_cria(make_teacher(LAYERS), 0, LAYERS - 1)
    names = {
        f"layers.{n}.{name}" for n, layer in cria.student_layers() for name in layer.self_attn.student.shapes
    }
    assert set(cria.form_parameters()) == names
    phase = TransferPhase(cria, make_spec(), steps=12)
    if names:
        losses = [phase.step(Batch(hidden(4), None), epoch=0, step=step) for step in range(12)]
        assert losses[-1] < losses[0]
    else:
        assert phase.epochs == 0
    assert set(phase.finish()[0]) == names

    weights = {"scale": 1.0, "weights": LossWeights()}
    expected = transfer_step(cria, hidden(), **weights)
    torch.testing.assert_close(
        FusedCria(cria).transfer_step(cria, hidden(), **weights), expected, rtol=1e-5, atol=0
    )


@torch.no_grad()
def test_evaluation_measures_its_parts(form, config):
    cria = make_cria(make_teacher(LAYERS), 0, LAYERS - 1)
    whole = cria(hidden())
    assert [variant.name for variant in parts_of(config)] == list(form.parts(config))
    for part in form.parts(config).values():
        cria.use(keep_parts=part)
        assert not torch.allclose(cria(hidden()), whole, atol=1e-3)
    cria.use()
    shares = shares_outside(cria, hidden())
    assert shares == {} or (sorted(shares) == [0, 1, 2] and all(0 < share < 1 for share in shares.values()))


def test_the_exported_files_need_torch_and_transformers_alone(form, config, tmp_path):
    files = export.code(config)
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    # By what refuses to load an export where a package is missing.
    assert {package for name in files for package in get_imports(tmp_path / name)} <= NEEDED
    forms = {"student_attention.py", *form.companions}
    packages = {package for name in forms for package in get_imports(tmp_path / name)}
    assert packages - set(sys.stdlib_module_names) == {"torch"}
    named = {f"{other}.py" for name in forms for other in get_relative_imports(tmp_path / name)}
    assert named == {name for name in form.companions if not name.endswith("_kernel.py")}
    asked_for = get_relative_imports(tmp_path / "modeling_trenchcoat.py")
    assert {f"{name}.py" for name in asked_for} == set(files) - {"modeling_trenchcoat.py"}


@torch.no_grad()
def test_the_exported_code_is_the_student(form, config, tmp_path, monkeypatch):
    student, ids = make_student(make_teacher(LAYERS)), tokens()
    folder = tmp_path / f"exported_{form.name}"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, text in export.code(config).items():
        (folder / name).write_bytes(text)
    monkeypatch.syspath_prepend(tmp_path)
    modeling = importlib.import_module(f"{folder.name}.modeling_trenchcoat")
    configuration = importlib.import_module(f"{folder.name}.configuration_trenchcoat")
    model = modeling.TrenchcoatLlamaForCausalLM(
        configuration.TrenchcoatLlamaConfig.from_dict(student.config.to_dict())
    ).eval()
    model.load_state_dict(student.state_dict())
    assert type(model.model.layers[1].self_attn.student).__module__ == f"{folder.name}.student_attention"
    expected = student(ids, use_cache=False).logits
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(ids, use_cache=True).logits, expected, rtol=0, atol=2e-5)


def test_a_window_is_dropped_only_where_a_form_has_one(form):
    spec = make_spec(transfer={"windowDropout": "0.5"})
    if form.has_window_dropout:
        model_artifacts.check_form(spec, form)
    else:
        with pytest.raises(ValueError, match=rf"windowDropout is 0\.5, but the {form.name} form"):
            model_artifacts.check_form(spec, form)
    model_artifacts.check_form(make_spec(), form)
