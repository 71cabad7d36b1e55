"""Speaks the protocol of experiments/_peers_worker.py without PyTorch: dense networks, by a loop in float64 NumPy.

Called with one argument, how to behave: right, off (values wrong by 1e-4), failing, garbled, dead or elsewhere.
"""

import json
import sys

import numpy as np

NORMS, MOMENT, GRAM = "BackPACK: mean + squared norms", "BackPACK: mean + second moment", "BackPACK: Gram matrix"


def gradients(arrays):
    """Per-example gradients, (n, P), in the order and layout of the weights handed over."""
    count = sum(name.startswith("weights/") for name in arrays)
    weights = [arrays[f"weights/{i}"].astype(np.float64) for i in range(count)]
    kernels, biases = weights[::2], weights[1::2]
    rows = []
    for x, y in zip(arrays["x"].astype(np.float64), arrays["y"], strict=True):
        inputs, outputs = [x], []
        for kernel, bias in zip(kernels, biases, strict=True):
            outputs.append(kernel @ inputs[-1] + bias)
            inputs.append(np.maximum(outputs[-1], 0))
        exponentials = np.exp(outputs[-1] - outputs[-1].max())
        error = exponentials / exponentials.sum() - np.eye(len(exponentials))[y]
        parts = []
        for layer in reversed(range(len(kernels))):
            parts = [np.outer(error, inputs[layer]).ravel(), error, *parts]
            if layer:
                error = (kernels[layer].T @ error) * (outputs[layer - 1] > 0)
        rows.append(np.concatenate(parts))
    return np.array(rows)


def values(arrays, name):
    """The parts of a statistic."""
    g = gradients(arrays)
    if name == GRAM:
        return {"gram": g @ g.T}
    if name == MOMENT:
        return {"mean": g.mean(axis=0), "second_moment": np.mean(g**2, axis=0)}
    return {"mean": g.mean(axis=0)} | ({"squared_norms": np.sum(g**2, axis=1)} if name == NORMS else {})


def answer(request, behavior, arrays):
    """One answer."""
    if request["do"] == "hello":
        return {"offered": ["PyTorch: mean", NORMS, MOMENT, GRAM], "versions": {"torch": "0.fake"}}
    if request["do"] == "load":
        with np.load(request["path"]) as stored:
            arrays |= dict(stored)
        here = behavior != "elsewhere"
        return {"loaded": here, "reason": "" if here else "PyTorch has no gpu here"}
    if request["do"] == "time":
        return {"error": "RuntimeError: out of memory"} if behavior == "failing" else {"seconds": 1.0}
    found = values(arrays, request["name"])
    if behavior == "off":
        found = {part: value * 1.0001 for part, value in found.items()}
    np.savez(request["path"], **found)
    return {"parts": sorted(found)}


def main(behavior):
    """Answer until standard input ends."""
    arrays = {}
    for line in sys.stdin:
        if behavior == "dead":
            sys.exit("no module named torch")
        print("Loading ..." if behavior == "garbled" else json.dumps(answer(json.loads(line), behavior, arrays)))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
