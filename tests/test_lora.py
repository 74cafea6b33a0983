"""LoRA: trained through PEFT, applied by rows, averaged exactly, and gone without a trace."""
from __future__ import annotations

import pytest
import torch
from oracles import assert_same_state, merged, random_lora, state_of
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import save_file

from stages.core import lora as L
from stages.core.errors import BadInput


def inputs(backbone, rows, seed=0):
    x = torch.randn(rows, 4, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=backbone.dtype)
    prompts = ["a dog is riding a horse", "toy", "", "a red circle"]
    return x, backbone.embed([prompts[i % 4] for i in range(rows)])


def run(backbone, x, vectors, t=500):
    with torch.no_grad():
        return backbone.predict(x, t, vectors)


def subject_and_motion(backbone):
    return (random_lora(backbone.denoiser, backbone.targets("subject"), seed=1),
            random_lora(backbone.denoiser, backbone.targets("motion"), seed=2, rank=3))


# --------------------------------------------------------------------------------------------------------- application
def test_applied_is_the_merged_model(backbone64):
    x, vectors = inputs(backbone64, 2)
    for lora in subject_and_motion(backbone64):
        with L.applied(backbone64.denoiser, lora):
            mine = run(backbone64, x, vectors)
        with torch.no_grad():
            slow = merged(backbone64.denoiser, lora)(x, 500, vectors).sample
        assert torch.allclose(mine, slow, atol=1e-10, rtol=0)
        assert not torch.allclose(mine, run(backbone64, x, vectors), atol=1e-3)


def test_applied_is_peft_bit_for_bit(backbone):
    """The hooks compute what PEFT's layers compute, to the last bit: what was trained is what is sampled."""
    x, vectors = inputs(backbone, 2)
    lora, _ = subject_and_motion(backbone)
    with L.applied(backbone.denoiser, lora):
        mine = run(backbone, x, vectors)
    with L.training(backbone.denoiser, lora.modules, start=lora):
        theirs = run(backbone, x, vectors)
    assert torch.equal(mine, theirs)


def test_several_loras_add_up(backbone64):
    x, vectors = inputs(backbone64, 1)
    subject, motion = subject_and_motion(backbone64)
    with L.applied(backbone64.denoiser, [subject, motion]):
        both = run(backbone64, x, vectors)
    with torch.no_grad():
        slow = merged(merged(backbone64.denoiser, subject), motion)(x, 500, vectors).sample
    assert torch.allclose(both, slow, atol=1e-10, rtol=0)


def test_no_lora_is_the_base_bit_for_bit(backbone):
    x, vectors = inputs(backbone, 2)
    plain = run(backbone, x, vectors)
    with L.applied(backbone.denoiser, None):
        assert torch.equal(run(backbone, x, vectors), plain)
    lora, _ = subject_and_motion(backbone)
    with L.branches(backbone.denoiser, {"subject": lora}) as rows:
        rows([None, None])
        assert torch.equal(run(backbone, x, vectors), plain)


@pytest.mark.parametrize("names", [["subject", "subject", "motion", "motion"], ["motion", None, "subject", "motion"]])
def test_each_row_is_the_model_with_only_its_lora(backbone64, names):
    x, vectors = inputs(backbone64, 4)
    loras = dict(zip(("subject", "motion"), subject_and_motion(backbone64)))
    with L.branches(backbone64.denoiser, loras) as rows:
        rows(names)
        together = run(backbone64, x, vectors)
    for row, name in enumerate(names):
        model = merged(backbone64.denoiser, loras.get(name))
        with torch.no_grad():
            alone = model(x[row:row + 1], 500, vectors[row:row + 1]).sample
        assert torch.allclose(together[row:row + 1], alone, atol=1e-10, rtol=0), (row, name)


@pytest.mark.parametrize("names", [["subject", "subject", "motion", "motion"], ["motion", None, "subject", "motion"],
                                   [None, None, "both", "both"], ["subject"], [None]], ids=str)
def test_merged_weights_are_the_added_loras_with_their_gradient(backbone64, names):
    """To rounding in float64; and no parameter of the base has moved or learned."""
    x, vectors = inputs(backbone64, len(names))
    subject, motion = subject_and_motion(backbone64)
    loras, before, results = {"subject": subject, "motion": motion, "both": [subject, motion]}, \
        state_of(backbone64.denoiser), []
    for merge in (False, True):
        leaf = x.clone().requires_grad_()
        with L.branches(backbone64.denoiser, loras, merge=merge) as rows:
            rows(names)
            out = backbone64.predict(leaf, 500, vectors)
            rows([None] * len(names))                    # what the rows are by the time of the backward is no matter
            results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for added, mine in zip(*results):
        assert torch.allclose(added, mine, atol=1e-9, rtol=1e-10)
    assert_same_state(before, state_of(backbone64.denoiser))
    if names == [None]:
        assert torch.equal(results[1][0].detach(), run(backbone64, x, vectors))


def test_merged_weights_are_gone_with_their_scope(backbone):
    x, vectors = inputs(backbone, 1)
    subject, _ = subject_and_motion(backbone)
    plain, attributes = run(backbone, x, vectors), {n: set(vars(m)) for n, m in backbone.denoiser.named_modules()}
    with pytest.raises(KeyError), L.branches(backbone.denoiser, {"subject": subject}, merge=True):
        assert not torch.equal(run(backbone, x, vectors), plain)
        with pytest.raises(AssertionError, match="already open"), \
                L.branches(backbone.denoiser, {"subject": subject}, merge=True):
            pass
        raise KeyError
    assert {name: set(vars(module)) for name, module in backbone.denoiser.named_modules()} == attributes
    assert torch.equal(run(backbone, x, vectors), plain)


def test_a_weight_swapped_between_forward_and_backward_is_noticed(backbone64):
    """The trap of swapped weights: the gradient of a forward must be that of the weights it used. Whoever changes one
    in place before the backward gets an error, not another model's gradient."""
    x, vectors = inputs(backbone64, 2)
    loras = dict(zip(("subject", "motion"), subject_and_motion(backbone64)))
    site = loras["subject"].modules[0]
    with L.branches(backbone64.denoiser, loras, merge=True) as rows:
        rows(["subject", "motion"])
        leaf = x.clone().requires_grad_()
        out = backbone64.predict(leaf, 500, vectors).square().sum()
        weight = backbone64.denoiser.get_submodule(site).weight
        kept = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.add_(1.0)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(out, leaf)
        finally:
            with torch.no_grad():
                weight.copy_(kept)


def test_a_teacher_is_merged_beneath_what_learns(backbone64):
    """fuse's teachers: the frozen LoRA of the rows, under a PEFT layer whose own is off or on."""
    x, vectors = inputs(backbone64, 2)
    subject, _ = subject_and_motion(backbone64)
    student = random_lora(backbone64.denoiser, subject.modules, seed=5)
    results = []
    for merge in (False, True):
        with L.training(backbone64.denoiser, subject.modules, start=student) as own, \
                L.branches(backbone64.denoiser, {"teacher": subject}, merge=merge) as rows:
            outs = []
            for names in (["teacher", "teacher"], ["teacher", None]):
                rows(names)
                outs.append(run(backbone64, x, vectors))
                with own.disabled():
                    outs.append(run(backbone64, x, vectors))
            results.append(outs)
    for added, mine in zip(*results):
        assert torch.allclose(added, mine, atol=1e-10, rtol=0)


def test_no_adapter_is_switched_between_rows(backbone):
    """No PEFT layer exists in the scope at all: there is nothing to switch."""
    loras = dict(zip(("subject", "motion"), subject_and_motion(backbone)))
    types = [type(module) for module in backbone.denoiser.modules()]
    with L.branches(backbone.denoiser, loras) as rows:
        rows(["subject", "motion"])
        assert [type(module) for module in backbone.denoiser.modules()] == types


def test_gradients_pass_through_an_applied_lora_and_not_into_it(backbone64):
    x, vectors = inputs(backbone64, 2)
    lora, _ = subject_and_motion(backbone64)
    leaf = x.clone().requires_grad_()
    slow_leaf = x.clone().requires_grad_()
    with L.applied(backbone64.denoiser, lora):
        backbone64.predict(leaf, 500, vectors).square().sum().backward()
    merged(backbone64.denoiser, lora)(slow_leaf, 500, vectors).sample.square().sum().backward()
    assert torch.allclose(leaf.grad, slow_leaf.grad, atol=1e-9, rtol=1e-9)
    assert all(p.grad is None for p in backbone64.denoiser.parameters())


def test_rows_must_be_said_and_known(backbone):
    loras = dict(zip(("subject", "motion"), subject_and_motion(backbone)))
    x, vectors = inputs(backbone, 2)
    with L.branches(backbone.denoiser, loras) as rows:
        with pytest.raises(AssertionError, match="rows"):
            run(backbone, x, vectors)
        with pytest.raises(ValueError, match="dance"):
            rows(["dance", "subject"])


def test_a_lora_of_another_base_is_refused(backbone):
    lora = L.Lora({"nowhere.lora_A.weight": torch.zeros(1, 2), "nowhere.lora_B.weight": torch.zeros(2, 1)}, 1.0, 1)
    before = state_of(backbone.denoiser)
    with pytest.raises(BadInput, match="nowhere"), L.applied(backbone.denoiser, lora):
        pass
    with pytest.raises(BadInput, match="nowhere"), L.training(backbone.denoiser, lora.modules, start=lora):
        pass
    assert_same_state(before, state_of(backbone.denoiser))


# ------------------------------------------------------------------------------------------------------------ no trace
@pytest.mark.parametrize("scope", ["applied", "branches", "training"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_scope_leaves_the_base_bitwise_unchanged(backbone, scope, fails):
    subject, motion = subject_and_motion(backbone)
    x, vectors = inputs(backbone, 2)
    before, plain = state_of(backbone.denoiser), run(backbone, x, vectors)
    opened = {"applied": lambda: L.applied(backbone.denoiser, subject),
              "branches": lambda: L.branches(backbone.denoiser, {"subject": subject, "motion": motion}),
              "training": lambda: L.training(backbone.denoiser, backbone.targets("motion"), 2, 2.0, 0)}[scope]

    def work():
        with opened() as inside:
            if scope == "branches":
                inside(["subject", "motion"])
            if scope == "training":
                optimizer = torch.optim.Adam(inside.values(), lr=0.1)
                backbone.predict(x, 500, vectors).square().mean().backward()
                optimizer.step()
                backbone.predict(x, 500, vectors).square().mean().backward()
                optimizer.step()
            assert not torch.equal(run(backbone, x, vectors), plain)
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            work()
    else:
        work()
    assert_same_state(before, state_of(backbone.denoiser))
    assert torch.equal(run(backbone, x, vectors), plain)


# ------------------------------------------------------------------------------------------------------------ training
def test_training_starts_as_the_base_and_reaches_every_target(backbone):
    targets = backbone.targets("motion")
    x, vectors = inputs(backbone, 2)
    plain = run(backbone, x, vectors)
    with L.training(backbone.denoiser, targets, rank=2, alpha=4.0, seed=3) as parameters:
        assert torch.equal(run(backbone, x, vectors), plain)
        assert len(parameters) == 2 * len(targets)
        backbone.predict(x, 500, vectors).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for n, p in parameters.items() if "lora_B" in n)
        lora = parameters.lora(clip="a.mp4")
        assert sorted(lora.modules) == sorted(targets) and lora.scaling == 2.0 and lora.metadata == {"clip": "a.mp4"}
        only = {n for n, p in backbone.denoiser.named_parameters() if p.requires_grad}
        assert only == set(parameters)


def test_training_adapts_the_targets_and_nothing_else(backbone):
    """PEFT matches a list by suffix; `down_blocks.0.attentions...` must not bring `temp_attentions` with it."""
    from peft.tuners.lora import LoraLayer

    for who in ("subject", "motion"):
        with L.training(backbone.denoiser, backbone.targets(who), 1, 1.0, 0):
            adapted = {n for n, m in backbone.denoiser.named_modules() if isinstance(m, LoraLayer)}
        assert adapted == set(backbone.targets(who))


def test_training_is_a_function_of_its_seed_and_leaves_the_random_state_alone(backbone):
    drawn = []
    for seed in (1, 1, 2):
        state = torch.get_rng_state()
        with L.training(backbone.denoiser, backbone.targets("motion"), 2, 2.0, seed) as parameters:
            drawn.append(parameters.lora().tensors)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, drawn[1][k]) for k, v in drawn[0].items())
    assert any(not torch.equal(v, drawn[2][k]) for k, v in drawn[0].items())


def test_training_from_a_start_and_back(backbone64):
    lora, other = subject_and_motion(backbone64)
    x, vectors = inputs(backbone64, 1)
    with L.training(backbone64.denoiser, (), start=lora) as parameters:
        again = parameters.lora()
        started = run(backbone64, x, vectors)
        with parameters.disabled():
            base = run(backbone64, x, vectors)
            with L.applied(backbone64.denoiser, other):             # a teacher of its own, beside the trained LoRA
                teacher = run(backbone64, x, vectors)
        assert torch.equal(run(backbone64, x, vectors), started)
        assert all(p.requires_grad for p in parameters.values())
    assert again.tensors.keys() == lora.tensors.keys() and (again.alpha, again.rank) == (lora.alpha, lora.rank)
    assert all(torch.equal(v, lora.tensors[k]) for k, v in again.tensors.items())
    assert torch.equal(base, run(backbone64, x, vectors))
    with L.applied(backbone64.denoiser, lora):
        assert torch.allclose(started, run(backbone64, x, vectors), atol=1e-12)
    with L.applied(backbone64.denoiser, other):
        assert torch.allclose(teacher, run(backbone64, x, vectors), atol=1e-12)


def test_adapters_of_a_half_precision_model_are_float32(base_folder):
    from stages.backbones import load

    half = load(str(base_folder), dtype="bf16")
    with L.training(half.denoiser, half.targets("motion"), 2, 2.0, 0) as parameters:
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        out = half.predict(torch.zeros(1, 4, 4, 8, 8), 5, torch.zeros(1, 20, 32))
        out.square().mean().backward()
        assert out.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------- mean
def test_the_mean_is_the_mean_of_the_changes(backbone64):
    targets = backbone64.targets("subject")
    loras = [random_lora(backbone64.denoiser, targets, rank=r, alpha=a, seed=s) for s, (r, a) in
             enumerate([(2, 3.0), (3, 3.0), (1, 0.5)])]
    mean = L.mean(loras)
    assert mean.rank == 6
    for name in targets:
        exact = sum(lora.delta(name) for lora in loras) / 3
        assert torch.allclose(mean.delta(name), exact, atol=1e-10, rtol=0)
        assert torch.linalg.matrix_rank(mean.delta(name)) > 3


def test_the_mean_is_not_the_mean_of_a_and_b_apart(backbone64):
    targets = backbone64.targets("subject")[:5]
    one, two = (random_lora(backbone64.denoiser, targets, seed=s) for s in (1, 2))
    for name in targets:
        (a1, b1), (a2, b2) = one.factors(name), two.factors(name)
        apart = one.scaling * ((b1 + b2) / 2) @ ((a1 + a2) / 2)
        exact = L.mean([one, two]).delta(name)
        assert float((apart - exact).norm() / exact.norm()) > 0.3


def test_weighted_mean_and_mean_of_one(backbone64):
    targets = backbone64.targets("motion")[:3]
    one, two = (random_lora(backbone64.denoiser, targets, seed=s) for s in (1, 2))
    for name in targets:
        assert torch.allclose(L.mean([one, two], [0.25, 2.0]).delta(name), one.delta(name) / 4 + 2 * two.delta(name))
        assert torch.allclose(L.mean([one]).delta(name), one.delta(name), atol=1e-12)
    with pytest.raises(BadInput, match="different layers"):
        L.mean([one, random_lora(backbone64.denoiser, targets[:2])])


# --------------------------------------------------------------------------------------------------------------- files
def test_files_keep_every_bit_and_open_in_peft(backbone, tmp_path):
    lora, _ = subject_and_motion(backbone)
    lora = L.Lora(lora.tensors, lora.alpha, lora.rank, {"subject": "toy"})
    L.save(lora, tmp_path / "lora.safetensors")
    again = L.load(tmp_path / "lora.safetensors")
    assert (again.alpha, again.rank, again.metadata) == (3.0, 2, {"subject": "toy"})
    assert again.tensors.keys() == lora.tensors.keys()
    assert all(torch.equal(v, again.tensors[k]) for k, v in lora.tensors.items())
    linear = torch.nn.ModuleDict({"x": torch.nn.Linear(4, 4)})
    inject_adapter_in_model(LoraConfig(r=2, target_modules="x"), linear)
    small = L.Lora({"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}, 2.0, 2)
    assert not set_peft_model_state_dict(linear, dict(small.tensors)).unexpected_keys
    assert torch.equal(linear["x"].lora_B["default"].weight, torch.ones(4, 2))


def test_tokens_round_trip(tmp_path):
    tokens = {"<toy>": torch.randn(2, 5), "<dog>": torch.randn(1, 5)}
    L.save_tokens(tokens, tmp_path / "t.safetensors")
    again = L.load_tokens(tmp_path / "t.safetensors")
    assert again.keys() == tokens.keys() and all(torch.equal(tokens[k], again[k]) for k in tokens)


def test_bad_files_are_refused_by_name(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file at all")
    for reader in (L.load, L.load_tokens):
        with pytest.raises(BadInput, match="broken"):
            reader(broken)
        with pytest.raises(BadInput, match="missing"):
            reader(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(3)}, broken)
    for reader in (L.load, L.load_tokens):
        with pytest.raises(BadInput, match="broken"):
            reader(broken)


def test_where_a_lora_comes_from_is_said_and_survives_the_file(backbone, tmp_path):
    """The base goes by its folder's name, wherever it lay; the same LoRA gives the same bytes."""
    lora, _ = subject_and_motion(backbone)
    facts = L.provenance(backbone, "subject", ["<dog>", "<toy>"])
    assert facts == {"base": backbone.name.rpartition("/")[2], "revision": backbone.revision, "targets": "subject",
                     "trigger": "<dog> <toy>", "licence": facts["licence"]}
    assert backbone.licence in facts["licence"] and "/" in backbone.name and "/" not in facts["base"]
    for name in ("a", "b"):
        L.save(L.Lora(lora.tensors, lora.alpha, lora.rank, facts), tmp_path / name)
    assert L.load(tmp_path / "a").metadata == facts
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_headers_and_names_of_other_programs_are_no_loras_and_no_tokens(tmp_path):
    for header in ("not json", "[1]", '"text"', "null"):
        save_file({"x.lora_A.weight": torch.zeros(1, 2)}, tmp_path / "x", metadata={"lora": header})
        with pytest.raises(BadInput, match="no LoRA of this project"):
            L.load(tmp_path / "x")
    with pytest.raises(BadInput, match="holds no tokens"):                  # a LoRA taken for tokens
        L.load_tokens(tmp_path / "x")
