"""Builds the hollow GPU for the torch of this interpreter: `libhollow.so` from `hollow.cpp`, and a shell for each library torch wants.

A shell has a library's soname and, for each name that torch asks of it, a body that does nothing: it answers 0, success for all of them,
gives a handle where one is asked for, and is counted where it would start a kernel. A driver's says instead that it is not implemented.
Names are looked up in `libhollow.so` before the shells.
"""

import re
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, requires
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("hollow.cpp")
DRIVER = "libcuda.so.1"
SONAMES = {
    "nccl": "libnccl.so.2",
    "cuFile": "libcufile.so.0",
    "cusparseLt": "libcusparseLt.so.0",
    "nvshmem": "libnvshmem_host.so.3",
}
"""Of names without a version, by how they start; elsewhere the version is the soname."""
NVIDIAS = ("libcu", "libnv", "libnccl")
"""How the sonames of all that is replaced start."""
GIVES_A_HANDLE = re.compile(r"cu(blas|dnn|solver|sparse|fft|rand)\w*Create")
"""In the place that the first argument says."""
STARTS_A_KERNEL = re.compile(
    r"cublas(?!Lt|Set|Get|Create|Destroy)|cublasLtMatmul$|cudnn(BackendExecute|BatchNormalization|Pooling|Convolution)"
)


def torch_for_cuda() -> Path | None:
    """The folder of this interpreter's torch for CUDA, if it has one; it need not be one that can be imported."""
    spec = find_spec("torch")
    found = Path(spec.origin).with_name("lib") if spec is not None and spec.origin is not None else Path()
    return found if (found / "libtorch_cuda.so").exists() else None


def environment(folder: Path) -> dict[str, str]:
    """Build into a folder, which takes two seconds; the variables with which a process finds the GPU there.

    Raises RuntimeError where this interpreter's torch is none for CUDA, or what building needs is missing.
    """
    libraries = torch_for_cuda()
    if libraries is None:
        raise RuntimeError("this Python has no torch for CUDA: name one that has")
    headers = _headers()
    hollow = folder / "libhollow.so"
    _compile("g++", hollow, SOURCE, "-O2", "-std=c++17", "-Wall", "-Wextra", f"-I{headers}", *_versions(), "-ldl")
    wanted = _wanted(libraries)
    wanted[DRIVER] = dict.fromkeys(_driver_names(headers / "cuda.h") - _names(hollow, "--defined-only"), "")
    shells = [_shell(folder, soname, names, hollow) for soname, names in sorted(wanted.items())]
    return {"LD_PRELOAD": ":".join(map(str, [hollow, *shells])), "TRITON_LIBCUDA_PATH": str(folder)}


def _headers() -> Path:
    """The folder of `cuda.h` and `cuda_runtime_api.h`, as pip installs them; what they include comes with another package."""
    folders = []
    for package, header in (("nvidia-cuda-runtime", "cuda_runtime_api.h"), ("nvidia-cuda-crt", "host_defines.h")):
        try:
            files = distribution(package).files or []
        except PackageNotFoundError:
            raise RuntimeError(f"{package} is not installed: pip install --no-deps '{package}==13.0.*'") from None
        folders += [Path(str(file.locate())).parent for file in files if file.name == header]
    return folders[0]


def _versions() -> list[str]:
    """Those of cuDNN and NCCL that torch was built with, and wants to find again."""
    pinned = dict(re.findall(r"nvidia-(cudnn|nccl)-cu13==([\d.]+)", " ".join(requires("torch") or [])))
    found = []
    for name in ("cudnn", "nccl"):
        if name not in pinned:
            raise RuntimeError("this torch is none for CUDA 13: name a Python whose torch is")
        major, minor, patch = map(int, pinned[name].split(".")[:3])
        found.append(f"-D{name.upper()}_VERSION={10000 * major + 100 * minor + patch}")
    return found


def _wanted(libraries: Path) -> dict[str, dict[str, str]]:
    """What torch asks of NVIDIA's libraries: soname → name → version, "" where it has none."""
    wanted: dict[str, dict[str, str]] = {}
    for library in sorted(libraries.glob("lib*.so")):
        for soname in re.findall(r"NEEDED +(\S+)", _said("objdump", "-p", str(library))):
            if soname.startswith(NVIDIAS):
                wanted.setdefault(soname, {})
        for versioned in _names(library, "--undefined-only"):
            name, _, version = versioned.partition("@")
            by_start = next((soname for start, soname in SONAMES.items() if name.startswith(start)), "")
            soname = by_start or version
            if soname.startswith(NVIDIAS):
                wanted.setdefault(soname, {})[name] = version
    return wanted


def _driver_names(header: Path) -> set[str]:
    """Every function of `cuda.h`, as a linker knows it: the header calls cuMemFree cuMemFree_v2."""
    text = header.read_text()
    renamed = dict(re.findall(r"^#define (cu[A-Z]\w+) +(cu[A-Z]\w+)$", text, re.MULTILINE))
    return {renamed.get(name, name) for name in re.findall(r"CUDAAPI (cu[A-Z]\w+)\(", text)}


def _shell(folder: Path, soname: str, names: dict[str, str], hollow: Path) -> Path:
    """Compile a shell: C without its prototypes, which say nothing to a body that does nothing."""
    bodies = ["void hollow_launched(const char *);", "int hollow_refused(const char *);", "static int a_handle;"]
    for name in sorted(names):
        gives = "*first = &a_handle; " if GIVES_A_HANDLE.match(name) else ""
        counts = f'hollow_launched("{name}"); ' if STARTS_A_KERNEL.match(name) else ""
        answer = f'hollow_refused("{name}")' if soname == DRIVER else "0"
        bodies.append(f"int {name}(void **first) {{ {gives}{counts}return {answer}; }}")
    source, versions = folder / f"{soname}.c", folder / f"{soname}.map"
    source.write_text("\n".join(bodies) + "\n")
    nodes = [f"{version} {{ global: *; }};\n" for version in sorted(set(names.values()) - {""})]
    versions.write_text("".join(nodes))
    options = [f"-Wl,--version-script={versions}"] if nodes else []
    return _compile(
        "gcc", folder / soname, source, "-w", f"-Wl,-soname,{soname}", *options, "-Wl,--no-as-needed", str(hollow)
    )


def _compile(compiler: str, library: Path, source: Path, *options: str) -> Path:
    _said(compiler, "-shared", "-fPIC", "-o", str(library), str(source), *options)
    return library


def _names(library: Path, which: str) -> set[str]:
    return {line.split()[-1] for line in _said("nm", "-D", which, str(library)).splitlines()}


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} is not on PATH: install a C++ compiler and binutils") from None
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-1000:]}")
    return done.stdout
