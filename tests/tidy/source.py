# SPDX-License-Identifier: Apache-2.0
"""Source files as the tidy checks see them: text, lines, code without comments, functions.

Not a C++ parser. It knows enough of the language (comments, literals, braces, what stands before a
brace) to find function bodies in code that clang-format has laid out.
"""

import functools
import re
from dataclasses import dataclass

CPP_SUFFIXES = (".cpp", ".hpp", ".c", ".h")
LITERAL_OR_COMMENT = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)" | "(?:\\.|[^"\\\n])*"
        | (?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'""",
    re.VERBOSE | re.DOTALL,
)
CLASS_HEAD = re.compile(
    r"\b(class|struct|union)\b\s*(\[\[.*?\]\]|alignas\(\w+\)|REPLICA_API)?\s*[\w:<>, ]*"
    r"(:[^()]*)?$"
)


@dataclass(frozen=True)
class Function:
    name: str
    line: int  # of the header's first line, from 1
    length: int  # lines from there to the closing brace, both included


@dataclass(frozen=True)
class Source:
    path: str  # relative to the root, with slashes
    text: str

    @property
    def is_cpp(self):
        return self.path.endswith(CPP_SUFFIXES)

    @property
    def is_script(self):
        return self.path.endswith((".py", ".sh")) or self.text.startswith("#!")

    @functools.cached_property
    def lines(self):
        return self.text.split("\n")

    @functools.cached_property
    def code(self):
        """The text with comments and the insides of literals blanked; line numbers stay."""

        def blank(match):
            found = match.group(0)
            kept = '""' if found[0] in "\"'R" else " "
            return kept + "\n" * found.count("\n")

        return LITERAL_OR_COMMENT.sub(blank, self.text) if self.is_cpp else self.text

    @property
    def includes(self):
        """(line, name, quoted) of every #include."""
        pattern = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
        for number, line in enumerate(self.lines, 1):
            if found := pattern.match(line):
                yield number, found.group(2), found.group(1) == '"'

    @functools.cached_property
    def functions(self):
        return list(find_functions(self.code)) if self.is_cpp else []


def find_functions(code):
    """Yields a Function for every body that opens outside another function."""
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m.group(0).count("\n"), code,
                  flags=re.MULTILINE)
    header_start = 0
    position = 0
    while position < len(code):
        character = code[position]
        if character in ";}":
            header_start = position + 1
        elif character == "{":
            header = code[header_start:position]
            kind = kind_of_brace(header)
            if kind != "scope":
                end = closing_brace(code, position)
                if kind == "function":
                    start = header_start + len(header) - len(header.lstrip())
                    first = code.count("\n", 0, start) + 1
                    last = code.count("\n", 0, end) + 1
                    yield Function(name_of(header), first, last - first + 1)
                    header_start = end + 1
                position = end
            else:
                header_start = position + 1
        position += 1


def kind_of_brace(header):
    """What a brace opens, told from the text before it: a scope, a function or an initialiser."""
    header = re.sub(r"^\s*(public|private|protected)\s*:", "", header).strip()
    if re.search(r"\bnamespace\b|\bextern\s*\"\"$", header):
        return "scope"
    if CLASS_HEAD.search(header):
        return "scope"
    if "(" not in header or re.search(r"=\s*$|^enum\b", header):
        return "initialiser"
    if re.search(r"\)\s*:\s*[^:]", header) and re.search(r"[\w>]$", header):
        return "initialiser"  # a member in a constructor's list
    if re.search(r"[^=!<>]=[^=]", re.sub(r"\(.*\)|operator\S+", "", header, flags=re.DOTALL)):
        return "initialiser"  # a variable, perhaps of lambdas
    return "function"


def name_of(header):
    header = re.sub(r"template\s*<.*?>\s*(?=\w)", "", header, flags=re.DOTALL)
    if found := re.search(r"(operator\s*\(\)|operator\s*[^\s\w(]+|~?[\w:]+)\s*\(", header):
        return re.sub(r"\s+", "", found.group(1))
    return "?"


def closing_brace(code, position):
    depth = 0
    for index in range(position, len(code)):
        if code[index] == "{":
            depth += 1
        elif code[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return len(code) - 1
