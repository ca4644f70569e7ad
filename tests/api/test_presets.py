"""Presets: one resolved spec behind a name, and explicit values win."""

import pytest
from trenchcoat_api.artifacts import Artifacts, ModelFacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.planning.model import PlannedModel
from trenchcoat_api.planning.outline import Outline
from trenchcoat_api.planning.rates import Rates
from trenchcoat_api.planning.timing import Fleet, lora_seconds, transfer_seconds
from trenchcoat_api.presets import PRESETS, Preset, with_preset
from trenchcoat_api.resource import InvalidTrenchcoatError, Trenchcoat
from trenchcoat_api.spec import LongSequences, StartPositions, Transfer, TrenchcoatSpec, Wide

from tests.api.specs import BASE, changed

CRIAS = cria_ranges(12, 2)


def resolve(**changes) -> TrenchcoatSpec:
    """The base spec without a number of tokens, with these YAML fields beside."""
    body = changed({"spec.data.tokens": None, "spec.preset": None})
    for name, value in changes.items():
        old = body["spec"].get(name)
        body["spec"][name] = old | value if isinstance(old, dict) else value
    return Trenchcoat.from_document(body).spec


def numbers(spec: TrenchcoatSpec) -> tuple[int, int, int, int]:
    return spec.data.tokens, spec.transfer.epochs, spec.cria_lora.epochs, spec.stitch.epochs


def keys(spec: TrenchcoatSpec) -> dict[str, str]:
    return {item.name: item.key for item in Artifacts(spec).all(CRIAS)}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("standard", (8_000_000, 1, 0, 1)),
        ("paper", (20_000_000, 1, 1, 1)),
        ("shipped", (20_000_000, 2, 2, 1)),
        ("quick", (8_000_000, 1, 1, 1)),
    ],
)
def test_a_preset_fills_in_what_is_not_set(preset, expected):
    assert numbers(resolve(preset=preset)) == expected


def test_standard_is_what_a_spec_without_a_preset_has():
    assert resolve() == resolve(preset="standard")
    assert resolve() == resolve(attention={"form": "window"})


def test_a_spec_of_the_published_form_has_the_published_settings():
    spec = resolve(attention={"form": "lolcats"})
    assert spec == resolve(preset="shipped")
    assert (spec.preset, spec.attention.wide, spec.stitch.recall_share) == (Preset.SHIPPED, None, "0")


def test_standard_is_the_student_at_the_head_of_the_leaderboard():
    spec = resolve()
    assert (spec.attention.form, spec.attention.window, spec.attention.first_tokens) == ("window", 256, 4)
    assert spec.attention.wide == Wide(share="0.25")
    assert (spec.stitch.learning_rate, spec.stitch.recall_share) == ("1e-3", "0.1")
    assert (spec.stitch.lora.rank, spec.stitch.lora.alpha) == (8, 16)
    assert spec.stitch.lr_schedule == "wsd"
    assert spec.stitch.long_sequences == LongSequences(share="0.5", multiple=8, recall_share="0.5")


def test_who_says_how_much_recall_says_so_for_long_sequences_too():
    """Or switching it off would leave it on in some."""
    off = resolve(preset="standard", stitch={"recallShare": "0"}).stitch
    assert (off.recall_share, off.long_recall_share, off.has_recall) == ("0", "0", False)
    more = resolve(preset="standard", stitch={"recallShare": "0.3"}).stitch
    assert (more.recall_share, more.long_recall_share) == ("0.3", "0.3")
    own = resolve(preset="standard", stitch={"longSequences": {"recallShare": "0.2"}}).stitch
    assert (own.recall_share, own.long_recall_share) == ("0.1", "0.2")


@pytest.mark.parametrize(
    ("batch", "multiple", "positions", "expected"),
    [(8, 4, 8192, 4), (8, 4, 4096, 4), (8, 4, 4095, 2), (8, 4, 2048, 2), (8, 4, 2047, 1), (8, 4, 100, 1),
     (6, 6, 5000, 3), (12, 6, 4096, 4), (5, 5, 4096, 1)],
)  # fmt: skip
def test_long_sequences_fit_the_teachers_positions(batch, multiple, positions, expected):
    long = {"share": "0.25", "multiple": multiple}
    stitch = resolve(stitch={"batchSize": batch, "longSequences": long}).stitch
    assert stitch.long_multiple(1024, positions) == expected
    off = resolve(stitch={"batchSize": batch, "longSequences": long | {"share": "0"}}).stitch
    assert off.long_multiple(1024, positions) == 1


@pytest.mark.parametrize(
    ("attention", "wide"),
    [
        ({"wide": {"layers": [2]}}, Wide(layers=[2])),
        ({"keepSoftmaxLayers": [3]}, None),
        ({"keepSoftmaxLayers": []}, Wide(share="0.25")),
        ({"form": "lolcats"}, None),
        ({"wide": {"share": "0"}}, Wide(share="0")),
    ],
)
def test_layers_are_chosen_where_nothing_else_says_which_are_wide(attention, wide):
    assert resolve(preset="standard", attention=attention).attention.wide == wide


def test_no_wide_layers_is_one_thing_however_it_is_said():
    none, zero = ({"form": "window"} | part for part in ({}, {"wide": {"share": "0"}}))
    assert keys(resolve(preset="shipped", attention=none)) == keys(resolve(preset="shipped", attention=zero))


def test_long_sequences_are_left_out_where_a_step_cannot_hold_them():
    assert resolve(stitch={"batchSize": 6}).stitch.long_sequences.share == "0"
    assert resolve(stitch={"batchSize": 6, "longSequences": {"multiple": 3}}).stitch.long_sequences.are_on


def test_long_sequences_are_shorter_where_a_step_holds_no_longer_ones():
    assert resolve(stitch={"batchSize": 4}).stitch.long_sequences == LongSequences(
        share="0.5", multiple=4, recall_share="0.5"
    )


@pytest.mark.parametrize(
    ("status", "preset"),
    [
        (None, "standard"),
        ({}, "standard"),
        ({"observedGeneration": 1}, "shipped"),  # by a release that had no other form
        ({"observedGeneration": 1, "defaultPreset": "standard"}, "standard"),
        ({"observedGeneration": 3, "defaultPreset": "shipped"}, "shipped"),
    ],
)
def test_a_run_keeps_the_default_that_it_began_with(status, preset):
    body = changed("spec.preset", None) | ({} if status is None else {"status": status})
    trenchcoat = Trenchcoat.from_object(body)
    assert trenchcoat.spec == resolve(preset=preset, data={"tokens": 1_000_000})
    assert trenchcoat.status.preset_by_default == preset
    body["spec"]["preset"] = "paper"
    assert Trenchcoat.from_object(body).spec.preset == "paper"
    body["spec"] |= {"preset": "standard", "attention": {"form": "window"}}
    del body["spec"]["preset"]
    assert Trenchcoat.from_object(body).spec.preset == "standard"


@pytest.mark.parametrize("preset", list(Preset))
def test_explicit_values_win(preset):
    spec = resolve(preset=preset, data={"tokens": 5000}, criaLora={"epochs": 0}, stitch={"batchSize": 2})
    assert numbers(spec) == (5000, PRESETS[preset].transfer_epochs, 0, PRESETS[preset].stitch_epochs)


def test_a_preset_and_its_values_written_out_have_the_same_keys():
    explicit = {
        "data": {"tokens": 8_000_000},
        "transfer": {"epochs": 1},
        "criaLora": {"epochs": 1},
        "stitch": {"epochs": 1},
    }
    explicit["attention"] = {"form": "lolcats"}
    assert keys(resolve(preset="quick")) == keys(resolve(**explicit))
    assert keys(resolve(preset="quick")) != keys(resolve())


def test_what_is_computed_from_a_spec_sees_the_preset():
    sizes = {"hidden_size": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate_size": 8}
    model = ModelFacts(layers=12, vocab_size=10, parameters=100, **sizes)
    rates = Rates.load()
    fleet = Fleet(rates.kinds[rates.default], rates, 1)
    found = {}
    for name in ("quick", "shipped"):
        spec = resolve(preset=name)
        outline = Outline.of(spec, PlannedModel.of_facts(model, spec))
        seconds = transfer_seconds(outline, fleet, 2) + lora_seconds(outline, fleet, 2)
        found[name] = outline.tokens, seconds / outline.tokens
    assert found["quick"][0] < found["shipped"][0]
    # Whole batches are packed, so that the last one, not full, counts as one more.
    assert found["quick"][1] == pytest.approx(found["shipped"][1] / 2, rel=1e-3)


def test_a_resolved_spec_stays_what_it_is_when_read_again():
    body = Trenchcoat.from_document(changed("spec.preset", "paper")).to_object()
    body["spec"]["preset"] = "quick"  # as if presets had changed: what was resolved is explicit by now
    assert numbers(Trenchcoat.from_document(body).spec) == (1_000_000, 1, 1, 1)


def test_parts_may_be_models_and_the_given_mapping_is_kept():
    given = {"preset": "paper", "transfer": Transfer(clip="2"), "stitch": {"epochs": 3}}
    filled = with_preset(given)
    assert filled["transfer"] == {"clip": "2", "epochs": 1}
    published = {
        "learningRate": "1e-4",
        "lrSchedule": "constant",
        "lora": {"rank": 4, "alpha": 8},
        "recallShare": "0",
        "longSequences": {"multiple": 4, "share": "0"},
    }
    assert filled["stitch"] == published | {"epochs": 3}
    assert given == {"preset": "paper", "transfer": Transfer(clip="2"), "stitch": {"epochs": 3}}


def test_a_part_of_a_part_is_filled_in_and_explicit_values_win():
    share = PRESETS[Preset.QUICK].start_share
    for given in ({}, {"startPositions": {"below": 9}}, {"start_positions": StartPositions(below=9)}):
        filled = with_preset({"preset": "quick", "data": given})["data"]
        key = "start_positions" if "start_positions" in given else "startPositions"
        assert filled[key] == {"share": share} | ({"below": 9} if given else {})
    own = {"data": {"startPositions": {"share": "0.25"}}}
    assert with_preset(own)["data"]["startPositions"] == {"share": "0.25"}
    assert resolve(**own).data.start_positions.share == "0.25"


@pytest.mark.parametrize("preset", ["fast", 3, ["paper"], None])
def test_an_unknown_preset_is_named(preset):
    body = {**BASE, "spec": {**BASE["spec"], "preset": preset}}
    with pytest.raises(InvalidTrenchcoatError, match=r"spec\.preset.*paper"):
        Trenchcoat.from_document(body)
