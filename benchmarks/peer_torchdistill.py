"""torchdistill's losses on given arrays: the half of peer_values.py that needs PyTorch and nothing of TensorFlow.

    python benchmarks/peer_torchdistill.py ARRAYS.npz ANSWERS.npz

Writes, for each loss, its value and its gradient with respect to the student's array.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchdistill.losses import mid_level

_PATHS = {
    "student_module_path": "m",
    "student_module_io": "output",
    "teacher_module_path": "m",
    "teacher_module_io": "output",
}
_BOTH = {"student_output_path": "m", "teacher_output_path": "m"}
_PAIR = {"teacher": {"io": "output", "path": "m"}, "student": {"io": "output", "path": "m"}, "weight": 1}


class MendedSimilarity(mid_level.SPKDLoss):
    """Rows of L2 norm 1, as in Tung and Mori 2019, equation 2.

    torchdistill 1.1.5 calls `normalize(products, 1)`, whose second argument is the order of the norm and not the axis.
    """

    def matmul_and_normalize(self, z: torch.Tensor) -> torch.Tensor:
        """See torchdistill."""
        flat = torch.flatten(z, 1)
        return torch.nn.functional.normalize(flat @ flat.T, dim=1)


def losses() -> dict[str, tuple[str, Any]]:
    """Name -> (which arrays it reads, the loss)."""
    return {
        "soft targets, T = 4, 0.9 / 0.1": ("logits", mid_level.KDLoss(**_PATHS, temperature=4.0, alpha=0.1)),
        "standardized logits, T = 2, 0.9 / 0.1": (
            "logits",
            mid_level.LogitStdKDLoss(**_PATHS, temperature=2.0, alpha=0.1),
        ),
        "correlation, beta = gamma = 2, T = 4": (
            "logits",
            mid_level.DISTLoss(**_PATHS, beta=2.0, gamma=2.0, tau=4.0),
        ),
        "relations, 25 / 50": (
            "vectors",
            mid_level.RKDLoss(**_BOTH, dist_factor=25.0, angle_factor=50.0, reduction="mean"),
        ),
        "probabilistic transfer": ("vectors", mid_level.PKTLoss(**_PATHS)),
        "similarity preserving, as it comes": ("vectors", mid_level.SPKDLoss(**_BOTH, reduction="batchmean")),
        "similarity preserving, rows of L2 norm 1": (
            "vectors",
            MendedSimilarity(**_BOTH, reduction="batchmean"),
        ),
        "attention transfer": ("maps", mid_level.ATLoss({"pair": _PAIR}, mode="code")),
    }


def flow(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The mean of the flow matrix: theirs takes another norm of the difference, so the matrix is what compares."""
    return mid_level.FSPLoss.compute_fsp_matrix(first, second).mean()


def tensor(array: np.ndarray) -> torch.Tensor:
    """Channels first, where there are any."""
    found = torch.from_numpy(array)
    return found.permute(0, 3, 1, 2).contiguous() if found.dim() == 4 else found


def answer(
    function: Callable[[torch.Tensor], torch.Tensor], student: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A loss's value and its gradient, channels last again."""
    given = tensor(student).requires_grad_()
    value = function(given)
    (gradient,) = torch.autograd.grad(value, given)
    gradient = gradient.permute(0, 2, 3, 1) if gradient.dim() == 4 else gradient
    return value.detach().numpy(), gradient.numpy()


def main(source: str, target: str) -> None:
    """Reads, computes, writes."""
    arrays = dict(np.load(source))
    labels = torch.from_numpy(arrays["labels"])
    found: dict[str, Any] = {}
    for name, (kind, loss) in losses().items():
        teacher = {"m": {"output": tensor(arrays[f"teacher_{kind}"])}}

        def value(student: torch.Tensor, loss: Any = loss, teacher: Any = teacher) -> torch.Tensor:
            return loss({"m": {"output": student}}, teacher, targets=labels)

        found[f"value {name}"], found[f"gradient {name}"] = answer(value, arrays[f"student_{kind}"])
    second = tensor(arrays["second_maps"])
    name = "flow matrix, its mean"
    found[f"value {name}"], found[f"gradient {name}"] = answer(
        lambda student: flow(student, second), arrays["student_maps"]
    )
    versions = {package: importlib.metadata.version(package) for package in ("torch", "torchdistill")}
    np.savez(target, versions=np.array([f"{key} {value}" for key, value in versions.items()]), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
