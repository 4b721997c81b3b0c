from __future__ import annotations

import dataclasses
import pickle
import re

import pytest

from rcnn_ext.config import (
    Recipe,
    apply_override,
    load_recipe,
    recipe_from_dict,
    recipe_names,
    recipe_to_yaml,
    with_steps,
)
from rcnn_ext.config.parse import all_keys
from rcnn_ext.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_survive_yaml_and_dictionaries(name, write):
    recipe = load_recipe(name)
    assert recipe.description
    assert load_recipe(write(recipe_to_yaml(recipe))) == recipe
    assert recipe_from_dict(dataclasses.asdict(recipe)) == recipe


def test_the_recipes_are_there():
    assert recipe_names() == [
        "fast_rcnn_pennfudan",
        "fast_rcnn_voc",
        "faster_rcnn_coco",
        "faster_rcnn_coco_small",
        "faster_rcnn_finetune",
        "faster_rcnn_roipool",
        "faster_rcnn_synthetic",
        "localizer_csv",
    ]


def test_overrides_reach_every_depth_and_keep_the_rest():
    plain = load_recipe("faster_rcnn_synthetic")
    changed = load_recipe(
        "faster_rcnn_synthetic",
        [
            "seed=7",
            "optimizer.lr=1e-4",
            "model.weights_backbone=DEFAULT",
            "model.anchor_sizes=[[8, 16], [32, 64]]",
            "data.classes=[cat, dog]",
            "data.augment.zoom=[0.5, 2]",
            "runtime.precision=16",
            "evaluation.val_every=1e3",
            "optimizer.clip_norm=null",
        ],
    )
    assert changed.seed == 7
    assert changed.optimizer.lr == 1e-4
    assert changed.model.weights_backbone == "DEFAULT"
    assert changed.model.anchor_sizes == [[8, 16], [32, 64]]
    assert changed.data.classes == ["cat", "dog"]
    assert changed.data.augment.zoom == (0.5, 2.0)
    assert changed.runtime.precision == "16"
    assert changed.evaluation.val_every == 1000
    assert changed.optimizer.clip_norm is None
    assert changed.optimizer.weight_decay == plain.optimizer.weight_decay
    assert changed.data.augment.horizontal_flip == plain.data.augment.horizontal_flip


def test_the_last_of_equal_overrides_counts():
    assert load_recipe("faster_rcnn_synthetic", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"unknown key optimizer\.lrr; did you mean optimizer\.lr\?"),
        ("batch_size=4", r"did you mean data\.batch_size or evaluation\.batch_size\?"),
        ("zzz=1", "unknown key zzz; a recipe has description, seed, model, data"),
        ("data.augment.flip_it=1", "unknown key data.augment.flip_it"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, not 'fast'"),
        ("schedule.steps=2.5", "schedule.steps must be a whole number or null, not 2.5"),
        ("schedule.steps=true", "schedule.steps must be a whole number or null, not True"),
        ("data.keep_empty=1", "data.keep_empty must be true or false, not 1"),
        ("optimizer.name=adam", "optimizer.name must be one of sgd, adamw, not 'adam'"),
        ("model.trainable_layers=all", "must be a whole number or null, not 'all'"),
        ("model.min_size=[1, a]", r"whole number or a list \(a whole number each\)"),
        ("data.augment.zoom=[1]", r"must be a list of 2 \(a number each\)"),
        ("model.backbone=null", "model.backbone must be text, not null"),
        ("model=resnet50", "model must be a section with keys, not 'resnet50'"),
        ("seed.x=1", "seed must be a whole number"),
        ("optimizer.lr=0", r"optimizer\.lr must be greater than 0"),
        ("schedule.epochs=0", r"schedule\.epochs must be greater than 0"),
        ("schedule.milestones=[2.5]", r"schedule\.milestones must be whole steps"),
        ("schedule.steps=0", r"schedule\.steps must be at least 1"),
        ("data.classes=[]", r"data\.classes must be null or a list of distinct names"),
        ("data.classes=[a, a]", r"data\.classes must be null or a list of distinct names"),
        ("optimizer.lr", "'optimizer.lr' is not an override; write section.key=value"),
        (".lr=1", "is not an override"),
        ("optimizer.lr=[1", "is not valid YAML"),
        ("data.synthetic.size=8", r"^data\.synthetic\.size must be at least 32$"),
    ],
)
def test_wrong_overrides_are_named(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe("faster_rcnn_synthetic", [override])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.csv.normalised", "data.csv.normalized"),
        ("data.on_problem", "data.on_error"),
        ("evaluation.every", "evaluation.val_every"),
        ("evaluation.min_gain", "evaluation.min_delta"),
        ("model.checkpoint_layers", "model.checkpoint_stages"),
        ("optimizer.accumulate", "optimizer.accumulate_grad_batches"),
        ("optimizer.frozen", "optimizer.freeze"),
        ("optimizer.lr_of", "optimizer.lr_overrides"),
        ("proposals", "selective_search"),
        ("refine.learns", "refine.trainable"),
        ("refine.optimizer.lr_of", "refine.optimizer.lr_overrides"),
        ("runtime.not_finite", "runtime.on_nan"),
    ],
)
def test_a_key_of_before_names_its_present_one(old, new):
    message = f"unknown key {old}; it is called {new} now"
    assert new in {*all_keys(Recipe), "selective_search"}
    with pytest.raises(UserError, match=message):
        load_recipe("faster_rcnn_synthetic", [f"{old}=1"])
    values = {}
    apply_override(values, f"{old}=1")
    with pytest.raises(UserError, match=message):
        recipe_from_dict(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model:\n  backbone: resnet18\n  backbon: x\n",
            r"unknown key model\.backbon; did you mean",
        ),
        ("seed: 1\nseed: 2\n", "the key seed occurs twice in the section at line 1"),
        (
            "model:\n  backbone: a\n  neck: fpn\n  neck: c4\n",
            "neck occurs twice in the section at line 2",
        ),
        ("seed: 1\noptimizer:\n  lr: fast\n", r"mine\.yaml:3: optimizer\.lr must be a number"),
        ("optimizer:\n  name: sgd\n  lr: 0\n", r"mine\.yaml:3: optimizer\.lr must be greater"),
        ("optimizer:\n  lr_of: {}\n", r"mine\.yaml:2: unknown key optimizer\.lr_of; it is called"),
        ("model:\n\n  localizer: 3\n", r"mine\.yaml:3: model\.localizer must be a section"),
        ("a: b: c\n", "not valid YAML: .* at line 1, column 5"),
        ("- 1\n", "its top level has no keys"),
        ("", "its top level has no keys"),
    ],
)
def test_wrong_files_are_named(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(path)
    assert path in str(error.value)


def test_yaml_anchors_and_merges_work(write):
    text = "data: {augment: &a {color: 0.3}, batch_size: 4}\nmodel: {<<: {backbone: x}, neck: c4}\n"
    recipe = load_recipe(write(text))
    assert (recipe.data.augment.color, recipe.data.batch_size) == (0.3, 4)
    assert (recipe.model.backbone, recipe.model.neck) == ("x", "c4")


def test_steps_in_all():
    """A trial of a recipe with two phases ends after as many steps as were asked for."""
    two = load_recipe("fast_rcnn_voc")
    first, second = two.schedule.steps, two.refine.schedule.steps
    for steps, phases in ((5, (5, None)), (first, (first, None)), (first + 7, (first, 7))):
        cut = with_steps(two, steps)
        assert (cut.schedule.steps, cut.refine and cut.refine.schedule.steps) == phases
    assert (two.schedule.steps, two.refine.schedule.steps) == (first, second)
    assert with_steps(load_recipe("localizer_csv"), 123_456).schedule.steps == 123_456


@pytest.mark.parametrize(
    ("overrides", "phases"),
    [
        (["schedule.steps=20"], (20, None)),
        (["schedule.steps=40007"], (40_000, 7)),
        (["schedule.epochs=2"], (None, None)),
        (["schedule.steps=20", "refine.optimizer.lr=0.1"], (20, None)),
        (["schedule.steps=20", "refine.schedule.steps=5"], (20, 5)),
        (["refine.schedule.steps=5"], (40_000, 5)),
        (["schedule.warmup_steps=5"], (40_000, 10_000)),
    ],
)
def test_a_length_alone_is_that_of_both_phases(overrides, phases):
    said = []
    recipe = load_recipe("fast_rcnn_voc", overrides, log=said.append)
    assert (recipe.schedule.steps, recipe.refine and recipe.refine.schedule.steps) == phases
    alone = not any(override.startswith("refine.schedule") for override in overrides)
    if alone and "warmup" not in overrides[0]:
        (line,) = said
        assert f"{overrides[0]} is the whole length" in line
        assert ("left out" in line) == (phases[1] is None)
    else:
        assert said == []


def test_steps_or_epochs_and_milestones_in_their_unit(write):
    epochs = load_recipe("faster_rcnn_coco", ["schedule.epochs=12"])
    assert (epochs.schedule.steps, epochs.schedule.epochs) == (None, 12)
    assert epochs.schedule.milestones == [8, 10.666667], "at the same fractions of the whole"
    own = ["schedule.epochs=12", "schedule.milestones=[8, 11]"]
    assert load_recipe("faster_rcnn_coco", own).schedule.milestones == [8, 11]
    path = write("schedule: {epochs: 1.5, milestones: [1]}\n")
    assert load_recipe(path).schedule.epochs == 1.5
    steps = load_recipe(path, ["schedule.steps=30"]).schedule
    assert (steps.steps, steps.epochs, steps.milestones) == (30, None, [20])
    limited = load_recipe(path, max_steps=3).schedule
    assert (limited.steps, limited.epochs, limited.milestones) == (3, None, [2])
    later = load_recipe(path, ["refine.schedule.epochs=2"]).refine.schedule
    assert (later.steps, later.epochs) == (None, 2)
    both = ["schedule.epochs=1", "schedule.steps=1"]
    with pytest.raises(UserError, match=r"schedule\.epochs must be null where steps is a number"):
        load_recipe("faster_rcnn_coco", both)
    with pytest.raises(UserError, match=r":1: schedule\.epochs must be null where steps"):
        load_recipe(write("schedule: {epochs: 1, steps: 5}\n"))
    with pytest.raises(ValueError, match="no number of steps before it sees the data"):
        epochs.schedule.num_steps  # noqa: B018
    shown = load_recipe(write(recipe_to_yaml(epochs)))
    assert shown == epochs


def test_recipes_that_do_not_exist():
    with pytest.raises(UserError, match="did you mean faster_rcnn_coco"):
        load_recipe("faster_rcnn_cocoo")
    with pytest.raises(UserError, match="there are fast_rcnn_pennfudan, "):
        load_recipe("zzz")


def test_every_value_of_a_recipe_can_be_overridden_by_its_shown_form():
    """What --show prints can be given back, value by value."""
    import yaml

    recipe = load_recipe("faster_rcnn_coco", ["refine={}"])
    shown = yaml.safe_load(recipe_to_yaml(recipe))
    overrides = []
    for key in all_keys(Recipe):
        value = shown
        for part in key.split("."):
            value = value[part]
        overrides.append(f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}")
    overrides = [override.removesuffix("...").strip() for override in overrides]
    assert load_recipe("faster_rcnn_synthetic", overrides) == recipe


def test_whatever_is_wrong_is_one_line_of_ours():
    """Any value at any key, and any section, either makes a recipe or one line about it."""
    keys = list(all_keys(Recipe))
    values = [None, True, 0, -1, 1.5, float("nan"), float("inf"), "x", "1e3", b"x", 10**30]
    values += [[], [1], [None], ["a"], [[1], [2]], [1, [2]], {}, {"a": 1}, {1: 2}, {"a": {"b": {}}}]
    made = 0
    for key in sorted({key.rsplit(".", depth)[0] for key in keys for depth in range(3)}):
        for value in values:
            recipe = {}
            section = recipe
            for part in key.split(".")[:-1]:
                section = section.setdefault(part, {})
            section[key.rpartition(".")[2]] = value
            message = ""
            try:
                found = recipe_from_dict(recipe)
            except UserError as error:
                message = str(error)
            if message:
                assert "\n" not in message
                assert re.match("(unknown key )?" + re.escape(key.split(".")[0]), message)
            else:
                made += 1
                assert repr(recipe_from_dict(dataclasses.asdict(found))) == repr(found)
    assert made > len(keys)


def test_recipes_go_to_workers_and_into_checkpoints(tmp_path):
    torch = pytest.importorskip("torch")
    recipe = load_recipe("fast_rcnn_voc", ["selective_search.mode=fast"])
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    torch.save({"recipe": dataclasses.asdict(recipe)}, tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["recipe"]
    assert recipe_from_dict(stored) == recipe
