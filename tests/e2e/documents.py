"""What README and docs/ show, as tests run it."""

import re
from dataclasses import dataclass

BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(document: str) -> list[tuple[str, list[str]]]:
    """Each command of a document's console blocks, with the lines that it is shown to print."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall(document):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


@dataclass(frozen=True)
class Example:
    """A block that can be run, and what it is shown to print."""

    section: str  # the title over it, at any level
    language: str  # of the fence: console, python, html
    number: int  # in its section, from 1
    code: str  # of a console block, one command
    shown: str

    def __str__(self) -> str:
        return f"{self.section} {self.number}"


FENCE = re.compile(r"^```(\w+)\n(.*?)^```$|^#+ ([^\n]+)$", re.DOTALL | re.MULTILINE)
RUNNABLE = ("console", "python", "html")
VARIES = [  # what another training, another start or another day writes otherwise
    (re.compile(r"-?\d+\.\d+(e[+-]?\d+)?"), "NUMBER"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "VERSION"),
]


def examples(document: str) -> list[Example]:
    """Every example, in order: a command of a console block, or a block of a language.

    What a command is shown to print follows it in its block; what a block of a language prints
    is the `text` block after it.
    """
    found: list[Example] = []
    section, number = "", 0
    for language, code, title in FENCE.findall(document):
        if title:
            section, number = title, 0
        elif language == "console":
            for command, shown in commands(f"```console\n{code}```"):
                number += 1
                found.append(Example(section, language, number, command, "\n".join(shown)))
        elif language in RUNNABLE:
            number += 1
            found.append(Example(section, language, number, code, ""))
        elif language == "text" and found:
            last = found.pop()
            found.append(Example(last.section, last.language, last.number, last.code, code.strip()))
    return found


def steady(text: str) -> list[str]:
    """The lines, sorted as those of two sessions may be, without what varies."""
    for pattern, name in VARIES:
        text = pattern.sub(name, text)
    return sorted(line.rstrip() for line in text.splitlines() if line.strip())
