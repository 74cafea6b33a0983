"""LoRA on a list of linear layers: trained through PEFT, applied to rows, averaged exactly, kept as safetensors.

    W' = W + (alpha / r) B A,   A (r, in), B (out, r)                                   (Hu et al. 2021)

A model's own weights are never written: every scope here leaves it bitwise as it was, also when its body raises.
"""
from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .errors import BadInput
from .foreign import loads
from .merged import merged, slices
from .saving import save_tensors
from .tensors import read_tensors

if TYPE_CHECKING:
    from ..backbones.unet3d import UNet3D as Backbone

_A, _B = ".lora_A.weight", ".lora_B.weight"
_OTHER = "it was learned on another base: learn it again on this one"
_TOKEN = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Lora:
    """tensors: PEFT's state dict, {"<module>.lora_A.weight": (r, in), "<module>.lora_B.weight": (out, r)}."""

    tensors: Mapping[str, Tensor]
    alpha: float
    rank: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def modules(self) -> list[str]:
        """Paths of the layers it changes."""
        return [key.removesuffix(_A) for key in self.tensors if key.endswith(_A)]

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """(A, B) of one layer."""
        return self.tensors[module + _A], self.tensors[module + _B]

    def delta(self, module: str) -> Tensor:
        """The change of one layer's weight: (alpha / r) B A, (out, in)."""
        a, b = self.factors(module)
        return self.scaling * (b @ a)


class Training(dict[str, nn.Parameter]):
    """What `training` yields: the trainable parameters by name."""

    def __init__(self, model: nn.Module, layers: dict[str, LoraLayer], rank: int, alpha: float) -> None:
        super().__init__((name, p) for name, p in model.named_parameters() if ".lora_" in name)
        self._model, self._layers, self._rank, self._alpha = model, layers, rank, alpha

    def lora(self, **metadata: str) -> Lora:
        """A copy of the LoRA as it is now."""
        tensors = {k: v.detach().clone() for k, v in get_peft_model_state_dict(self._model).items()}
        return Lora(tensors, self._alpha, self._rank, metadata)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model computes as if it had no LoRA: the frozen base of the same training step."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)


@contextmanager
def training(model: nn.Module, targets: Sequence[str], rank: int = 32, alpha: float = 32.0, seed: int = 0,
             start: Lora | None = None) -> Iterator[Training]:
    """A trainable LoRA on the linear layers `targets`, for as long as the scope lasts.

    Starts with B = 0, that is as the base itself, and A drawn from `seed`; or from `start`, whose rank and alpha then
    replace the ones given. Adapters of a half-precision model are float32. One scope at a time on one model.
    """
    assert not hasattr(model, "peft_config"), "a training scope is already open on this model"
    if start is not None:
        check_base(start, model)
        targets, rank, alpha = start.modules, start.rank, start.alpha
    exactly = "|".join(map(re.escape, targets))              # a regex is matched in full, a list by suffix
    for name in targets:
        _linear(model, name)
    had_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly), model)
        layers = {name: model.get_submodule(name) for name in targets}
        if start is not None:
            set_peft_model_state_dict(model, dict(start.tensors))
        for name, p in model.named_parameters():
            p.requires_grad_(".lora_" in name)
            if ".lora_" in name and p.dtype in (torch.float16, torch.bfloat16):
                p.data = p.data.float()
        yield Training(model, layers, rank, alpha)
    finally:
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        for name, p in model.named_parameters():
            p.requires_grad_(had_grad[name])


@contextmanager
def branches(model: nn.Module, loras: Mapping[str, Lora | Sequence[Lora] | None], *, merge: bool = False
             ) -> Iterator[Callable[[Sequence[str | None]], None]]:
    """Several LoRAs in one batch, each on rows of its own: the two models of Algorithm 1 in one forward.

        with branches(unet, {"subject": s, "motion": m}) as rows:
            rows(["subject", "subject", "motion", "motion"])     # of which branch each row of the next forwards is
            unet(x_4CFhw, ...)

    A branch may hold several LoRAs, whose changes add up, or None: the base; so does the row None. A spatial layer sees
    B F rows and a temporal one B h w, both with the batch outermost, so a branch is a contiguous slice of either.
    Nothing is switched on or off between forwards, and the factors take part in no gradient.

    merge: W + (alpha / r) B A is computed once for every branch, and its rows go through that: the price of the base
    alone, for a copy of the adapted layers' weights per branch. It rounds the change to the weights' precision, so it
    is for float32 and better. Otherwise the change is added to what the layer gives, B (A x).
    """
    held: dict[str | None, list[Lora]] = {None: []}
    held |= {name: [] if lora is None else [lora] if isinstance(lora, Lora) else list(lora)
             for name, lora in loras.items()}
    now: list[str | None] = list(loras) if len(loras) == 1 else []

    def rows(names: Sequence[str | None]) -> None:
        unknown = set(names) - set(held)
        if unknown:
            raise ValueError(f"no branch is named {sorted(unknown)}; open are {sorted(loras)}")
        now[:] = names

    for lora in itertools.chain(*held.values()):
        check_base(lora, model)
    paths = dict.fromkeys(itertools.chain(*(lora.modules for some in held.values() for lora in some)))
    layers = {path: _linear(model, path) for path in paths}
    with ExitStack() as stack:
        for path, layer in layers.items():
            changes = {name: [lora for lora in some if path + _A in lora.tensors] for name, some in held.items()}
            stack.enter_context(merged(layer, path, changes, now) if merge else _added(layer, path, changes, now))
        yield rows


@contextmanager
def _added(layer: nn.Module, path: str, changes: Mapping[str | None, Sequence[Lora]], now: Sequence[str | None]
           ) -> Iterator[None]:
    """Inside, this layer's output is that of each row's branch, by a hook: output + (alpha / r) B A x."""
    factors = {name: [(*(f.detach().to(layer.weight) for f in lora.factors(path)), lora.scaling) for lora in some]
               for name, some in changes.items()}

    def on_output(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return _add_by_rows(args[0], output, slices(now, len(output)), factors)

    handle = layer.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def _add_by_rows(x: Tensor, output: Tensor, groups: Sequence[tuple[str | None, slice]], factors: Mapping) -> Tensor:
    parts = []
    for name, part in groups:
        parts.append(output[part])
        for a, b, scaling in factors[name]:
            parts[-1] = parts[-1] + F.linear(F.linear(x[part], a), b) * scaling
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _linear(model: nn.Module, path: str) -> nn.Module:
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if not isinstance(layer, (nn.Linear, LoraLayer)):
        raise BadInput(f"the LoRA changes '{path}', a layer that this model does not have", _OTHER)
    return layer


@contextmanager
def applied(model: nn.Module, lora: Lora | Sequence[Lora] | None) -> Iterator[None]:
    """One LoRA, or the sum of several, frozen, on every row. Gradients flow through to whatever comes before."""
    with branches(model, {"all": lora}) as rows:
        rows(["all"])
        yield


def mean(loras: Sequence[Lora], weights: Sequence[float] | None = None) -> Lora:
    """The LoRA whose delta is the weighted mean of the deltas: sum_n w_n (alpha_n / r_n) B_n A_n  (METHOD 4).

    Exact: A's are stacked and B's, scaled, set side by side, [w_1 B_1, w_2 B_2] [A_1; A_2], at rank r_1 + r_2 + ...
    (Means of A and of B apart give another matrix. The mean's own rank is that sum, so no smaller form is exact.)
    weights: default 1/N each. Raises BadInput where the LoRAs change different layers.
    """
    weights = [1 / len(loras)] * len(loras) if weights is None else weights
    modules = loras[0].modules
    if any(set(lora.modules) != set(modules) for lora in loras):
        raise BadInput("the LoRAs change different layers", "learn them again, on one base")
    tensors = {}
    for module in modules:
        tensors[module + _A] = torch.cat([lora.factors(module)[0] for lora in loras], 0)
        tensors[module + _B] = torch.cat([w * lora.scaling * lora.factors(module)[1]
                                          for w, lora in zip(weights, loras, strict=True)], 1)
    rank = sum(lora.rank for lora in loras)
    return Lora(tensors, alpha=float(rank), rank=rank)


def provenance(backbone: Backbone, targets: str, tokens: Iterable[str]) -> dict[str, str]:
    """What a LoRA's file says of its origin, beside what it was trained on: base and revision; targets, "subject" (the
    spatial layers) or "motion" (the temporal ones); trigger, the tokens it was trained with; whose terms hold."""
    return {**backbone.origin, "targets": targets, "trigger": " ".join(tokens),
            "licence": f"derived from weights whose licence is {backbone.licence}; their terms apply to it too"}


def save(lora: Lora, path: Path) -> None:
    """Safetensors under PEFT's names; alpha, rank and the metadata as JSON under one key of the header, because
    safetensors writes several keys in a random order, and the same LoRA shall give the same bytes."""
    header = json.dumps({**lora.metadata, "alpha": lora.alpha, "rank": lora.rank}, sort_keys=True)
    save_tensors(lora.tensors, path, {"lora": header})


def load(path: Path) -> Lora:
    """The LoRA of a file that a stage wrote. Raises BadInput for any other, whatever program wrote it."""
    tensors, header = read_tensors(path, "a LoRA")
    try:
        facts = dict(loads(header.get("lora", "{}")))
        lora = Lora(tensors, float(facts.pop("alpha")), int(facts.pop("rank")), {k: str(v) for k, v in facts.items()})
        whole = bool(tensors) and math.isfinite(lora.alpha) and all(_fit(lora, module) for module in lora.modules)
        whole = whole and set(tensors) == {module + end for module in lora.modules for end in (_A, _B)}
    except (ValueError, TypeError, LookupError, OverflowError):
        whole = False
    if not whole:
        raise BadInput(f"{path} is no LoRA of this project", "learn it again, or give the file that a stage wrote")
    return lora


def _fit(lora: Lora, module: str) -> bool:
    """Whether the factors of a layer are two matrices of the LoRA's rank."""
    a, b = lora.factors(module)
    return a.ndim == b.ndim == 2 and a.is_floating_point() and b.is_floating_point() and \
        lora.rank == a.shape[0] == b.shape[1] > 0


def check_base(lora: Lora, model: nn.Module) -> None:
    """Raise BadInput, naming the layer, for a LoRA of another base: one that changes a layer which this model does not
    have, or has in another size."""
    for module in lora.modules:
        layer, (a, b) = _linear(model, module), lora.factors(module)
        if (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
            raise BadInput(f"the LoRA changes '{module}' by a matrix of {b.shape[0]} x {a.shape[1]}, and that layer of "
                           f"this base is {layer.out_features} x {layer.in_features}", _OTHER)


def save_tokens(tokens: Mapping[str, Tensor], path: Path) -> None:
    """{"<toy>": (n, width)}, the learned rows of the text encoder's token embedding."""
    save_tensors(tokens, path)


def load_tokens(path: Path) -> dict[str, Tensor]:
    """The tokens of a file that a stage wrote, {"<toy>": (n, width)}. Raises BadInput for any other."""
    tensors, _ = read_tensors(path, "tokens")
    if not tensors or not all(rows.ndim == 2 and 0 not in rows.shape and rows.is_floating_point()
                              and _TOKEN.fullmatch(name) for name, rows in tensors.items()):
        raise BadInput(f"{path} holds no tokens", "give the file that a stage wrote")
    return tensors


def load_token(path: Path, name: str) -> Tensor:
    """One token of such a file, (n, width). Raises BadInput, too, where it is not among them."""
    tokens = load_tokens(path)
    if name not in tokens:
        raise BadInput(f"{path} holds the tokens {', '.join(tokens)}, and not {name}", "learn it again")
    return tokens[name]
