"""Traces of Megatron-LM's own DynamicGradScaler, for lossScale.test.ts.

    python3 megatronTrace.py PATH/megatron/optimizer/grad_scaler.py > megatronTrace.json

The file is that of Megatron-LM core_v0.4.0. It is loaded as it is; torch is replaced by plain numbers, which powers of two do not round.
"""
import importlib.util
import json
import random
import sys
import types


def load(path):
    torch = types.ModuleType("torch")
    torch.float = float
    torch.tensor = lambda values, dtype=None, device=None: values[0]
    torch.cuda = types.SimpleNamespace(FloatTensor=lambda values: values[0])
    torch.max = max
    sys.modules["torch"] = torch
    spec = importlib.util.spec_from_file_location("grad_scaler", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DynamicGradScaler


def overflows(dice, steps, rate, longest):
    """Steps that overflow: bursts of up to `longest`, one beginning at a step with probability `rate`."""
    found, step = [], 0
    while step < steps:
        if dice.random() < rate:
            burst = min(dice.randint(1, longest), steps - step)
            found.extend(range(step, step + burst))
            step += burst
        step += 1
    return found


def trace(scaler_class, settings, found, steps):
    """Changes of the scale: [steps done, the scale from then on]."""
    scaler = scaler_class(
        settings["initial"], settings["minimum"], settings["growth"], settings["backoff"],
        settings["growthInterval"], settings["hysteresis"])
    bad, changes, before = set(found), [], scaler.scale
    for step in range(steps):
        scaler.update(step in bad)
        if scaler.scale != before:
            changes.append([step + 1, scaler.scale])
            before = scaler.scale
    return changes


def main():
    scaler_class, dice, steps, cases = load(sys.argv[1]), random.Random(7), 3000, []
    nemo = {"initial": 2.0 ** 32, "growthInterval": 1000, "growth": 2.0, "backoff": 0.5, "hysteresis": 2, "minimum": 1.0}
    patterns = [(0, 1), (0.0005, 1), (0.001, 5), (0.003, 3), (0.01, 2), (0.01, 40), (0.3, 1)]
    for rate, longest in patterns:
        for settings in (nemo, {**nemo, "growthInterval": 60, "hysteresis": 3, "initial": 2.0 ** 16}):
            found = overflows(dice, steps, rate, longest)
            cases.append({"settings": settings, "steps": steps, "overflows": found,
                          "changes": trace(scaler_class, settings, found, steps)})
    rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    print(f"[\n{rows}\n]")


main()
