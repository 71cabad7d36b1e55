"""Runs PyTorch, BackPACK and Opacus on request, in an environment of their own: it imports PyTorch and no JAX.

Reads one JSON object a line from standard input and answers each by one line on standard output:

    {"do": "hello"}                                   -> {"offered": [...], "versions": {...}}
    {"do": "load", "path", "threads", "platform"}     -> {"loaded": true, "reason": ""}
    {"do": "time", "name"}                            -> {"seconds"}
    {"do": "values", "name", "path"}                  -> {"parts": [...]}, the values being written to the path

or by {"error": message}. The network is read off its weights: a kernel of four axes is a convolution with padding that
keeps the size, a rectifier and 2 × 2 max-pooling; one of two axes is a dense layer, with a rectifier but for the last.
"""

import copy
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad, SumGradSquared
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor, nn

Parts = dict[str, Any]
PACKAGES = ("torch", "backpack-for-pytorch", "opacus")
PAUSE = 0.01  # the idle threads of either framework spin for a moment before they sleep


class Workload:
    """A network with its data: the mean cross-entropy and, for each peer, its own copy of the network."""

    def __init__(self, arrays: dict[str, np.ndarray], device: str) -> None:
        weights = [torch.from_numpy(arrays[f"weights/{i}"]) for i in range(sum("weights/" in name for name in arrays))]
        self.device = device
        self.x = torch.from_numpy(arrays["x"]).to(device)
        self.y = torch.from_numpy(arrays["y"]).to(device)
        plain = network(weights).to(device)
        self.models: dict[str, nn.Module] = {
            "PyTorch": plain,
            "BackPACK": extend(copy.deepcopy(plain)),
            "Opacus ghost": GradSampleModuleFastGradientClipping(copy.deepcopy(plain), use_ghost_clipping=True),
            "Opacus hooks": GradSampleModule(copy.deepcopy(plain)),
        }
        self.extended_loss = extend(nn.CrossEntropyLoss())

    def call(self, name: str) -> Parts:
        """The parts of one statistic."""
        peer, statistic = name.split(": ")
        return OFFERED[name](self, self.models[peer], statistic)

    def backward(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy) -> Any:
        """The backward pass of the mean loss; the mean gradient."""
        loss(model(self.x), self.y).backward()
        return [parameter.grad for parameter in model.parameters()]

    def clear(self) -> None:
        """Forget the gradients of the last call."""
        for model in self.models.values():
            for parameter in model.parameters():
                parameter.grad = None
                for field in ("batch_l2", "sum_grad_squared", "grad_batch", "grad_sample", "_norm_sample"):
                    if hasattr(parameter, field):
                        setattr(parameter, field, None)

    def seconds(self, name: str) -> float:
        """The time of one call."""
        self.clear()
        time.sleep(PAUSE)
        self.synchronize()
        started = time.perf_counter()
        parts = self.call(name)
        self.synchronize()
        seconds = time.perf_counter() - started
        del parts
        self.clear()
        time.sleep(PAUSE)
        return seconds

    def values(self, name: str) -> dict[str, np.ndarray]:
        """The parts of one statistic; those of every coordinate as one vector, parameter after parameter."""
        self.clear()
        parts = self.call(name)
        vectors = {
            part: torch.cat([leaf.reshape(-1) for leaf in value]) if isinstance(value, list) else value
            for part, value in parts.items()
        }
        return {part: value.detach().cpu().numpy() for part, value in vectors.items()}

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def network(weights: list[Tensor]) -> nn.Sequential:
    """The network with these weights and biases, in turn."""
    layers: list[nn.Module] = []
    kernels, biases = weights[::2], weights[1::2]
    for kernel, bias in zip(kernels, biases, strict=True):
        layer: nn.Module
        if kernel.ndim == 4:
            layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding=kernel.shape[2] // 2)
            layers += [layer, nn.ReLU(), nn.MaxPool2d(2)]
        else:
            if layers and isinstance(layers[-1], nn.MaxPool2d):
                layers.append(nn.Flatten())
            layer = nn.Linear(kernel.shape[1], kernel.shape[0])
            layers += [layer, nn.ReLU()]
        layer.weight, layer.bias = nn.Parameter(kernel), nn.Parameter(bias)
    return nn.Sequential(*layers[:-1])


def gram_matrix(samples: list[Tensor]) -> Tensor:
    """All inner products, from the per-example gradients of each parameter."""
    rows = [sample.reshape(len(sample), -1) for sample in samples]
    return torch.stack([row @ row.T for row in rows]).sum(dim=0)


def plain(workload: Workload, model: nn.Module, _: str) -> Parts:
    """The mean gradient and nothing else."""
    return {"mean": workload.backward(model)}


def with_backpack(workload: Workload, model: nn.Module, statistic: str) -> Parts:
    """BackPACK's quantities are of the terms g_i/n of the mean."""
    count = len(workload.x)
    extension = {
        "mean + squared norms": BatchL2Grad,
        "mean + second moment": SumGradSquared,
        "Gram matrix": BatchGrad,
    }[statistic]
    with backpack(extension()):
        mean = workload.backward(model, workload.extended_loss)
    parameters = list(model.parameters())
    if extension is BatchL2Grad:
        norms = torch.stack([parameter.batch_l2 for parameter in parameters]).sum(dim=0)
        return {"mean": mean, "squared_norms": norms * count**2}
    if extension is SumGradSquared:
        return {"mean": mean, "second_moment": [parameter.sum_grad_squared * count for parameter in parameters]}
    return {"gram": gram_matrix([parameter.grad_batch for parameter in parameters]) * count**2}


def with_ghost_norms(workload: Workload, model: nn.Module, _: str) -> Parts:
    """Opacus's norms, without the gradients where it can."""
    mean = workload.backward(model)
    return {"mean": mean, "squared_norms": model.get_norm_sample() ** 2}


def with_hooks(workload: Workload, model: nn.Module, statistic: str) -> Parts:
    """From the per-example gradients that Opacus's hooks leave."""
    mean = workload.backward(model)
    samples = [parameter.grad_sample for parameter in model.parameters()]
    if statistic == "mean + squared norms":
        squares = [sample.reshape(len(sample), -1).square().sum(dim=1) for sample in samples]
        return {"mean": mean, "squared_norms": torch.stack(squares).sum(dim=0)}
    if statistic == "mean + second moment":
        return {"mean": mean, "second_moment": [sample.square().mean(dim=0) for sample in samples]}
    return {"gram": gram_matrix(samples)}


OFFERED: dict[str, Callable[[Workload, Any, str], Parts]] = {
    "PyTorch: mean": plain,
    "BackPACK: mean + squared norms": with_backpack,
    "BackPACK: mean + second moment": with_backpack,
    "BackPACK: Gram matrix": with_backpack,
    "Opacus ghost: mean + squared norms": with_ghost_norms,
    "Opacus hooks: mean + squared norms": with_hooks,
    "Opacus hooks: mean + second moment": with_hooks,
    "Opacus hooks: Gram matrix": with_hooks,
}


class Session:
    """Answers requests, one workload at a time."""

    workload: Workload | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks for."""
        if request["do"] == "hello":
            versions = {package: importlib.metadata.version(package) for package in PACKAGES}
            return {"offered": list(OFFERED), "versions": versions}
        if request["do"] == "load":
            return self.load(request)
        if self.workload is None or request["do"] not in ("time", "values"):
            raise ValueError(f"a request must be hello, load, time or values, the last two after load, got {request}")
        if request["do"] == "time":
            return {"seconds": self.workload.seconds(request["name"])}
        values = self.workload.values(request["name"])
        np.savez(request["path"], **values)
        return {"parts": sorted(values)}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build the network; say so if there is no such device for it here."""
        self.workload = None
        if request["platform"] != "cpu" and not torch.cuda.is_available():
            return {"loaded": False, "reason": f"PyTorch has no {request['platform']} here"}
        torch.set_num_threads(request["threads"])
        torch.backends.cudnn.allow_tf32 = False
        with np.load(request["path"]) as arrays:
            self.workload = Workload(dict(arrays), "cpu" if request["platform"] == "cpu" else "cuda")
        return {"loaded": True, "reason": ""}


def main() -> None:
    """Answer until standard input ends; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session = Session()
    for line in sys.stdin:
        try:
            answer = session.answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
