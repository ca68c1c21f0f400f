"""A sparse autoencoder: residual in, a few active features, residual out.

    features = activation(x @ W_encᵀ + b_enc)        x − b_dec in place of x, where `apply_b_dec_to_input`
    x_hat    = features @ W_dec + b_dec              + x @ W_skipᵀ, where there is a skip connection

Both matrices are stored by feature, [feature, d_in], so that the rows of a few features are gathered contiguously.
A transcoder writes d_out numbers in place of d_in: what another hook point holds, from what this one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsight.errors import BadInput, NoFeature
from sparsight.sae.activation import CHOOSING, FeatureRows, evaluate, groupmax, largest, passing, pick, pointwise
from sparsight.sae.codes import Codes, no_feature
from sparsight.sae.config import SaeConfig, content_hash

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
ENCODE_MEMORY = 256 * 2**20  # bytes of dense work that encode_codes may hold at once


class SparseAutoEncoder(nn.Module):
    """One SAE, or transcoder, of any activation (relu, topk, groupmax, batchtopk, jumprelu, gated).

    Parameters: W_enc [d_hidden, d_in]; W_dec [d_hidden, d_out]; b_enc [d_hidden]; b_dec [d_out]; jumprelu and
    batchtopk add threshold [d_hidden]; gated adds r_mag and b_mag [d_hidden], and b_enc is then the gate's bias;
    a skip connection adds W_skip [d_out, d_in]. d_out is d_in but for a transcoder.
    `scale` [d_hidden], float32 or None: each feature's typical top activation, the unit of "feature units".

    The first four arguments are the model card's; a state dict with the card's names (`encoder_linear.weight`, ...)
    loads as it is.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    scale: Tensor | None

    def __init__(
        self,
        d_in: int,
        d_hidden: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        *,
        activation: str = "relu",
        **more: Any,
    ):
        super().__init__()
        self.config = SaeConfig(d_in, d_hidden, activation, **more)
        self._fingerprint: str | None = None

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, device=device, dtype=dtype), requires_grad=False)

        self.W_enc, self.W_dec = parameter(d_hidden, d_in), parameter(d_hidden, self.d_out)
        self.b_enc, self.b_dec = parameter(d_hidden), parameter(self.d_out)
        if activation in ("jumprelu", "batchtopk"):
            self.threshold = parameter(d_hidden)
        if activation == "gated":
            self.r_mag, self.b_mag = parameter(d_hidden), parameter(d_hidden)
        if self.config.skip:
            self.W_skip = parameter(self.d_out, d_in)
        self.register_buffer("scale", None)
        self.register_load_state_dict_pre_hook(_before_load)

    @classmethod
    def from_tensors(
        cls, config: SaeConfig, tensors: dict[str, Tensor], check: bool = True, **to: Any
    ) -> SparseAutoEncoder:
        """An SAE around tensors that exist already: no copy where device and dtype agree.

        tensors: the parameters' names -> tensors; "scale" may be among them. check: look at every value for NaN and
        infinity. to: device, dtype of the SAE.
        Raises BadInput where a tensor is missing, surplus, of another shape or not finite.
        """
        shape = {"activation": config.activation, "k": config.k, "d_out": config.d_out, "skip": config.skip}
        sae = cls(config.d_in, config.d_hidden, device="meta", **shape)
        sae.config = config
        wanted = {name: list(parameter.shape) for name, parameter in sae.named_parameters()}
        if "scale" in tensors:
            wanted["scale"] = [config.d_hidden]
        if wanted.keys() != tensors.keys():
            missing, surplus = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
            raise BadInput(f"A {config.activation} SAE: missing tensors {missing}, surplus tensors {surplus}.")
        for name, tensor in tensors.items():
            if list(tensor.shape) != wanted[name]:
                raise BadInput(f"SAE tensor {name} is {list(tensor.shape)}, must be {wanted[name]}.")
            if tensor.dtype not in FLOATS:
                raise BadInput(f"SAE tensor {name} is {tensor.dtype}, must be one of {', '.join(map(str, FLOATS))}.")
            if check and not torch.isfinite(tensor).all():
                raise BadInput(f"SAE tensor {name} holds values that are not finite.")
        for name in wanted.keys() - {"scale"}:
            setattr(sae, name, nn.Parameter(tensors[name].to(**to), requires_grad=False))
        if "scale" in tensors:
            sae.scale = tensors["scale"].to(device=sae.device, dtype=torch.float32)
        return sae

    d_in = property(lambda self: self.config.d_in)
    d_out = property(lambda self: self.config.width_out)
    d_hidden = property(lambda self: self.config.d_hidden)
    device = property(lambda self: self.W_enc.device)
    dtype = property(lambda self: self.W_enc.dtype)

    @property
    def fingerprint(self) -> str:
        """Hash of the content (activation, shapes, weights as stored): what labels and edits belong to."""
        if self._fingerprint is None:
            self._fingerprint = content_hash(self.config, dict(self.named_parameters()))
        return self._fingerprint

    def extra_repr(self) -> str:
        c = self.config
        out = f" -> {self.d_out:,}" if c.transcoder else ""
        where = (c.hook_point or "no hook point") + (f" -> {c.hook_point_out or 'no hook point'}" if out else "")
        return f"{c.d_in:,} -> {c.d_hidden:,}{out} {c.activation}, {where}, {self.fingerprint}"

    # ── the maths ────────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token feature"]:
        """Dense features of x, in the SAE's dtype. For more than a few tokens, see `encode_codes`."""
        x, _, _ = self._read(x)
        return self._activate(self._pre(x))

    def decode(self, features: Float[Tensor, "*token feature"] | Codes) -> Float[Tensor, "*token d_out"]:
        """x_hat of dense features or of Codes (a sparse sum of decoder rows).

        What needs x is not done here, but in `forward`: normalisation is not undone (x_hat is then in normalised
        units), and a skip connection adds nothing.
        """
        width = features.d_hidden if isinstance(features, Codes) else features.shape[-1]
        if width != self.d_hidden:
            raise BadInput(f"This SAE has {self.d_hidden:,} features; it was given {width:,}.")
        if isinstance(features, Codes):
            weights = features.values.to(self.dtype)
            rows, offsets = features.features.long(), features.offsets[:-1]
            return F.embedding_bag(rows, self.W_dec, offsets, mode="sum", per_sample_weights=weights) + self.b_dec
        return F.linear(features.to(self.dtype), self.W_dec.T, self.b_dec)  # rounds once, as the card's Linear does

    def forward(self, x: Float[Tensor, "*token d_in"]) -> tuple[Tensor, Float[Tensor, "*token feature"]]:
        """The reconstruction and the features, in this order, as on the model card."""
        read, mean, size = self._read(x)
        features = self._activate(self._pre(read))
        x_hat = self.decode(features)
        if size is not None and mean is not None and not self.config.transcoder:
            x_hat = x_hat * size + mean
        return (x_hat + F.linear(x.to(self.dtype), self.W_skip) if self.config.skip else x_hat), features

    def encode_codes(self, x: Float[Tensor, "*token d_in"], memory: int = ENCODE_MEMORY) -> Codes:
        """Features of x straight in their sparse form, in blocks of tokens and features.

        memory: bytes of dense work held at any moment, besides x, the weights and the active pairs (up to 60 bytes
        each while they are put in order). Less than one token and one feature need counts as that. The dense matrix
        never exists: 8,192 tokens of 65,536 features would be 1 GiB in bf16. Leading axes are flattened, row-major.
        """
        x = self._checked(x).reshape(-1, self.d_in)
        tokens, width = self._block(len(x), memory)
        find = self._strongest_pairs if self.config.activation in CHOOSING else self._active_pairs
        parts = []
        for start in range(0, max(len(x), 1), tokens):
            block, _, _ = self._read(x[start : start + tokens])
            token, feature, value = find(block, width)
            if not value.isfinite().all():
                at = start + int(token[~value.isfinite()][0])
                why = "the model overflowed its dtype, or an edit was too strong for it"
                raise BadInput(f"The activations at token {at} are no finite numbers: {why}.")
            parts.append(Codes.from_pairs(token, feature, value, len(block), self.d_hidden))
        return Codes.joined(parts)

    def encode_features(
        self, x: Float[Tensor, "*token d_in"], indices: Sequence[int] | Int[Tensor, " k"]
    ) -> Float[Tensor, "*token k"]:
        """Just these features, in float32 at least, from their encoder rows alone; topk and groupmax need them all."""
        indices = self.checked_indices(indices)
        x, _, _ = self._read(x)
        if self.config.activation in CHOOSING:
            return pick(*self.strongest(x), indices)
        return evaluate(x, self.rows(indices))

    def rows(self, indices: Sequence[int] | Int[Tensor, " k"]) -> FeatureRows:
        """The rows of these features. Raises NoFeature for an index that this SAE does not have."""
        indices = self.checked_indices(indices)
        wide = torch.promote_types(self.dtype, torch.float32)
        encoder, bias = self.W_enc[indices].to(wide), self.b_enc[indices].to(wide)
        threshold, gain, shift = torch.zeros_like(bias), torch.ones_like(bias), torch.zeros_like(bias)
        if hasattr(self, "threshold"):
            threshold = self.threshold[indices].to(wide)
        if self.config.apply_b_dec_to_input:
            bias = bias - encoder @ self.b_dec.to(wide)
        if self.config.activation == "gated":
            gain = self.r_mag[indices].to(wide).exp()
            shift = self.b_mag[indices].to(wide) - gain * self.b_enc[indices].to(wide)
        return FeatureRows(encoder, self.W_dec[indices].to(wide), bias, threshold, gain, shift)

    def checked_indices(self, indices: Sequence[int] | Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        """Feature indices as a tensor on the SAE's device. Raises NoFeature for one that this SAE does not have."""
        try:
            out = torch.as_tensor(indices)
            if out.numel() and (out.ndim != 1 or out.is_floating_point() or out.dtype == torch.bool):
                raise ValueError
            out = out.to(torch.int64)
        except (OverflowError, ValueError, TypeError, RuntimeError):
            raise BadInput(f"Feature indices are a list of whole numbers, not {str(indices)[:60]}.") from None
        if len(out) and not 0 <= int(out.min()) <= int(out.max()) < self.d_hidden:
            worst = int(out.min()) if int(out.min()) < 0 else int(out.max())
            raise NoFeature(no_feature(worst, self.d_hidden))
        return out.to(self.device)

    def strongest(
        self, x: Float[Tensor, "*token d_in"], width: int | None = None
    ) -> tuple[Float[Tensor, "*token top"], Int[Tensor, "*token top"]]:
        """For topk and groupmax: (values, feature indices) of the k features that pass at each token of normalised x.

        width: how many features are computed at once. Values may be zero, where fewer than k are above zero.
        """
        if self.config.activation == "groupmax":
            return self._strongest_of_groups(x, width or self.d_hidden)
        k, best, index = self.config.k or 0, None, None
        for low in range(0, self.d_hidden, width or self.d_hidden):
            values, indices = largest(self._pre(x, low, low + (width or self.d_hidden)), k)
            indices = indices + low
            if best is not None and index is not None:
                values, kept = largest(torch.cat([best, values], -1), k)
                indices = torch.cat([index, indices], -1).gather(-1, kept)
            best, index = values, indices
        assert best is not None
        assert index is not None
        return torch.relu(best), index

    def _strongest_of_groups(self, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The largest of each group, many whole groups at once or, of a group wider than `width`, part after part."""
        size = self.d_hidden // (self.config.k or 1)
        values, indices = [], []
        for start in range(0, self.d_hidden, max(width // size, 1) * size):
            end, best = min(start + max(width // size, 1) * size, self.d_hidden), None
            step = end - start if width >= size else width
            for low in range(start, end, step):
                part = self._pre(x, low, min(low + step, end))
                found, place = groupmax(part, max((end - start) // size, 1))
                found = (found, place + low)
                if best is not None:
                    found = [torch.where(found[0] > best[0], new, old) for new, old in zip(found, best, strict=True)]
                best = found
            assert best is not None
            values.append(best[0])
            indices.append(best[1])
        return torch.relu(torch.cat(values, -1)), torch.cat(indices, -1)

    def normalize(self, x: Float[Tensor, "*token d_in"]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(x as the encoder reads it, the mean and the size to undo it: x = read * size + mean); None where unused."""
        kind = self.config.normalization
        if kind == "none":
            return x, None, None
        if kind == "constant_norm":
            size = (x.norm(dim=-1, keepdim=True) / self.d_in**0.5).clamp_min(torch.finfo(x.dtype).tiny)
            return x / size, torch.zeros_like(size), size
        mean, size = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - mean) / (size + 1e-5), mean, size

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise BadInput(f"This SAE reads {self.d_in:,} numbers per token; it was given {x.shape[-1]:,}.")
        return x

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.normalize(self._checked(x).to(self.dtype))

    def _pre(self, x: Tensor, low: int = 0, high: int | None = None) -> Tensor:
        if self.config.apply_b_dec_to_input:
            x = x - self.b_dec
        return F.linear(x, self.W_enc[low:high], self.b_enc[low:high])

    def _activate(self, pre: Tensor, low: int = 0, high: int | None = None) -> Tensor:
        c, part = self.config, slice(low, high)
        if c.activation in CHOOSING:
            assert c.k is not None
            values, indices = (largest if c.activation == "topk" else groupmax)(pre, c.k)
            return torch.zeros_like(pre).scatter(-1, indices, torch.relu(values))
        return pointwise(pre, *self._pointwise(part))

    def _pointwise(self, part: slice) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Threshold, gain and shift of some features, as in activation.py."""
        if self.config.activation == "gated":
            gain = self.r_mag[part].exp()
            return None, gain, self.b_mag[part] - gain * self.b_enc[part]
        return self.threshold[part] if hasattr(self, "threshold") else None, None, None

    def _block(self, tokens: int, memory: int) -> tuple[int, int]:
        """How many tokens, and how many of their features, are computed at once within so many bytes."""
        size, top = self.dtype.itemsize, (self.config.k or 0) if self.config.activation in CHOOSING else 0
        per_entry = size + 48 if top else 4 * size + 25  # pre, what it passes through, a mask; indices of all
        per_token = 4 * size * self.d_in + 2 * top * per_entry  # x as read; the strongest so far and of this block
        rows = max(1, min(tokens, memory // (per_token + per_entry * min(self.d_hidden, 1024))))
        return rows, max(1, min(self.d_hidden, (memory // rows - per_token) // per_entry))

    def _active_pairs(self, x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """(token, feature, value) of all active features of a block of tokens, `width` features at a time. The
        activation is computed where something may be active, not of all that is not."""
        found = []
        for low in range(0, self.d_hidden, width):
            pre = self._pre(x, low, low + width)
            threshold, gain, shift = self._pointwise(slice(low, low + width))
            token, feature = passing(pre, threshold)
            some = (None if part is None else part[feature] for part in (threshold, gain, shift))
            value = pointwise(pre[token, feature], *some)
            active = value != 0  # NaN too, of which the caller is told
            found.append((token[active], feature[active] + low, value[active]))
        token, feature, value = (torch.cat(column) for column in zip(*found, strict=True))
        return token, feature, value

    def _strongest_pairs(self, x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same for topk and groupmax."""
        values, indices = self.strongest(x, width)
        token, place = values.nonzero(as_tuple=True)
        return token, indices[token, place], values[token, place]

    def _apply(self, fn: Any, recurse: bool = True) -> SparseAutoEncoder:
        """What .to(), .half() and the like do; the feature units stay in float32."""
        scale = self.scale
        super()._apply(fn, recurse)
        if scale is not None:
            self.scale = scale.to(self.device)
        return self

    def altered(self, scale: Float[Tensor, " feature"] | None = None, **changes: Any) -> SparseAutoEncoder:
        """The same SAE (same weights in memory) with other feature units, or other words in its config."""
        scale = self.scale if scale is None else scale
        tensors = dict(self.named_parameters()) | ({} if scale is None else {"scale": scale})
        out = SparseAutoEncoder.from_tensors(replace(self.config, **changes), tensors, check=False)
        if changes.keys() <= {"model", "model_revision", "hook_point", "notes"}:
            out._fingerprint = self.fingerprint
        return out

    def moved(self, device: torch.device | str, dtype: torch.dtype) -> SparseAutoEncoder:
        """The same SAE on a device, all parameters in one dtype; its fingerprint stays that of the stored content."""
        tensors = {name: p.to(device=device, dtype=dtype) for name, p in self.named_parameters()}
        out = SparseAutoEncoder.from_tensors(self.config, tensors, check=False)
        out.scale = None if self.scale is None else self.scale.to(device=device, dtype=torch.float32)
        out._fingerprint = self.fingerprint
        return out


CARD_NAMES = {
    "encoder_linear.weight": "W_enc",
    "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec",
    "decoder_linear.bias": "b_dec",
}


def rename_card(state: dict[str, Tensor], prefix: str = "") -> None:
    """Turn the model card's names and layout in a state dict into ours: the decoder is stored by feature."""
    for theirs, ours in CARD_NAMES.items():
        if prefix + theirs in state:
            tensor = state.pop(prefix + theirs)
            state[prefix + ours] = tensor.T.contiguous() if ours == "W_dec" else tensor


def _before_load(sae: SparseAutoEncoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    rename_card(state, prefix)
    sae._fingerprint = None  # it was that of the weights before
    scale = state.get(prefix + "scale")
    sae.scale = None if scale is None else torch.empty(sae.d_hidden, device=sae.device)
