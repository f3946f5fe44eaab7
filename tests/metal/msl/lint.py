"""Gate 2: what clang's OpenCL mode accepts and Metal does not, found in the syntax tree."""
import re

from front_end import begin_of, end_of, is_kernel, refuse

# Statements and expressions that Metal's language lacks, or that mean something else there.
FORBIDDEN = {
    "GotoStmt": "goto", "IndirectGotoStmt": "goto", "LambdaExpr": "lambda", "CXXThrowExpr": "throw",
    "CXXTryStmt": "try", "CXXNewExpr": "new", "CXXDeleteExpr": "delete",
    "CXXDynamicCastExpr": "dynamic_cast", "CXXTypeidExpr": "typeid", "GCCAsmStmt": "asm",
    "StmtExpr": "statement expression", "VAArgExpr": "va_arg", "BlockExpr": "block",
}
FORBIDDEN_TYPES = re.compile(r"\b(double|__int128|long double|__bf16|_Float16|__fp16)\b")

# Words that Metal's compiler keeps for itself or defines, and this one does not.
RESERVED = {
    "vertex", "fragment", "sampler", "patch", "ray_data", "object_data", "mesh", "object", "access",
    "texture1d", "texture2d", "texture3d", "texturecube", "texture_buffer", "depth2d", "visible",
    "intersection", "imageblock", "threadgroup_imageblock", "stitchable", "early_fragment_tests",
    "simd", "metal", "metal_stdlib", "bfloat", "tensor", "coherent", "array_ref", "interpolant",
    "visible_function_table", "command_buffer", "render_command", "uniform",
}

DECLARATIONS = {"ParmVarDecl", "VarDecl", "FieldDecl", "TypedefDecl", "TypeAliasDecl",
                "CStyleCastExpr", "CXXStaticCastExpr", "CXXReinterpretCastExpr",
                "CXXFunctionalCastExpr"}
NAMED = {"ParmVarDecl", "VarDecl", "FieldDecl", "TypedefDecl", "TypeAliasDecl", "FunctionDecl",
         "CXXRecordDecl", "EnumConstantDecl", "EnumDecl"}
SWIZZLE = re.compile(r"[xyzw]{1,4}|[rgba]{1,4}")


def type_of(node):
    return node.get("type", {}).get("qualType", "")


def is_vector(node):
    text = node.get("type", {})
    return "ext_vector_type" in text.get("desugaredQualType", text.get("qualType", ""))


class Lint:
    def __init__(self, source, tree):
        self.source = source
        self.bytes = source.text.encode()
        self.messages = set()
        self.calls = {}      # function's id -> ids of what it names
        self.names = {}      # function's id -> name
        self.canonical = {}  # id of a further declaration -> id of the first
        self.kernels = set()
        self.internal = set()  # C functions of the shim
        self._walk(tree, None)
        self._check_calls()

    def report(self, node, text):
        offset = begin_of(node)
        self.messages.add((offset, f"{self.source.place(offset)}: {text}"))

    def _walk(self, node, function):
        kind = node.get("kind", "")
        if node.get("isImplicit") and kind.startswith("CXX"):
            return  # the compiler's own copying of structs
        is_users = self.source.is_users(begin_of(node))
        if kind in ("FunctionDecl", "CXXMethodDecl"):
            function = node["id"]
            self.names[function] = node.get("name", "")
            self.canonical[function] = node.get("previousDecl", function)
            if is_kernel(node):
                self.kernels.add(function)
            if is_users:
                self._check_return_type(node)
        if kind == "LinkageSpecDecl" and not is_users:
            self.internal |= {part.get("name") for part in node.get("inner", [])}
        if is_users:
            self._check(node, kind, function)
        for part in node.get("inner", []):
            self._walk(part, function)

    def _check_return_type(self, node):
        if "__generic" in type_of(node).split("(")[0]:
            self.report(node, f"{node['name']}: the result has no address space: {type_of(node)}")

    def _check(self, node, kind, function):
        if kind in FORBIDDEN:
            self.report(node, f"not in Metal: {FORBIDDEN[kind]}")
        if kind in DECLARATIONS and "__generic" in type_of(node):
            self.report(node, f"no address space: {node.get('name', 'cast')}: {type_of(node)}")
        if kind.endswith("Decl") and FORBIDDEN_TYPES.search(type_of(node)):
            self.report(node, f"not in Metal: {node.get('name', '')} has type {type_of(node)}")
        if kind in NAMED and node.get("name") in RESERVED:
            self.report(node, f"Metal reserves the name '{node['name']}'")
        if kind == "VarDecl" and function and node.get("storageClass") == "static":
            self.report(node, f"not in Metal: static variable '{node.get('name')}' of a function")
        if kind == "CXXRecordDecl" and node.get("bases"):
            self.report(node, f"struct {node.get('name', '')} inherits: keep to plain structs")
        if kind == "ConditionalOperator" and is_vector(node["inner"][0]):
            self.report(node, "the condition of ?: is a vector: use select()")
        if kind == "CompoundLiteralExpr":
            self.report(node, "(type)(list) and (type){list} are C; for a vector, Metal takes the "
                        "last of the list")
        if kind == "ExtVectorElementExpr":
            self._check_swizzle(node)
        if kind == "MemberExpr":
            self._check_method(node)
        if kind == "DeclRefExpr":
            self._check_reference(node, function)

    def _check_swizzle(self, node):
        """clang also knows OpenCL's names of elements: s0, lo, even."""
        text = self.bytes[begin_of(node):end_of(node)].decode()
        member = re.search(r"(\w+)$", text)
        if member and not SWIZZLE.fullmatch(member.group(1)):
            self.report(node, f"'.{member.group(1)}': elements of a vector are x, y, z, w")

    def _check_method(self, node):
        """Metal's methods without a qualifier are for objects in thread memory."""
        base = node["inner"][0]
        if base.get("castKind") != "AddressSpaceConversion":
            return
        space = re.search(r"__(global|local|constant)", type_of(base["inner"][0]))
        if space:
            self.report(node, f"{node.get('name')}: a method of an object in {space.group(0)} memory")

    def _check_reference(self, node, function):
        referenced = node.get("referencedDecl", {})
        if referenced.get("kind") not in ("FunctionDecl", "CXXMethodDecl"):
            return
        name = referenced.get("name", "")
        self.calls.setdefault(function, set()).add(referenced["id"])
        is_constructor = name.startswith("msl_make_")
        if name.startswith("__") or (name.startswith("msl_") and not is_constructor) \
                or name in self.internal:
            self.report(node, f"Metal has no function {name}")

    def _check_calls(self):
        calls = {}
        for caller, callees in self.calls.items():
            calls.setdefault(self.canonical.get(caller, caller), set()).update(
                self.canonical.get(callee, callee) for callee in callees)
        kernels = {self.canonical.get(kernel, kernel) for kernel in self.kernels}
        for caller, callees in calls.items():
            for callee in callees & kernels:
                self.messages.add((0, f"{self.names.get(caller)} calls kernel "
                                      f"{self.names.get(callee)}"))
            if caller in self._reachable(calls, caller):
                self.messages.add((0, f"not in Metal: recursion of {self.names.get(caller)}"))

    @staticmethod
    def _reachable(calls, start):
        seen = set()
        pending = list(calls.get(start, ()))
        while pending:
            function = pending.pop()
            if function not in seen:
                seen.add(function)
                pending.extend(calls.get(function, ()))
        return seen


def check(source, tree):
    messages = Lint(source, tree).messages
    if messages:
        refuse("lint", [text for _, text in sorted(messages)])
