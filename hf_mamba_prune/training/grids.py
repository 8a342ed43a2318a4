"""Training that knows the grid: between two steps of the optimizer the model holds the levels that will be packed.

The optimizer moves latent weights in float32, and gradients are those at the rounded ones (straight through). After
each step every latent weight goes to its nearest level, and the scales of rows follow in closed form; masks and widths
stay. What is measured, saved or packed at any moment is what was trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from hf_mamba_prune.codings.grids import coded_tensor, grids_of, put_on_grids
from hf_mamba_prune.codings.tensors import DTYPES, PackedTensor, pack_bits
from hf_mamba_prune.repair.levels import levels_of_width
from hf_mamba_prune.training.devices import DIVIDED

GRID_STATE = "grid_state.safetensors"


class _Latent:
    """One weight: what the optimizer moves, and the grid that it is rounded to.

    Args:
        parameter: holds what `packed` stands for.
        packed: the grid.
    """

    def __init__(self, parameter: nn.Parameter, packed: PackedTensor) -> None:
        assert packed.grid is not None and packed.scales is not None  # of codes
        rows, columns = packed.shape
        self.parameter, self._packed = parameter, packed
        self.scales = packed.scales.float().to(parameter.device)
        by = packed.grid.column_scales
        self._by = (torch.ones(columns) if by is None else by.float()).to(parameter.device)
        self._bits = packed.widths()
        self._keep = None if packed.mask is None else packed.kept().to(parameter.device)
        self._groups = [
            (torch.nonzero(self._bits == width)[:, 0], levels_of_width(width, packed.grid.levels).to(parameter.device))
            for width in sorted(set(self._bits.tolist()) - {0})
        ]
        self.weight = parameter.detach().view(packed.shape).clone()
        masks = torch.empty(0, dtype=torch.uint8) if packed.mask is None else pack_bits(packed.kept()).flatten()
        self.grid = torch.cat([self._bits, masks, packed.grid.levels.view(torch.uint8)])
        """uint8, the widths of the rows, what is kept and the levels: what training leaves as it is."""

    def _places(self, rows: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Numbers of the nearest levels."""
        scaled = self.weight[rows] / (self.scales[rows][:, None] * self._by)
        return torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)

    def show(self) -> None:
        """Into the model: the levels nearest to the latent weights, on scales that fit them best."""
        shown = torch.zeros_like(self.weight)
        for rows, levels in self._groups:
            found = levels[self._places(rows, levels)]
            if self._keep is not None:
                found = found * self._keep[rows]
            own = found.square().sum(1)
            fitted = (self.weight[rows] / self._by * found).sum(1) / own.clamp_min(1e-30)
            # A scale that would fall to nothing, or turn, stays as it was.
            scales = torch.where((own > 0) & (fitted > 0), fitted, self.scales[rows]).bfloat16().float()
            self.scales[rows] = scales
            shown[rows] = found * scales[:, None] * self._by
        self.parameter.data.copy_(shown.view(self.parameter.shape))

    def take_back(self) -> None:
        """Into the model: the latent weights, for the optimizer to move."""
        self.parameter.data.copy_(self.weight.view(self.parameter.shape))

    def moved(self) -> None:
        """The optimizer has moved what the model holds."""
        self.weight.copy_(self.parameter.detach().view(self.weight.shape))
        self.show()

    def packed(self) -> PackedTensor:
        """What the model holds, in packed form."""
        grid = self._packed.grid
        assert grid is not None
        codes = torch.zeros(self._packed.shape, dtype=torch.uint8)
        shown = self.parameter.detach().view(self._packed.shape)
        for rows, levels in self._groups:
            scaled = shown[rows] / (self.scales[rows][:, None] * self._by)
            codes[rows] = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).cpu()
        return coded_tensor(
            codes,
            self._bits,
            grid.levels,
            scales=self.scales.bfloat16().cpu(),
            column_scales=grid.column_scales,
            dtype=DTYPES[self._packed.dtype],
            keep=None if self._keep is None else self._keep.cpu(),
        )


class GridCallback(TrainerCallback):
    """Keeps a model on its grids while a Trainer trains it.

    Args:
        model: that `put_on_grids` was called on.

    Raises:
        ValueError: its weights have changed since.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._latents = {name: _Latent(model.get_parameter(name), grid) for name, grid in grids_of(model).items()}
        self._held: torch.optim.Optimizer | None = None

    def on_train_begin(self, args, state, control, optimizer=None, **rest) -> None:
        """Follow the optimizer, after all that was told to before.

        Raises:
            ValueError: the model's parameters are others than when this was made.
        """
        if any(self._model.get_parameter(name) is not latent.parameter for name, latent in self._latents.items()):
            raise ValueError(DIVIDED)
        inner = getattr(optimizer, "optimizer", optimizer)
        if inner is not self._held:
            inner.register_step_pre_hook(lambda *_: self._take_back())
            inner.register_step_post_hook(lambda *_: self._moved())
            self._held = inner

    def on_train_end(self, args, state, control, **rest) -> None:
        """What was trained can be packed."""
        self.keep()

    def _take_back(self) -> None:
        for latent in self._latents.values():
            latent.take_back()

    def _moved(self) -> None:
        for latent in self._latents.values():
            latent.moved()

    def keep(self) -> None:
        """The trained grids stay with the model, for packing."""
        put_on_grids(self._model, {name: latent.packed() for name, latent in self._latents.items()})

    def save(self, folder: Path) -> None:
        """Latent weights and scales, beside the rest of a checkpoint."""
        state = {f"weight.{name}": latent.weight for name, latent in self._latents.items()}
        state |= {f"scales.{name}": latent.scales for name, latent in self._latents.items()}
        state |= {f"grid.{name}": latent.grid for name, latent in self._latents.items()}
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / GRID_STATE)

    def load(self, folder: Path) -> None:
        """Go on from them.

        Raises:
            ValueError: they are of another model, or there are none.
        """
        path = folder / GRID_STATE
        state = load_file(path) if path.is_file() else {}
        for name, latent in self._latents.items():
            weight, scales = state.get(f"weight.{name}"), state.get(f"scales.{name}")
            grid = state.get(f"grid.{name}", latent.grid)  # older checkpoints do not tell
            if weight is None or scales is None or weight.shape != latent.weight.shape:
                raise ValueError(f"{folder} holds no {GRID_STATE} of this model: it was not trained on these grids.")
            if not torch.equal(grid, latent.grid):
                raise ValueError(
                    f"{folder} was trained on other grids, as {name} has other widths, zeros or levels there: round "
                    "the model in the same way again, or train it anew."
                )
            # The model holds what they show: to show them again would move the scales once more than a whole run does.
            latent.weight.copy_(weight)
            latent.scales.copy_(scales)
