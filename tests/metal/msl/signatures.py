"""Gate 4: the signatures of kernels, and the trampolines through which the executor calls them."""
import re

from front_end import begin_of, end_of, is_kernel, refuse

MAX_INDEX = 31
MAX_THREADS = 1024
SIMD_WIDTH = 32

# attribute -> expression of its component
POSITIONS = {
    "threadgroup_position_in_grid": "msl_position(0, {})",
    "threadgroups_per_grid": "msl_position(1, {})",
    "thread_position_in_threadgroup": "msl_position(2, {})",
    "threads_per_threadgroup": "msl_position(3, {})",
    "thread_position_in_grid": "(msl_position(0, {0}) * msl_position(3, {0}) + msl_position(2, {0}))",
    "threads_per_grid": "(msl_position(1, {0}) * msl_position(3, {0}))",
}
SCALARS = {
    "thread_index_in_threadgroup": "msl_thread_index()",
    "thread_index_in_simdgroup": "(msl_thread_index() % 32u)",
    "simdgroup_index_in_threadgroup": "(msl_thread_index() / 32u)",
    "simdgroups_per_threadgroup": "((msl_thread_count() + 31u) / 32u)",
    "threads_per_simdgroup": "32u",
    "thread_index_in_quadgroup": "(msl_thread_index() % 4u)",
    "quadgroup_index_in_threadgroup": "(msl_thread_index() / 4u)",
    "quadgroup_index_in_simdgroup": "(msl_thread_index() % 32u / 4u)",
}
ATTRIBUTE = re.compile(rb"\[\[\s*(\w+)\s*(?:\(\s*(\w+)\s*\))?\s*\]\]")
COUNT_TYPE = re.compile(r"(?:const )?(uint|ushort)([23]?)")


class Kernel:
    def __init__(self, name):
        self.name = name
        self.arguments = []  # expressions of the trampoline's call
        self.buffers = set()
        self.threadgroups = set()
        self.max_threads = 0


class Signatures:
    def __init__(self, source, tree):
        self.source = source
        self.bytes = source.text.encode()
        self.messages = []
        self.kernels = []
        for node in tree["inner"]:
            if is_kernel(node) and any(p["kind"] == "CompoundStmt" for p in node["inner"]):
                self.kernels.append(self._read(node))
        names = [kernel.name for kernel in self.kernels]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.messages.append(f"two kernels are named {name}")
        if not names:
            self.messages.append("the source has no kernel")

    def _read(self, node):
        kernel = Kernel(node["name"])
        place = self.source.place(begin_of(node))

        def report(text):
            self.messages.append(f"{place}: kernel {kernel.name}: {text}")

        self._read_max_threads(node, kernel, report)
        parameters = [part for part in node["inner"] if part["kind"] == "ParmVarDecl"]
        body = next(part for part in node["inner"] if part["kind"] == "CompoundStmt")
        position_types = {}
        for i, parameter in enumerate(parameters):
            following = parameters[i + 1] if i + 1 < len(parameters) else body
            text = self.bytes[end_of(parameter):begin_of(following)]
            attributes = ATTRIBUTE.findall(text)
            if len(attributes) != 1:
                report(f"parameter '{parameter.get('name')}' has {len(attributes)} attributes: "
                       "expected one, as in [[buffer(0)]]")
                continue
            # clang has seen [[threadgroup(0)]] as [[__local(0)]].
            attribute = attributes[0][0].decode().replace("__local", "threadgroup")
            self._read_parameter(kernel, parameter, attribute, attributes[0][1].decode(), report)
            if attribute in POSITIONS:
                position_types[attribute] = self._plain_type(parameter)
        if len(set(position_types.values())) > 1:
            report("positions and sizes of different types: " + ", ".join(
                f"{attribute} {kind}" for attribute, kind in position_types.items()))
        return kernel

    def _read_max_threads(self, node, kernel, report):
        # Attributes before `kernel` are part of the declaration or come just before it.
        start = begin_of(node)
        before = max(self.bytes.rfind(b";", 0, start), self.bytes.rfind(b"}", 0, start))
        head = self.bytes[before + 1:begin_of(node) + len(b"__kernel") + 512].split(b"(void)")[0]
        found = re.search(rb"max_total_threads_per_threadgroup\s*\(\s*(\w+)\s*\)",
                          head[:head.find(kernel.name.encode() + b"(") + 1 or None])
        if not found:
            report("no [[max_total_threads_per_threadgroup(N)]]")
            return
        text = found.group(1).decode()
        if not text.isdigit() or not 0 < int(text) <= MAX_THREADS or int(text) % SIMD_WIDTH:
            report(f"max_total_threads_per_threadgroup({text}): expected a multiple of {SIMD_WIDTH} "
                   f"up to {MAX_THREADS}")
            return
        kernel.max_threads = int(text)

    @staticmethod
    def _plain_type(parameter):
        """The type without the address space of the parameter itself."""
        text = parameter["type"]["qualType"]
        for extra in (" __private", "__private "):
            text = text.replace(extra, "")
        return text.replace("*__private", "*").replace("&__private", "&").strip()

    def _read_parameter(self, kernel, parameter, attribute, argument, report):
        kind = self._plain_type(parameter)
        name = parameter.get("name", "")
        if attribute in ("buffer", "threadgroup"):
            self._read_memory(kernel, name, kind, attribute, argument, report)
        elif attribute in POSITIONS:
            match = COUNT_TYPE.fullmatch(kind)
            if not match:
                report(f"'{name}' [[{attribute}]] has type {kind}: expected uint or ushort, or 2 or "
                       "3 of them")
                return
            base, n = match.group(1), int(match.group(2) or 1)
            parts = [f"({base}){POSITIONS[attribute].format(axis)}" for axis in range(n)]
            kernel.arguments.append(
                parts[0] if n == 1 else f"metal::msl_make_{base}{n}({', '.join(parts)})")
        elif attribute in SCALARS:
            if kind not in ("uint", "ushort", "const uint", "const ushort"):
                report(f"'{name}' [[{attribute}]] has type {kind}: expected uint or ushort")
                return
            kernel.arguments.append(f"({kind.split()[-1]}){SCALARS[attribute]}")
        else:
            report(f"'{name}' has the unknown attribute [[{attribute}]]")

    @staticmethod
    def _read_memory(kernel, name, kind, attribute, argument, report):
        if not argument.isdigit() or int(argument) >= MAX_INDEX:
            report(f"'{name}' [[{attribute}({argument})]]: expected an index below {MAX_INDEX}")
            return
        index = int(argument)
        used = kernel.buffers if attribute == "buffer" else kernel.threadgroups
        if index in used:
            report(f"index {index} of {attribute} is used twice, by '{name}' again")
        used.add(index)
        spaces = ("__global", "__constant") if attribute == "buffer" else ("__local",)
        is_reference = kind.endswith("&")
        if not kind.endswith(("*", "&")) or not any(space in kind for space in spaces):
            report(f"'{name}' [[{attribute}({index})]] has type {kind}: expected a pointer or "
                   f"reference to {' or '.join(spaces)} memory")
            return
        address = f"({kind.rstrip('&* ').strip()} *)arguments->{attribute}s[{index}]"
        kernel.arguments.append(f"*{address}" if is_reference else address)


def check(source, tree):
    """Returns the kernels."""
    signatures = Signatures(source, tree)
    if signatures.messages:
        refuse("signatures", signatures.messages)
    return signatures.kernels


def trampolines(kernels):
    """C functions that the executor calls, one per kernel. The structure is msl_arguments of
    executor/executor.h."""
    lines = ['', '# 1 "trampolines"', f"struct msl_arguments {{ ulong buffers[{MAX_INDEX}]; "
             f"ulong threadgroups[{MAX_INDEX}]; }};", 'extern "C" {']
    for kernel in kernels:
        call = ", ".join(kernel.arguments)
        lines.append(f"void msl_enter_{kernel.name}(__private const msl_arguments *arguments) "
                     f"{{ {kernel.name}({call}); }}")
    lines.append("}")
    return "\n".join(lines) + "\n"
