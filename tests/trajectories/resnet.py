"""How PyTorch trains a ResNet-18 of MedMNIST's experiments: what `models/src/resnet/tests/trajectories.rs` follows.

    python tests/trajectories/resnet.py --axes 2 --width 3 --count 32 --side 28 --seed 1 tests/trajectories/resnet18-2d.safetensors
    python tests/trajectories/resnet.py --axes 3 --width 2 --count 10 --side 12 --seed 2 tests/trajectories/resnet18-3d.safetensors

Needs torch, numpy and safetensors. A network of full size on published data:

    python tests/trajectories/resnet.py --axes 3 --width 64 --data adrenalmnist3d.npz --count 16 --batch 4 --rate 1e-5 out.safetensors

Adam's first steps are signs of gradients: where these are hardly more than rounding, large networks at the full rate part ways
with themselves, computed by another of PyTorch's own convolutions. So a network of full size is followed at a small rate.

The file holds the weights before the first step by MedMNIST's names (halved to 16 bits where the network is small), images
as bytes, labels, the rows of each batch, the loss of each step, and the logits of all images in evaluation afterwards.
"""

import argparse

import numpy
import torch
from safetensors.torch import save_file
from torch import nn


def layers(axes):
    return (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)


class Block(nn.Module):
    def __init__(self, axes, channels, planes, stride):
        super().__init__()
        conv, norm = layers(axes)
        self.conv1 = conv(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = conv(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != planes:
            self.shortcut = nn.Sequential(conv(channels, planes, 1, stride, bias=False), norm(planes))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, axes, width, classes):
        super().__init__()
        conv, norm = layers(axes)
        self.conv1 = conv(1, width, 3, 1, 1, bias=False)
        self.bn1 = norm(width)
        channels = width
        for layer in range(4):
            planes, stride = width << layer, 1 if layer == 0 else 2
            blocks = nn.Sequential(Block(axes, channels, planes, stride), Block(axes, planes, planes, 1))
            setattr(self, f"layer{layer + 1}", blocks)
            channels = planes
        self.linear = nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.linear(x.flatten(2).mean(2))


def blobs(axes, count, side, classes):
    """Noise, with a bright ball whose size tells the class."""
    random = numpy.random.default_rng(7)
    labels = numpy.arange(count) % classes
    images = random.integers(0, 128, (count,) + (side,) * axes)
    places = numpy.stack(numpy.meshgrid(*[numpy.arange(side)] * axes, indexing="ij"))
    for image, label in zip(images, labels):
        centre = random.integers(side // 4, side - side // 4, axes).reshape((axes,) + (1,) * axes)
        image[((places - centre) ** 2).sum(0) <= (side * (1 + label) / 8) ** 2] += 100
    return images.astype(numpy.uint8), labels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--axes", type=int, choices=[2, 3], required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--data", help="a file of MedMNIST, whose first training images are learned from")
    parser.add_argument("out")
    options = parser.parse_args()

    if options.data:
        data = numpy.load(options.data)
        images = data["train_images"][: options.count]
        labels = data["train_labels"][: options.count, 0].astype(numpy.int64)
    else:
        images, labels = blobs(options.axes, options.count, options.side, 2)
    torch.manual_seed(options.seed)
    model = ResNet18(options.axes, options.width, int(labels.max()) + 1)
    small = options.width < 64
    if small:
        model.load_state_dict(
            {name: value.half().float() if value.is_floating_point() else value for name, value in model.state_dict().items()}
        )
    start = {name: value.clone() for name, value in model.state_dict().items()}

    pixels = torch.from_numpy(images).float().unsqueeze(1) / 255
    if options.axes == 2:
        pixels = (pixels - 0.5) / 0.5
    targets = torch.from_numpy(labels)
    batches = torch.stack([torch.randperm(options.count)[: options.batch] for _ in range(options.steps)])
    optimiser = torch.optim.Adam(model.parameters(), lr=options.rate)
    losses = []
    for rows in batches:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(pixels[rows]), targets[rows])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        evaluated = torch.cat([model(part) for part in pixels.split(options.batch)])
    print(" ".join(f"{loss:.5f}" for loss in losses))

    def kept(value):
        return value.half() if small and value.is_floating_point() else value

    tensors = {f"weights/{name}": kept(value).contiguous() for name, value in start.items()}
    tensors |= {"images": torch.from_numpy(images), "labels": targets, "batches": batches}
    tensors |= {"rate": torch.tensor([options.rate], dtype=torch.float64)}
    tensors |= {"losses": torch.tensor(losses, dtype=torch.float64), "evaluated": evaluated}
    save_file(tensors, options.out)


main()
