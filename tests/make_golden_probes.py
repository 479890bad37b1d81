"""Make tests/golden from the full reference arrays: `make_golden_probes.py GOLDEN [GOLDEN ...] OUT`.

Copies the model files, keeps small arrays whole, and of larger ones the values at fixed places. Running it again gives
the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from golden_data import DIALECTS, INPUTS, JOINT, LABELS, sets_here

from dsgan_datasets.files import atomic_write

WHOLE_BYTES = 16 * 1024
#: Masks are compared pixel by pixel, from all channels that make them.
WHOLE_BYTES_OF_MASKS = 48 * 1024
PROBE_COUNT = 2048
#: Of the many sets of other projects' files.
WHOLE_BYTES_OF_DIALECTS, PROBES_OF_DIALECTS = 4096, 512
LIMIT_BYTES = 30_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", type=Path, nargs="+", metavar="GOLDEN", help="folders with full reference arrays")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, such as tests/golden")
    args = parser.parse_args()

    folders = {name: folder_of(f"{name}.npz", args.golden) for name in sets_here()}
    for name in sets_here():
        if name not in LABELS:
            copy(folders[name], args.out, *model_files(folders[name], name))
    for name, how in LABELS.items():
        copy(folders[name], args.out, *(f"{how.classifiers}/model_{i}.pth" for i in range(how.members_here)))
    for name, folder in folders.items():
        with np.load(folder / f"{name}.npz") as arrays:
            wanted = {key: arrays[key] for key in arrays.files}
        if name in LABELS and LABELS[name].members_here < 10:
            wanted = without_members(wanted, LABELS[name].members_here)
        whole, count = WHOLE_BYTES_OF_MASKS if name in JOINT else WHOLE_BYTES, PROBE_COUNT
        if name in DIALECTS:
            whole, count = WHOLE_BYTES_OF_DIALECTS, PROBES_OF_DIALECTS
        entries = {}
        for key, array in wanted.items():
            entries |= probes(f"{name}/{key}", key, array, whole, count)
        write(args.out / f"{name}.npz", npz(entries))

    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{total / 1e6:.2f} MB of at most {LIMIT_BYTES / 1e6:.0f} MB")
    if total > LIMIT_BYTES:
        sys.exit("too large for the repository")


def folder_of(file: str, folders: list[Path]) -> Path:
    """The first folder that has a file."""
    for folder in folders:
        if (folder / file).is_file():
            return folder
    sys.exit(f"{file} is in none of {', '.join(map(str, folders))}")


def model_files(golden: Path, name: str) -> list[str]:
    """Files of a generator; of StyleGAN1 the tensors in half precision, which is lossless and half the size."""
    if (golden / f"{name}_weights_fp16.npz").is_file():
        return [f"{name}_weights_fp16.npz", f"{name}_avg_latent.npy"]
    files = (f"{name}.pkl", f"{name}.pt", f"{name}.pth", f"{name}/model_0.pt", f"{name}/.config.json")
    return [file for file in files if (golden / file).is_file()]


def without_members(arrays: dict[str, np.ndarray], members: int) -> dict[str, np.ndarray]:
    """The arrays of a label set that its first `members` classifiers determine."""
    of_members = {key: arrays[key][:members] for key in ("logits", "member_argmax")}
    inputs = {key: array for key, array in arrays.items() if INPUTS.fullmatch(key)}
    return {**inputs, **of_members, **{key: arrays[key] for key in ("features_at_check_pixels", "image_uint8")}}


def copy(golden: Path, out: Path, *names: str) -> None:
    for name in names:
        write(out / name, (golden / name).read_bytes())


def probes(
    seed: str, key: str, array: np.ndarray, whole_bytes: int = WHOLE_BYTES, count: int = PROBE_COUNT
) -> dict[str, np.ndarray]:
    """The entries that stand for an array: itself, or shape, places, values there, and largest magnitude."""
    if array.nbytes <= whole_bytes or INPUTS.fullmatch(key):
        return {key: array}
    index = np.random.RandomState(zlib.crc32(seed.encode())).choice(array.size, count, replace=False)
    index = np.sort(index).astype(np.int32)
    return {
        f"{key}@shape": np.array(array.shape, dtype=np.int32),
        f"{key}@index": index,
        f"{key}@value": array.ravel()[index],
        f"{key}@max": np.abs(array.astype(np.float64)).max(),
    }


def npz(entries: dict[str, np.ndarray]) -> bytes:
    """A compressed npz file with fixed timestamps."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in entries.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, content.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def write(path: Path, contents: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(contents)


if __name__ == "__main__":
    main()
