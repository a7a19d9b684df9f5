"""Small image classifiers: the two LeNets of the pruning papers, and a residual network.

All take images of 28 × 28 pixels and one channel, and give logits.
"""

from torch import Tensor, nn
from torch.nn import functional


class LeNet300(nn.Module):
    """LeNet-300-100: fully connected, 784 → 300 → 100 → 10, 266,200 weights.

    Args:
        classes: outputs.

    Shape: ``[n, 1, 28, 28]`` → ``[n, classes]``.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition"; sizes as
    in Han et al. 2015, table 1.

    Example:
        >>> sum(layer.weight.numel() for layer in LeNet300().children())  # 784 · 300 + 300 · 100 + 100 · 10
        266200

    Chapter: pruning/magnitude
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc3(functional.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """LeNet-5 as the pruning papers use it: Caffe's, 430,500 weights, no nonlinearity after a convolution.

    Args:
        classes: outputs.

    Shape: ``[n, 1, 28, 28]`` → ``[n, classes]``.

    Source: the network ``lenet`` of Caffe's MNIST example; layer sizes as in Han et al. 2015, table 1.

    Example:
        >>> [layer.weight.numel() for layer in LeNet5().children()]  # most of them in one layer
        [500, 25000, 400000, 5000]

    Chapter: pruning/magnitude
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``; the shortcut is a 1 × 1 convolution where shapes change.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution and of the shortcut.

    Shape: ``[n, inputs, h, w]`` → ``[n, outputs, h / stride, w / stride]``.

    Source: He et al. 2016, "Deep residual learning for image recognition", figure 2 and section 3.3.

    Example:
        >>> import torch
        >>> ResidualBlock(4, 8, stride=2)(torch.zeros(1, 4, 14, 14)).shape
        torch.Size([1, 8, 7, 7])
        >>> ResidualBlock(4, 4).shortcut
        Identity()

    Chapter: pruning/structured
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class SmallResNet(nn.Module):
    """Three stages of residual blocks, widths ``width``, ``2·width``, ``4·width``; 28, 14 and 7 pixels wide.

    Args:
        width: channels of the first stage.
        classes: outputs.
        blocks: residual blocks a stage; all but the first of a stage have identity shortcuts.

    Shape: ``[n, 1, 28, 28]`` → ``[n, classes]``.

    Source: the layout of He et al. 2016 for CIFAR-10, section 4.2, with one input channel.

    Example:
        >>> import torch
        >>> model = SmallResNet(width=4)
        >>> [stage[0].conv1.out_channels for stage in model.stages], model(torch.zeros(2, 1, 28, 28)).shape
        ([4, 8, 16], torch.Size([2, 10]))

    Chapter: pruning/structured
    """

    def __init__(self, width: int = 16, classes: int = 10, blocks: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages = []
        inputs = width
        for number in range(3):
            outputs = width * 2**number
            first = ResidualBlock(inputs, outputs, 2 if number else 1)
            stages.append(nn.Sequential(first, *(ResidualBlock(outputs, outputs) for _ in range(blocks - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(functional.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))
