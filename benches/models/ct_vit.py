"""CT-ViT (Hamamci et al. 2024) at its published size in PyTorch's own layers: no package on PyPI holds it. As the
published weights see it: the gradient passes straight through the quantiser."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, HEAD, CODES, HIDDEN, LATENT = 512, 8, 32, 8192, 1365, 512
SIDE, PATCH, SLICES, LAYERS = 480, 20, 10, 4
GRID = SIDE // PATCH


class Attention(nn.Module):
    """Attention by cosines, over keys and values of what is not normed."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.key_value = nn.Linear(WIDTH, 2 * HEADS * HEAD, bias=False)
        self.query_scale, self.key_scale = nn.Parameter(torch.ones(HEAD)), nn.Parameter(torch.ones(HEAD))
        self.out = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x, bias):
        heads = lambda y: y.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        query = heads(self.query(self.norm(x)))
        key, value = (heads(y) for y in self.key_value(x).chunk(2, dim=-1))
        query = functional.normalize(query, dim=-1) * self.query_scale
        key = functional.normalize(key, dim=-1) * self.key_scale
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=8.0)
        return self.out(seen.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        values, gates = self.wide(self.norm(x)).chunk(2, dim=-1)
        return self.narrow(values * functional.gelu(gates))


class Transformer(nn.Module):
    """Layers over sequences, each with a convolution that sees the tokens as a volume."""

    def __init__(self):
        super().__init__()
        self.positions = nn.ModuleList(nn.Conv3d(WIDTH, WIDTH, 3, groups=WIDTH) for _ in range(LAYERS))
        self.attentions = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.perceptrons = nn.ModuleList(Perceptron() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, volume, bias=None):
        for position, attention, perceptron in zip(self.positions, self.attentions, self.perceptrons):
            tokens = functional.pad(x.view(*volume, WIDTH).permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
            x = position(tokens).permute(0, 2, 3, 4, 1).reshape(x.shape) + x
            x = attention(x, bias) + x
            x = perceptron(x) + x
        return self.norm(x)


class CtVit(nn.Module):
    """Volumes [batch, 1, slices, 480, 480] to embeddings [batch, 512]."""

    def __init__(self):
        super().__init__()
        voxels = SLICES * PATCH * PATCH
        self.patches = nn.Sequential(nn.LayerNorm(voxels), nn.Linear(voxels, WIDTH), nn.LayerNorm(WIDTH))
        self.bias = nn.Sequential(
            nn.Linear(2, WIDTH), nn.LeakyReLU(0.1), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.1), nn.Linear(WIDTH, HEADS)
        )
        self.spatial, self.temporal = Transformer(), Transformer()
        self.register_buffer("codes", torch.randn(CODES, WIDTH))
        self.latent = nn.Linear(GRID * GRID * WIDTH, LATENT, bias=False)

    def position_bias(self):
        """A number for each head and each pair of places."""
        steps = torch.arange(GRID, device=self.codes.device)
        places = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(-1, 2)
        distances = (places[:, None] - places[None]).to(self.codes.dtype)
        return self.bias(distances.sign() * distances.abs().log1p()).permute(2, 0, 1)

    def forward(self, volumes):
        batch, steps = len(volumes), volumes.shape[2] // SLICES
        patches = volumes.view(batch, steps, SLICES, GRID, PATCH, GRID, PATCH).permute(0, 1, 3, 5, 2, 4, 6)
        volume = (batch, steps, GRID, GRID)
        x = self.patches(patches.reshape(*volume, -1))
        x = self.spatial(x.view(batch * steps, GRID * GRID, WIDTH), volume, self.position_bias())
        x = x.view(*volume, WIDTH).permute(0, 2, 3, 1, 4).reshape(-1, steps, WIDTH)
        # The convolution sees a buffer that is ordered place by place as if it were ordered step by step.
        x = self.temporal(x, volume)
        x = x.view(batch, GRID, GRID, steps, WIDTH).permute(0, 3, 1, 2, 4)
        nearest = functional.normalize(x, dim=-1) @ functional.normalize(self.codes, dim=-1).T
        coded = x + (self.codes[nearest.argmax(-1)] - x).detach()
        return self.latent(coded.mean(1).flatten(1))
