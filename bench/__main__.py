"""``python bench [NAME …]``: every benchmark or those named, a table each, JSON in results/."""

import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    available = sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in {"__main__", "measure"}
    )
    asked = sys.argv[1:] or available
    for name in asked:
        if name not in available:
            raise SystemExit(f"no benchmark {name!r}; there are: {', '.join(available)}")
    for name in asked:
        began = time.monotonic()
        importlib.import_module(name).main([])
        print(f"  {name} took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
