"""Helper of `cargo xtask wheel`: writes the wheel, and says which glibc and libstdc++ it needs."""

import base64
import hashlib
import json
import os
import re
import sys
import zipfile
from pathlib import Path

# Every archive of the same content is the same file.
TIME = (1980, 1, 1, 0, 0, 0)


def newest(programs, name):
    """The highest version of a library's symbols that the programs ask for: `GLIBC_2.34` is (2, 34)."""
    versions = set()
    for program in programs:
        for found in re.findall(name + rb"_([0-9]+(?:\.[0-9]+)+)\x00", program.read_bytes()):
            versions.add(tuple(map(int, found.split(b"."))))
    return max(versions, default=(0,))


def dotted(version):
    return ".".join(map(str, version))


def members(root, package, programs, share, build):
    """Name, content and mode of every file of the package."""
    for path in sorted(package.glob("*.py")):
        yield f"longtail_neurons/{path.name}", path.read_bytes(), 0o644
    yield "longtail_neurons/_build.py", build.encode(), 0o644
    for program in programs:
        yield f"longtail_neurons/bin/{program.name}", program.read_bytes(), 0o755
    for part in share:
        for path in sorted((root / part).rglob("*")):
            if path.is_file():
                yield f"longtail_neurons/share/{path.relative_to(root).as_posix()}", path.read_bytes(), 0o644


def metadata(spec, tag, glibcxx):
    """The files of the folder `.dist-info`, but for `RECORD`."""
    description = (
        f"The jobs of longtail-neurons as programs, for torch {spec['torch']} on Linux x86-64 (libstdc++ with GLIBCXX_{glibcxx}).\n"
        "`python -m longtail_neurons --where` says where everything is.\n"
    )
    head = [
        "Metadata-Version: 2.1",
        "Name: longtail-neurons",
        f"Version: {spec['version']}",
        "Summary: Finds and ablates the neurons of language models that change the probability of rare tokens",
        f"Home-page: {spec['homepage']}",
        f"License: {spec['license']}",
        "Requires-Python: >=3.8",
        f"Requires-Dist: torch=={spec['torch']}.*",
        "Description-Content-Type: text/plain",
    ]
    scripts = [f"{job} = longtail_neurons.launch:main" for job in sorted(spec["jobs"])]
    return {
        "METADATA": "\n".join(head) + "\n\n" + description,
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: cargo xtask wheel\nRoot-Is-Purelib: false\nTag: {tag}\n",
        "entry_points.txt": "[console_scripts]\n" + "\n".join(scripts) + "\n",
    }


def make(spec):
    root, programs = Path(spec["root"]), [Path(path) for path in spec["programs"]]
    glibc, glibcxx = newest(programs, b"GLIBC"), dotted(newest(programs, b"GLIBCXX"))
    tag = f"py3-none-manylinux_{glibc[0]}_{glibc[1]}_x86_64"
    full = f"longtail_neurons-{spec['version']}"
    build = f'"""Written by `cargo xtask wheel`."""\n\nTORCH = {spec["torch"]!r}\nJOBS = {json.dumps(spec["jobs"], indent=4)}\n'
    files = list(members(root, Path(spec["package"]), programs, spec["share"], build))
    info = f"{full}.dist-info"
    files += [(f"{info}/{name}", text.encode(), 0o644) for name, text in metadata(spec, tag, glibcxx).items()]
    files += [(f"{info}/licenses/{path.name}", path.read_bytes(), 0o644) for path in sorted((root / "docs").glob("LICENSE-*"))]
    record = ""
    for name, content, _ in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files.append((f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode(), 0o644))

    out = Path(spec["out"])
    out.mkdir(parents=True, exist_ok=True)
    wheel = out / f"{full}-{tag}.whl"
    temporary = wheel.with_name(f".{wheel.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content, mode in files:
            member = zipfile.ZipInfo(name, TIME)
            member.external_attr = (0o100000 | mode) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content, compresslevel=9)
    os.replace(temporary, wheel)
    print(json.dumps({"wheel": str(wheel), "bytes": wheel.stat().st_size, "glibc": dotted(glibc), "glibcxx": glibcxx}))


if __name__ == "__main__":
    try:
        make(json.loads(sys.argv[1]))
    except OSError as err:
        sys.exit(f"error: {err}")
