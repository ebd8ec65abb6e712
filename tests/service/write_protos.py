"""Write the Python of service/protocols/v2/proto: `make protos`, which a test compares with."""

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
FOLDER = Path("service/protocols/v2/proto")
# What protoc writes puts all descriptors into one pool; service/protocols/v2/proto/pool.py says
# why ours are in another.
OWN_POOL = {
    "from google.protobuf import descriptor_pool as _descriptor_pool\n": (
        f"from {'.'.join(FOLDER.parts)}.pool import POOL as _pool\n"
    ),
    "_descriptor_pool.Default()": "_pool",
}


def write_protos(out: Path) -> list[Path]:
    """Under `out`, in the folders that they have here; returns what was written."""
    protos = [str(path.relative_to(ROOT)) for path in sorted((ROOT / FOLDER).glob("*.proto"))]
    arguments = [f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}"]
    if protoc.main(["protoc", *arguments, *protos]) != 0:
        raise SystemExit("protoc failed")
    for path in (out / FOLDER).glob("*_pb2.py"):
        text = path.read_text()
        for theirs, ours in OWN_POOL.items():
            if theirs not in text:
                raise SystemExit(f"{path.name} has no `{theirs.strip()}`: protoc writes otherwise")
            text = text.replace(theirs, ours)
        path.write_text(text)
    return sorted((out / FOLDER).glob("*_pb2.py*"))


if __name__ == "__main__":
    write_protos(Path(sys.argv[1]))
