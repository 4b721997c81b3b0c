"""Run the tests of the libraries that call torchvision, with those that are no dependency.

``tests/accelerate/test_clients.py`` skips the clients that are not installed. ultralytics and
effdet bring packages with them, such as opencv-python, that must not get into the environment of
the project. They are installed into a virtual environment of their own under ``build/clients``,
which sees the packages of the interpreter that runs this.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "clients"
CLIENTS = ("ultralytics", "effdet")


def run(*command: str | Path, **options: object) -> None:
    """Run a command, and stop with its exit code where it fails."""
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run(list(map(str, command)), check=True, **options)  # type: ignore[call-overload]


def make_environment(folder: Path, clients: tuple[str, ...]) -> Path:
    """Make the virtual environment with the clients, and return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
        (library,) = folder.glob("lib/python*/site-packages")
        # After the environment's own folder, so that what is installed here comes first.
        (library / "project.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    run(python, "-m", "pip", "install", "--quiet", *clients)
    return python


def main() -> int:
    """Make the environment and test in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the virtual environment")
    arguments = parser.parse_args()
    try:
        python = make_environment(arguments.folder, CLIENTS)
        # No client may be skipped here.
        environment = {**os.environ, "RCNN_EXT_CLIENTS": ",".join(CLIENTS)}
        environment["YOLO_CONFIG_DIR"] = str(arguments.folder)  # where ultralytics writes settings
        environment["PYTHONPATH"] = str(ROOT)
        run(
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            "tests/accelerate/test_clients.py",
            cwd=ROOT,
            env=environment,
        )
    except subprocess.CalledProcessError as error:
        print(f"test-clients: failed: {shlex.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
