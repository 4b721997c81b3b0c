"""The command ``rcnn-ext doctor``.

Runs with the base dependencies alone, on a CPU-only torch, and where native modules are missing.
"""

from __future__ import annotations

import argparse
import json
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from rcnn_ext._extension import ModuleStatus

SUMMARY = "show versions, what is compiled and what is not, and why"

# The distributions of each extra in pyproject.toml.
EXTRAS = {
    "train": (
        "lightning",
        "faster-coco-eval",
        "matplotlib",
        "pyyaml",
        "tqdm",
        "safetensors",
        "lxml",
        "jinja2",
    ),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "hf": ("datasets", "huggingface_hub"),
    "video": ("av",),
    "timm": ("timm",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "results": ("pandas", "supervision"),
    "fonts": ("noto-cjk-sans-jp-regular", "manimgx-fonts"),
    "selective-search": ("selectivesearch", "scikit-image"),
    "opencv": ("opencv-contrib-python-headless",),
}
_PURPOSE = {
    "_C": "CPU kernels",
    "_C_cuda": "CUDA kernels",
    "_selective_search": "selective search",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rcnn-ext doctor``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Examine the installation and print the findings.

    Args:
        args: The options that :func:`add_arguments` declares.

    Returns:
        0 where the package works (if only through its reference), 1 where something is broken.
    """
    findings = examine()
    print(json.dumps(findings, indent=1) if args.json else format_findings(findings))
    return 0 if findings["works"] else 1


def examine() -> dict[str, Any]:
    """Examine the installation.

    Returns:
        A dict for JSON: ``works``; ``problems`` and ``hints``, one line each; and versions,
        devices, modules, operators, extras and results of the self-test.
    """
    findings: dict[str, Any] = {"works": False, "problems": [], "hints": []}
    try:
        import torch
    except (ImportError, OSError) as error:
        findings["problems"] = [f"torch cannot be imported ({error}); reinstall torch"]
        return findings
    try:
        import rcnn_ext.ops  # noqa: F401 - the operators register themselves
        from rcnn_ext import _environment
    except Exception as error:
        findings["problems"] = [f"rcnn_ext.ops cannot be imported: {error!r}"]
        findings["traceback"] = traceback.format_exc()
        return findings

    device_types = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    findings["versions"] = _environment.versions()
    findings["cpu"] = _environment.describe_cpu()
    findings["gpu"] = _environment.describe_gpu()
    _examine_modules(findings)
    findings["operators"] = {kind: _environment.operator_backends(kind) for kind in ("cpu", "cuda")}
    findings["acceleration"] = _examine_acceleration()
    findings["extras"] = {
        extra: {name: _environment.installed_version(name) for name in distributions}
        for extra, distributions in EXTRAS.items()
    }
    findings["self_test"] = {kind: self_test(torch.device(kind)) for kind in device_types}
    for kind, results in findings["self_test"].items():
        for name, result in results.items():
            if result != "ok":
                findings["problems"].append(f"{name} on {kind}: {result}")
    findings["works"] = not findings["problems"]
    return findings


def _examine_acceleration() -> dict[str, Any]:
    """Examine what of torchvision runs on the kernels of this package."""
    import dataclasses

    from rcnn_ext.accelerate import status

    try:
        return dataclasses.asdict(status())
    except (ImportError, OSError, RuntimeError) as error:  # of torchvision
        return {"problem": f"torchvision cannot be imported: {error}"}


def rebuild_advice() -> str:
    """Return how to compile the native modules of the package that was imported."""
    from rcnn_ext import _extension

    checkout = _extension.source_checkout()
    if checkout is None:
        return "run `pip install .` in a source checkout"
    # Without -e the modules would be compiled for another copy of the package than this one.
    return f"run `pip install -e .` in {checkout}"


def _examine_modules(findings: dict[str, Any]) -> None:
    """Add the native modules, the hash of their sources, and their problems."""
    import torch

    from rcnn_ext import _environment, _extension

    statuses = _extension.status()
    findings["modules"] = {}
    for name, status in statuses.items():
        state, advice = judge_module(status, torch.version.cuda is not None)
        findings["modules"][name] = {
            "purpose": _PURPOSE.get(name, ""),
            "state": state,
            "file": status.path.name if status.path else None,
            "reason": status.reason,
        }
        if advice is not None:
            list_name = "problems" if state == "broken" else "hints"
            findings[list_name].append(f"{name} ({_PURPOSE.get(name, '')}): {advice}")

    build = _extension.build_info()
    findings["build"] = build
    built, present = _environment.built_hash(), _environment.source_hash()
    findings["sources"] = {"built": built, "present": present}
    if built is not None and present is not None and built != present:
        findings["hints"].append(f"csrc/ has changed since the build: {rebuild_advice()}")

    gpu, architectures = findings["gpu"], (build or {}).get("arch_list")
    if gpu is not None and architectures and statuses["_C_cuda"].loaded:
        major, minor = (int(part) for part in gpu["capability"].split("."))
        if covers(architectures, (major, minor)) is False:
            findings["problems"].append(
                f"_C_cuda was compiled for {architectures}, and this GPU is {gpu['capability']}:"
                f" set TORCH_CUDA_ARCH_LIST={gpu['capability']} and {rebuild_advice()}"
            )


def judge_module(status: ModuleStatus, torch_has_cuda: bool) -> tuple[str, str | None]:
    """Judge the state of a native module.

    Args:
        status: Status from the loader.
        torch_has_cuda: Whether this torch was built with CUDA.

    Returns:
        ``loaded``, ``missing``, ``not needed`` or ``broken``, and advice, if any.
    """
    if status.loaded:
        return "loaded", None
    if status.name == "_C_cuda" and not torch_has_cuda:
        return "not needed", None
    if status.path is not None:
        return "broken", f"{status.reason}; to fix it, {rebuild_advice()} with this torch installed"
    if status.hidden is not None:
        return "missing", status.reason  # which says what to do
    need = "nvcc of torch's CUDA version" if status.name == "_C_cuda" else "a C++17 compiler"
    return "missing", f"{status.reason}; with {need} at hand, {rebuild_advice()}"


def covers(architectures: str, capability: tuple[int, int]) -> bool | None:
    """Return whether code for a list of architectures runs on a GPU.

    Args:
        architectures: Architectures as in ``TORCH_CUDA_ARCH_LIST``: ``"8.0;9.0+PTX"``.
        capability: The GPU's compute capability.

    Returns:
        None where a name in the list has no number.
    """
    unknown = False
    for entry in architectures.replace(",", ";").replace(" ", ";").split(";"):
        if not entry:
            continue
        number, _, ptx = entry.partition("+")
        specific = number.endswith(("a", "f"))  # 9.0a, 10.0f: for that architecture or family
        try:
            major, minor = (int(part) for part in number.rstrip("af").split("."))
        except ValueError:
            unknown = True
            continue
        if specific:
            matches = (major, minor) == capability
        else:
            # Machine code runs on later members of its own generation, PTX on all that follow.
            matches = (major == capability[0] and minor <= capability[1]) or (
                ptx == "PTX" and (major, minor) <= capability
            )
        if matches:
            return True
    return None if unknown else False


def self_test(device: torch.device) -> dict[str, str]:
    """Run every operator on small inputs, as the dispatcher chooses, against the float64 reference.

    Args:
        device: The device to run them on.

    Returns:
        ``ok`` or the fault, by operator and variant.
    """
    import torch

    from rcnn_ext.bench.contenders import OURS, REFERENCE
    from rcnn_ext.bench.runner import active, contender_ops
    from rcnn_ext.bench.suite import tiny

    results = {}
    for case in tiny():
        try:
            inputs = case.make(0, device, torch.float32)
            with active(REFERENCE, case):
                check = case.check(inputs)
            with active(OURS, case):
                error = check(case.bind(contender_ops(OURS), inputs)())
        except Exception as failure:
            results[case.name] = f"raised {failure!r}"
            continue
        tolerance = case.tolerance(torch.float32, other_library=False)
        right = error <= tolerance
        results[case.name] = "ok" if right else f"wrong: {case.measure} {error:.3g}"
    return results


def format_findings(findings: dict[str, Any]) -> str:
    """Format the findings as text."""
    parts = []
    if "versions" in findings:
        parts += [_versions_text(findings), _modules_text(findings), _operators_text(findings)]
        parts += [_acceleration_text(findings["acceleration"])]
        parts += [_self_test_text(findings), _extras_text(findings)]
    if "traceback" in findings:
        parts.append(findings["traceback"].rstrip())
    for title, lines in (("Hints", findings["hints"]), ("Problems", findings["problems"])):
        if lines:
            parts.append("\n".join([title, *(f"  {line}" for line in lines)]))
    parts.append(_verdict(findings))
    return "\n\n".join(parts)


def _verdict(findings: dict[str, Any]) -> str:
    if not findings["works"]:
        return f"BROKEN: {len(findings['problems'])} problem(s), see above."
    modules = findings["modules"].items()
    missing = [name for name, module in modules if module["state"] == "missing"]
    if missing:
        return f"Works, without {', '.join(missing)}: pure PyTorch runs in their place, slower."
    return "Everything works."


def _versions_text(findings: dict[str, Any]) -> str:
    versions, cpu, gpu = findings["versions"], findings["cpu"], findings["gpu"]
    names = ("rcnn_ext", "python", "torch", "torchvision", "numpy", "pydantic")
    lines = [", ".join(f"{name} {versions[name] or 'not installed'}" for name in names)]
    kernels = f", kernels use {cpu['instruction_set']}" if cpu["instruction_set"] else ""
    lines.append(f"CPU   {cpu['model']}, {cpu['cores']} cores{kernels}")
    cuda = versions["cuda"]
    if gpu is not None:
        lines.append(
            f"GPU   {gpu['name']}, compute capability {gpu['capability']},"
            f" {gpu['memory_gib']} GiB, driver {gpu['driver'] or 'unknown'}"
        )
    elif cuda is None:
        lines.append("GPU   not usable: this torch was built without CUDA")
    else:
        lines.append(f"GPU   none found by torch (its CUDA is {cuda})")
    lines.append(
        f"CUDA  torch's runtime {cuda or 'none'}, nvcc {versions['nvcc'] or 'not on PATH'}"
    )
    return "\n".join(lines)


def _modules_text(findings: dict[str, Any]) -> str:
    lines = ["Native modules"]
    for name, module in findings["modules"].items():
        reason = f": {module['reason']}" if module["reason"] else ""
        lines.append(f"  {name:<18} {module['purpose']:<17} {module['state']}{reason}")
    build = findings["build"]
    if build is None:
        lines.append("  no record of a build")
        return "\n".join(lines)
    lines.append(
        f"  built with torch {build.get('torch')}, CUDA {build.get('cuda') or 'none'},"
        f" for GPU architectures {build.get('arch_list') or 'none'},"
        f" for torch from {_torch_target(build.get('torch_target'))} on,"
        f" from sources {build.get('csrc_hash')}"
    )
    return "\n".join(lines)


def _torch_target(target: str | None) -> str:
    """Read a TORCH_TARGET_VERSION, whose first two bytes are major and minor version."""
    if target is None:
        return "unknown"
    number = int(target, 16)
    return f"{number >> 56}.{(number >> 48) & 0xFF}"


def _operators_text(findings: dict[str, Any]) -> str:
    cpu, cuda = findings["operators"]["cpu"], findings["operators"]["cuda"]
    lines = ["Operators, and what runs for tensors on", f"  {'':<24} {'cpu':<11} cuda"]
    lines += [f"  {name:<24} {cpu[name]:<11} {cuda[name]}" for name in cpu]
    return "\n".join(lines)


def _acceleration_text(state: dict[str, Any]) -> str:
    lines = ["torchvision on these kernels"]
    if "problem" in state:
        return f"{lines[0]}\n  {state['problem']}"
    if state["compat"] is not None:
        lines.append(f"  its binary does not load, its operators are ours: {state['compat']}")
    elif state["level"] is None:
        lines.append("  off: rcnn_ext.accelerate() or RCNN_EXT_ACCELERATE=1 turns it on")
    else:
        lines.append(f"  on: level {state['level']}")
    for kind, names in state["operators"].items():
        lines.append(f"  {kind:<5} {', '.join(names) or 'nothing to replace'}")
    return "\n".join(lines)


def _self_test_text(findings: dict[str, Any]) -> str:
    lines = ["Self-test against the float64 reference"]
    for kind, results in findings["self_test"].items():
        right = sum(result == "ok" for result in results.values())
        lines.append(f"  {kind}: {right} of {len(results)} right")
    return "\n".join(lines)


def _extras_text(findings: dict[str, Any]) -> str:
    lines = ["Extras"]
    for extra, distributions in findings["extras"].items():
        missing = [name for name, version in distributions.items() if version is None]
        state = f"missing {', '.join(missing)}" if missing else "complete"
        lines.append(f"  {extra:<16} {state}")
        if missing:
            lines[-1] += f" (pip install 'rcnn-ext[{extra}]')"
    return "\n".join(lines)
